import { useEffect, useRef, useState } from 'preact/hooks';
import { session } from './chat';
import { rename, titleOf } from './sessions';

/** The form that gives the conversation another name. */
export function Rename({ onCancel }: { onCancel(): void }) {
  const [name, setName] = useState(session.value ? titleOf(session.value) : '');
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => input.current?.select(), []);
  const wanted = name.trim();
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault();
        if (wanted !== '') void rename(wanted);
      }}
    >
      <h2 id="question">Rename this conversation</h2>
      <input
        ref={input}
        class="dialog-input"
        aria-label="Name"
        maxLength={100}
        value={name}
        onInput={(event) => setName(event.currentTarget.value)}
      />
      <div class="dialog-actions">
        <button type="button" class="button quiet" onClick={onCancel}>
          Cancel
        </button>
        <button type="submit" class="button primary" disabled={wanted === ''}>
          Rename
        </button>
      </div>
    </form>
  );
}
