import { useEffect, useRef } from 'preact/hooks';
import { sessionId } from './chat';
import { Rename } from './rename';
import { active, choose, doomed, end, erase, question, replace, titleOf } from './sessions';
import { Sharing } from './sharing';

/** What is asked, and what happens then. */
const WORDS = {
  end: {
    title: 'End this conversation?',
    text: 'It stays in the list and can still be read, but takes no more messages.',
    action: 'End conversation',
    act: end,
  },
  replace: {
    title: 'End the current conversation and start a new one?',
    text: 'You can have one open conversation at a time. The current one stays in the list and can still be read.',
    action: 'End it and start a new one',
    act: () => replace(),
  },
  delete: {
    title: 'Delete this conversation?',
    text: 'Everything in it is destroyed, for everybody and for good. This cannot be undone.',
    action: 'Delete for good',
    act: erase,
  },
} as const;

export function Dialogs() {
  const asked = question.value;
  const ref = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (asked !== null && !ref.current?.open) ref.current?.showModal();
    if (asked === null) ref.current?.close();
  }, [asked]);
  if (asked === 'rename' || asked === 'share') {
    return (
      <dialog ref={ref} class="dialog" aria-labelledby="question" onClose={cancel}>
        {asked === 'rename' ? <Rename onCancel={cancel} /> : <Sharing onCancel={cancel} />}
      </dialog>
    );
  }
  const words = WORDS[asked ?? 'end'];
  return (
    <dialog ref={ref} class="dialog" aria-labelledby="question" onClose={cancel}>
      <h2 id="question">{words.title}</h2>
      <p>{words.text}</p>
      {asked === 'delete' && doomed.value ? <p class="muted">{titleOf(doomed.value)}</p> : null}
      <OpenOne />
      <div class="dialog-actions">
        <button type="button" class="button quiet" onClick={cancel}>
          Cancel
        </button>
        <button type="button" class="button primary" onClick={() => void words.act()}>
          {words.action}
        </button>
      </div>
    </dialog>
  );
}

/** The way to the open conversation, when another one is on the screen. */
function OpenOne() {
  const open = active.value;
  if (question.value !== 'replace' || !open?.sessionId || open.sessionId === sessionId.value) return null;
  const go = () => {
    cancel();
    choose(open);
  };
  return (
    <p>
      <button type="button" class="link" onClick={go}>
        Go to “{titleOf(open)}” instead
      </button>
    </p>
  );
}

function cancel(): void {
  question.value = null;
  doomed.value = null;
}
