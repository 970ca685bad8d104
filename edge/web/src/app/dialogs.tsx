import { useEffect, useRef } from 'preact/hooks';
import { sessionId } from './chat';
import { Rename } from './rename';
import { Sharing } from './sharing';
import { active, choose, end, question, replace, titleOf } from './sessions';

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
  return (
    <dialog ref={ref} class="dialog" aria-labelledby="question" onClose={cancel}>
      <h2 id="question">
        {asked === 'replace' ? 'End the current conversation and start a new one?' : 'End this conversation?'}
      </h2>
      <p>
        {asked === 'replace'
          ? 'You can have one open conversation at a time. The current one stays in the list and can still be read.'
          : 'It stays in the list and can still be read, but takes no more messages.'}
      </p>
      <OpenOne />
      <div class="dialog-actions">
        <button type="button" class="button quiet" onClick={cancel}>
          Cancel
        </button>
        <button type="button" class="button primary" onClick={() => void (asked === 'replace' ? replace() : end())}>
          {asked === 'replace' ? 'End it and start a new one' : 'End conversation'}
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
}
