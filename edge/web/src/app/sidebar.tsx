import { useEffect, useRef } from 'preact/hooks';
import type { Session } from '../client';
import { refuse, userName } from './auth';
import { leave, sessionId } from './chat';
import { Icon, Mark } from './icons';
import {
  askToDelete,
  begin,
  busy,
  choose,
  found,
  hasMore,
  loadMore,
  modelName,
  search,
  searched,
  sessions,
  titleOf,
} from './sessions';
import { forgetAll } from './storage';
import { dateAndTime, drawerOpen, isPhone, when } from './ui';

export function Sidebar() {
  const open = !isPhone.value || drawerOpen.value;
  const ref = useRef<HTMLElement>(null);
  useEffect(() => {
    if (!isPhone.value || !drawerOpen.value) return;
    ref.current?.querySelector<HTMLElement>('button')?.focus();
    const onKey = (event: KeyboardEvent) => {
      if (event.key === 'Escape') closeDrawer();
    };
    document.addEventListener('keydown', onKey);
    return () => document.removeEventListener('keydown', onKey);
  }, [isPhone.value, drawerOpen.value]);
  return (
    <>
      {isPhone.value && drawerOpen.value ? <div class="backdrop" onClick={closeDrawer} /> : null}
      <aside ref={ref} id="sidebar" class={open ? 'sidebar open' : 'sidebar'} inert={!open} aria-label="Conversations">
        <div class="brand">
          <Mark />
          <span>Chatbox</span>
          {isPhone.value ? (
            <button type="button" class="icon-button" aria-label="Close the list" onClick={closeDrawer}>
              <Icon name="close" />
            </button>
          ) : null}
        </div>
        <button
          type="button"
          class="button new"
          disabled={busy.value}
          onClick={() => {
            drawerOpen.value = false;
            void begin();
          }}
        >
          <Icon name="plus" />
          New conversation
        </button>
        <Search />
        <nav class="sessions" aria-label="Your conversations">
          <List />
        </nav>
        <div class="user">
          <span class="avatar" aria-hidden="true">
            {userName.value.slice(0, 1).toUpperCase()}
          </span>
          <span class="user-name">{userName.value}</span>
          <button type="button" class="icon-button" aria-label="Sign out" title="Sign out" onClick={signOut}>
            <Icon name="leave" />
          </button>
        </div>
      </aside>
    </>
  );
}

function closeDrawer(): void {
  drawerOpen.value = false;
  requestAnimationFrame(() => document.getElementById('open-sidebar')?.focus());
}

function signOut(): void {
  leave();
  forgetAll();
  refuse('You have signed out of this tab.');
}

const SEARCH_AFTER_MS = 250;

function Search() {
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  const onInput = (text: string) => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => void search(text), SEARCH_AFTER_MS);
  };
  return (
    <div class="search" role="search">
      <Icon name="search" />
      <input
        type="search"
        maxLength={100}
        placeholder="Search"
        aria-label="Search conversations by name"
        value={searched.value}
        onInput={(event) => onInput(event.currentTarget.value)}
      />
    </div>
  );
}

function List() {
  const hits = found.value;
  if (hits !== null) {
    return (
      <section aria-label="Found" aria-live="polite">
        <h2>{hits.length === 0 ? 'Nothing found' : 'Found'}</h2>
        <ul>
          {hits.map((one) => (
            <Row key={one.sessionId} one={one} />
          ))}
        </ul>
      </section>
    );
  }
  const groups = Object.entries(byAge(sessions.value));
  if (groups.length === 0) return <p class="muted none">Your conversations appear here.</p>;
  return (
    <>
      {groups.map(([label, members]) => (
        <section key={label} aria-label={label}>
          <h2>{label}</h2>
          <ul>
            {members.map((one) => (
              <Row key={one.sessionId} one={one} />
            ))}
          </ul>
        </section>
      ))}
      {hasMore.value ? (
        <button type="button" class="button quiet" onClick={() => void loadMore()}>
          Show more
        </button>
      ) : null}
    </>
  );
}

function Row({ one }: { one: Session }) {
  const ended = one.status === 'SESSION_STATUS_ENDED';
  const current = one.sessionId === sessionId.value;
  return (
    <li class="session-row">
      <button
        type="button"
        class="session"
        aria-current={current ? 'true' : undefined}
        title={dateAndTime(one.lastActivityTime)}
        onClick={() => {
          drawerOpen.value = false;
          choose(one);
        }}
      >
        <span class="session-title">{titleOf(one)}</span>
        <span class="session-facts">
          {ended ? 'Ended' : modelName(one.model)}
          {' · '}
          {when(one.lastActivityTime ?? one.createTime)}
        </span>
      </button>
      <button
        type="button"
        class="icon-button session-delete"
        aria-label={`Delete “${titleOf(one)}”`}
        title="Delete"
        disabled={busy.value}
        onClick={() => askToDelete(one)}
      >
        <Icon name="trash" />
      </button>
    </li>
  );
}

const DAY_MS = 86_400_000;

function byAge(list: readonly Session[]): Record<string, Session[]> {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const groups: Record<string, Session[]> = {};
  for (const one of list) {
    const at = Date.parse(one.lastActivityTime ?? one.createTime ?? '') || Date.now();
    const label = at >= midnight ? 'Today' : at >= midnight - DAY_MS ? 'Yesterday' : 'Earlier';
    (groups[label] ??= []).push(one);
  }
  return groups;
}
