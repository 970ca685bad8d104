import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import type { ConversationState } from '../client';
import { isEnded, loadOlder, read, session, view } from './chat';
import { Icon, Mark } from './icons';
import { Dots, PendingRow, Row } from './message';
import { begin, busy, isDemo, models, reopen, replace } from './sessions';
import { nameOf } from './wording';

/** This close to the end counts as being there. */
const NEAR_END = 40;
/** This close to the beginning, older messages are fetched. */
const NEAR_BEGINNING = 300;
const READ_AFTER_MS = 1_000;

export function Log() {
  const { state, status, runningReply, loadingHistory, historyFailed } = view.value;
  const follow = useFollowing(state);
  useReading(state.head, follow.away);
  const live = status.phase === 'live';
  const empty = state.items.length === 0 && state.pending.length === 0 && state.older.state === 'none';
  return (
    <div class="log-place">
      {/* Not announced by itself: a growing answer would be read word by word. See spoken.tsx. */}
      <div
        class="log"
        role="log"
        aria-live="off"
        aria-label="Conversation"
        tabIndex={0}
        ref={follow.box}
        onScroll={follow.onScroll}
      >
        <div class="log-inner" ref={follow.inner}>
          <Beginning more={state.older.state} loading={loadingHistory} failed={historyFailed} />
          {empty ? <Welcome /> : null}
          {state.items.map((item) => (
            <Row
              key={item.id}
              item={item}
              running={state.running?.messageId === item.id ? state.running.text : undefined}
            />
          ))}
          {state.pending.map((one) => (
            <PendingRow key={one.clientMessageId} one={one} live={live} />
          ))}
          {state.typing.map((one) => (
            <p key={one.sender.userId} class="typing">
              {nameOf(one.sender)} is writing <Dots />
            </p>
          ))}
          {isEnded.value && !empty ? <Ended /> : null}
        </div>
      </div>
      {follow.away ? (
        <button type="button" class="jump" onClick={follow.jump}>
          <Icon name="down" />
          {runningReply === null ? 'Latest' : 'Follow the answer'}
        </button>
      ) : null}
    </div>
  );
}

function Beginning({ more, loading, failed }: { more: string; loading: boolean; failed: boolean }) {
  if (failed) {
    return (
      <p class="log-notice" role="alert">
        Older messages could not be loaded.{' '}
        <button type="button" class="link" onClick={loadOlder}>
          Try again
        </button>
      </p>
    );
  }
  if (loading || more === 'unknown') return <p class="log-notice loading">Loading…</p>;
  if (more !== 'more') return null;
  return (
    <button type="button" class="button quiet older" onClick={loadOlder}>
      Load older messages
    </button>
  );
}

function Welcome() {
  if (isEnded.value) return <p class="log-notice">This conversation ended before anything was said.</p>;
  return (
    <div class="welcome">
      <Mark />
      <h2>What can I do for you?</h2>
      <p>Write a message below. Answers stream in as they are made, and nothing is lost when you reload.</p>
      <ModelChoice />
      {isDemo(session.value?.model) ? (
        <p class="muted">
          The demo model answers: it is built in and has no intelligence. Connect a real model to get real answers.
        </p>
      ) : null}
    </div>
  );
}

/** A conversation in which nothing was said yet can still have another model: it is begun anew with it. */
function ModelChoice() {
  if (models.value.length < 2) return null;
  return (
    <label class="model-choice">
      Model
      <select
        value={session.value?.model ?? ''}
        disabled={busy.value}
        onChange={(event) => void replace(event.currentTarget.value)}
      >
        {models.value.map((model) => (
          <option key={model.id} value={model.id}>
            {model.name || model.id}
          </option>
        ))}
      </select>
    </label>
  );
}

function Ended() {
  return (
    <div class="ended-note">
      <p>This conversation has ended. It can still be read.</p>
      <button type="button" class="button" disabled={busy.value} onClick={() => void reopen()}>
        Go on with it
      </button>
      <button type="button" class="button" disabled={busy.value} onClick={() => void begin()}>
        New conversation
      </button>
    </div>
  );
}

/** The first message in view. */
function firstInView(box: HTMLElement): HTMLElement | undefined {
  const all = [...box.querySelectorAll<HTMLElement>('[data-message]')];
  return all.find((one) => one.offsetTop + one.offsetHeight > box.scrollTop);
}

/** Keeps the end in view while somebody is there, and what they read in its place when they are not. */
function useFollowing(state: ConversationState) {
  const box = useRef<HTMLDivElement>(null);
  const inner = useRef<HTMLDivElement>(null);
  const place = useRef({ pinned: true, top: 0, read: undefined as HTMLElement | undefined, readTop: 0 });
  const [away, setAway] = useState(false);

  const keep = () => {
    const element = box.current;
    const { pinned, read, readTop } = place.current;
    if (!element) return;
    if (pinned) element.scrollTop = element.scrollHeight;
    else if (read?.isConnected && read.offsetTop !== readTop) element.scrollTop += read.offsetTop - readTop;
    look();
  };

  const look = () => {
    if (!box.current || place.current.pinned) return;
    const read = firstInView(box.current);
    place.current.read = read;
    place.current.readTop = read?.offsetTop ?? 0;
  };

  const pin = () => {
    place.current.pinned = true;
    setAway(false);
    keep();
  };

  useEffect(() => {
    const observer = new ResizeObserver(keep);
    if (box.current) observer.observe(box.current);
    if (inner.current) observer.observe(inner.current);
    return () => observer.disconnect();
  }, []);

  useLayoutEffect(keep);

  // One's own message is always looked at.
  const own = state.pending.at(-1)?.clientMessageId;
  useLayoutEffect(() => {
    if (own !== undefined) pin();
  }, [own]);

  const onScroll = () => {
    const element = box.current;
    if (!element) return;
    const distance = element.scrollHeight - element.clientHeight - element.scrollTop;
    // Growth moves the end away without anybody scrolling: only a move up lets go.
    if (distance <= NEAR_END) place.current.pinned = true;
    else if (element.scrollTop < place.current.top - 1) place.current.pinned = false;
    place.current.top = element.scrollTop;
    look();
    setAway(!place.current.pinned);
    if (element.scrollTop < NEAR_BEGINNING && view.peek().state.older.state === 'more') loadOlder();
  };

  const jump = () => {
    pin();
    document.getElementById('message')?.focus({ preventScroll: true });
  };

  return { box, inner, away, onScroll, jump };
}

/** Tells the server how far was read, once it has stood in view for a moment. */
function useReading(head: number, away: boolean): void {
  useEffect(() => {
    if (away || head === 0) return;
    const timer = setTimeout(() => {
      if (!document.hidden) read(head);
    }, READ_AFTER_MS);
    return () => clearTimeout(timer);
  }, [head, away]);
}
