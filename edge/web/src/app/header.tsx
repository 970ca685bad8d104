import { useEffect, useState } from 'preact/hooks';
import type { Session } from '../client';
import { isEnded, reconnect, requestHelp, selectModel, session, view } from './chat';
import { Icon } from './icons';
import { ModelLabel } from './model-label';
import { busy, models, question, titleOf } from './sessions';
import { drawerOpen, isPhone } from './ui';
import { sayStatus } from './wording';

export function Header() {
  const shown = session.value;
  return (
    <header class="header">
      {isPhone.value ? (
        <button
          type="button"
          id="open-sidebar"
          class="icon-button"
          aria-label="Conversations"
          aria-expanded={drawerOpen.value}
          aria-controls="sidebar"
          onClick={() => {
            drawerOpen.value = true;
          }}
        >
          <Icon name="menu" />
        </button>
      ) : null}
      <div class="heading">
        <h1>{shown ? titleOf(shown) : 'Chatbox'}</h1>
        {shown?.model ? (
          <p class="model">
            <ModelPicker id={shown.model} />
          </p>
        ) : null}
      </div>
      {isEnded.value ? <span class="status ended">Ended</span> : <Status />}
      {shown && !isEnded.value && mayAsk(shown) ? <AskForPerson /> : null}
      {shown && (shown.messageCount ?? 0) > 0 ? (
        <>
          <HeaderButton icon="pencil" label="Rename this conversation" ask="rename" />
          <HeaderButton icon="share" label="Share this conversation" ask="share" />
        </>
      ) : null}
      {shown && !isEnded.value && (shown.messageCount ?? 0) > 0 ? (
        <button
          type="button"
          class="icon-button"
          aria-label="End this conversation"
          title="End this conversation"
          disabled={busy.value}
          onClick={() => {
            question.value = 'end';
          }}
        >
          <Icon name="end" />
        </button>
      ) : null}
    </header>
  );
}

function HeaderButton({ icon, label, ask }: { icon: 'pencil' | 'share'; label: string; ask: 'rename' | 'share' }) {
  return (
    <button
      type="button"
      class="icon-button"
      aria-label={label}
      title={label}
      onClick={() => {
        question.value = ask;
      }}
    >
      <Icon name={icon} />
    </button>
  );
}

/** Not while a person is asked for already, or there. */
function mayAsk({ help }: Session): boolean {
  return help?.state !== 'HELP_STATE_REQUESTED' && help?.state !== 'HELP_STATE_ASSIGNED';
}

function AskForPerson() {
  const [asking, setAsking] = useState(false);
  const ask = () => {
    setAsking(true);
    void requestHelp().then(() => setAsking(false));
    document.getElementById('message')?.focus();
  };
  return (
    <button
      type="button"
      class="icon-button"
      aria-label="Talk to a person"
      title="Talk to a person"
      disabled={asking || view.value.status.phase !== 'live'}
      onClick={ask}
    >
      <Icon name="person" />
    </button>
  );
}

/** Another model can answer from the next message on, where there is a choice. */
function ModelPicker({ id }: { id: string }) {
  if (isEnded.value || models.value.length < 2) return <ModelLabel id={id} />;
  const known = models.value.some((model) => model.id === id);
  return (
    <select
      class="model-picker"
      aria-label="Model"
      value={id}
      disabled={view.value.status.phase !== 'live'}
      onChange={(event) => void selectModel(event.currentTarget.value)}
    >
      {known ? null : <option value={id}>{id}</option>}
      {models.value.map((model) => (
        <option key={model.id} value={model.id}>
          {model.name || model.id}
        </option>
      ))}
    </select>
  );
}

function Status() {
  const { status } = view.value;
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    setNow(Date.now());
    if (status.phase !== 'waiting') return;
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [status]);
  const { tone, text } = sayStatus(status, now);
  return (
    <span class={`status ${tone}`} data-phase={status.phase}>
      <span class="dot" aria-hidden="true" />
      <span class="status-text">{text}</span>
      {status.phase === 'waiting' ? (
        <button type="button" class="link" onClick={reconnect}>
          Retry now
        </button>
      ) : null}
    </span>
  );
}
