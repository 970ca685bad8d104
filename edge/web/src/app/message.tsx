import { Component, type ComponentChildren } from 'preact';
import { useState } from 'preact/hooks';
import { isFinished, type Item, type Message, type MessageItem, type Pending } from '../client';
import { discard, isEnded, regenerate, resend, view } from './chat';
import { copyText } from './clipboard';
import { Icon, Mark } from './icons';
import { Markdown } from './markdown-view';
import { ModelLabel } from './model-label';
import { clock, dateAndTime } from './ui';
import { nameOf, sayError, sayFinish, sayNotice } from './wording';

interface RowProps {
  item: Item;
  /** The text of a reply while it runs; undefined when it does not. */
  running: string | undefined;
}

/** One line of the log; untouched while others change. */
export class Row extends Component<RowProps> {
  override shouldComponentUpdate(next: RowProps): boolean {
    return next.item !== this.props.item || next.running !== this.props.running;
  }

  override render({ item, running }: RowProps) {
    if (item.kind === 'message') return <Line item={item} running={running} />;
    const text = sayNotice(item);
    return text === null ? null : <p class="log-notice">{text}</p>;
  }
}

function Line({ item, running }: { item: MessageItem; running: string | undefined }) {
  const { message } = item;
  if (message.sender?.role === 'SENDER_ROLE_ASSISTANT') return <Reply message={message} running={running} />;
  if (message.sender?.role === 'SENDER_ROLE_USER') {
    return (
      <Own id={item.id} when={message.createTime}>
        {message.text}
      </Own>
    );
  }
  return (
    <article class="message other" data-message={item.id} aria-label={nameOf(message.sender)}>
      <Head name={nameOf(message.sender)} when={message.createTime} />
      <div class="plain">{message.text}</div>
    </article>
  );
}

function Own(props: { id: string; when?: string | undefined; children: ComponentChildren; foot?: ComponentChildren }) {
  return (
    <article class="message own" data-message={props.id} aria-label="You" title={dateAndTime(props.when)}>
      <div class="bubble plain">{props.children}</div>
      {props.foot}
    </article>
  );
}

function Head({ name, model, when }: { name: string; model?: string | undefined; when?: string | undefined }) {
  return (
    <header class="message-head">
      <span class="message-name">{name}</span>
      <ModelLabel id={model} />
      <time class="message-time" dateTime={when} title={dateAndTime(when)}>
        {clock(when)}
      </time>
    </header>
  );
}

function Reply({ message, running }: { message: Message; running: string | undefined }) {
  const finished = isFinished(message);
  const text = finished ? (message.text ?? '') : (running ?? message.text ?? '');
  const finish = sayFinish(message.reply?.finishReason);
  const reason = message.reply?.finishReason ?? '';
  const replaced = Boolean(message.reply?.supersededBy);
  return (
    <article
      class={replaced ? 'message reply superseded' : 'message reply'}
      data-message={message.messageId}
      data-state={finished ? 'finished' : 'running'}
      data-finish={finished ? reason.replace('FINISH_REASON_', '') : undefined}
      aria-label="Assistant"
      aria-busy={!finished}
    >
      <span class="message-mark" aria-hidden="true">
        <Mark />
      </span>
      <div class="message-main">
        <Head name="Assistant" model={message.reply?.model} when={message.createTime} />
        {text === '' && !finished ? <Dots /> : <Markdown text={text} />}
        {finished ? (
          <footer class="message-foot">
            {finish ? <span class="finish">{finish}</span> : null}
            {replaced ? <span class="finish">Replaced by the answer below</span> : null}
            {text === '' ? null : <CopyAnswer text={text} />}
            <Again id={message.messageId ?? ''} />
          </footer>
        ) : null}
      </div>
    </article>
  );
}

/** Only below the last answer. */
function Again({ id }: { id: string }) {
  const [busy, setBusy] = useState(false);
  if (view.value.lastReply !== id || view.value.status.phase !== 'live') return null;
  const again = () => {
    setBusy(true);
    void regenerate().finally(() => setBusy(false));
  };
  return (
    <button type="button" class="foot-button" aria-label="Answer again" disabled={busy} onClick={again}>
      <Icon name="retry" />
      Again
    </button>
  );
}

function CopyAnswer({ text }: { text: string }) {
  const [state, setState] = useState<'idle' | 'done' | 'failed'>('idle');
  const copy = () => {
    void copyText(text).then((done) => {
      setState(done ? 'done' : 'failed');
      setTimeout(() => setState('idle'), 2000);
    });
  };
  return (
    <button type="button" class="foot-button" aria-label="Copy answer" onClick={copy}>
      <Icon name={state === 'done' ? 'check' : 'copy'} />
      {state === 'idle' ? 'Copy' : state === 'done' ? 'Copied' : 'Not copied'}
    </button>
  );
}

export function Dots() {
  return (
    <span class="dots" role="img" aria-label="Writing">
      <span />
      <span />
      <span />
    </span>
  );
}

/** A message on its way. */
export function PendingRow({ one, live }: { one: Pending; live: boolean }) {
  const foot = one.error ? (
    <footer class="pending failed">
      <span role="alert">{sayError(one.error, 'Not sent.')}</span>
      {isEnded.value ? null : (
        <button type="button" class="link" onClick={() => resend(one.clientMessageId)}>
          Send again
        </button>
      )}
      <button type="button" class="link" onClick={() => discard(one.clientMessageId)}>
        Discard
      </button>
    </footer>
  ) : (
    <footer class="pending">{live ? 'Sending…' : 'Will be sent when connected'}</footer>
  );
  return (
    <Own id={one.clientMessageId} foot={foot}>
      {one.text}
    </Own>
  );
}
