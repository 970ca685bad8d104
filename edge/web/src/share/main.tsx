// What a share link shows: read-only, without a token. The id and the secret of the link stand behind the hash.
import { render } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { Api, ChatboxError, isFinished, type Message } from '../client';
import { Mark } from '../app/icons';
import { Markdown } from '../app/markdown-view';
import { clock, dateAndTime } from '../app/ui';
import { sayFinish } from '../app/wording';

/** Pages that are shown without being asked for; a longer conversation has a button. */
const PAGES = 5;

interface Shown {
  name: string;
  messages: readonly Message[];
  next: string;
  failed: string;
}

const [shareId = '', secret = ''] = location.hash.slice(1).split('.');
const api = new Api({ base: new URL('./', location.href), token: () => secret });

function Shared() {
  const [shown, setShown] = useState<Shown | null>(null);
  const load = async (before: Shown | null) => {
    let { name, messages, next } = before ?? { name: '', messages: [] as readonly Message[], next: '' };
    let failed = '';
    try {
      for (let page = 0; page < PAGES; page += 1) {
        const answer = await api.shared(shareId, next);
        name = answer.name ?? '';
        messages = [...messages, ...(answer.messages ?? [])];
        next = answer.nextPageToken ?? '';
        if (next === '') break;
      }
    } catch (error) {
      failed = wording(ChatboxError.from(error));
    }
    setShown({ name, messages, next, failed });
  };
  useEffect(() => void load(null), []);
  if (shown === null) return <p class="log-notice loading">Loading…</p>;
  return (
    <main class="shared">
      <header>
        <Mark />
        <h1>{shown.name || 'A shared conversation'}</h1>
      </header>
      {shown.messages.map((message) => (
        <Line key={message.messageId} message={message} />
      ))}
      {shown.failed === '' ? null : (
        <p class="log-notice" role="alert">
          {shown.failed}
        </p>
      )}
      {shown.next === '' ? null : (
        <button type="button" class="button" onClick={() => void load(shown)}>
          Show more
        </button>
      )}
    </main>
  );
}

function wording(error: ChatboxError): string {
  if (error.code === 'NOT_FOUND' || error.code === 'UNAUTHENTICATED') return 'This link does not work, or no longer.';
  if (error.code === 'RESOURCE_EXHAUSTED') return 'Too many requests. Wait a little and load the page again.';
  return 'The conversation could not be loaded. Try again later.';
}

function Line({ message }: { message: Message }) {
  if (message.sender?.role === 'SENDER_ROLE_USER') {
    return (
      <article class="message own" aria-label="Visitor" title={dateAndTime(message.createTime)}>
        <div class="bubble plain">{message.text}</div>
      </article>
    );
  }
  const name = message.sender?.role === 'SENDER_ROLE_ASSISTANT' ? 'Assistant' : 'A person of the team';
  const replaced = Boolean(message.reply?.supersededBy);
  const finish = message.reply && isFinished(message) ? sayFinish(message.reply.finishReason) : null;
  return (
    <article class={replaced ? 'message reply superseded' : 'message reply'} aria-label={name}>
      <div class="message-main">
        <header class="message-head">
          <span class="message-name">{name}</span>
          <time class="message-time" dateTime={message.createTime} title={dateAndTime(message.createTime)}>
            {clock(message.createTime)}
          </time>
        </header>
        {message.reply ? <Markdown text={message.text ?? ''} /> : <div class="plain">{message.text}</div>}
        {finish ? <footer class="message-foot">{finish}</footer> : null}
      </div>
    </article>
  );
}

const root = document.getElementById('app');
if (root) render(<Shared />, root);
// Another link in the same tab is another page.
window.addEventListener('hashchange', () => location.reload());
