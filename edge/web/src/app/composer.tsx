import { useEffect, useRef, useState } from 'preact/hooks';
import { utf8Length } from '../client';
import { sessionInAddress } from './address';
import { draft, isEnded, keepDraft, send, sessionId, stop, typing, view } from './chat';
import { Icon } from './icons';
import { isPhone } from './ui';

/** The contract's limit of a message. */
const MAX_BYTES = 32 * 1024;
/** From here on the space that is left is shown. */
const NEARLY_FULL = MAX_BYTES * 0.9;
/** Typing lapses after 10 s on the other side. */
const TYPING_EVERY_MS = 5_000;

export function Composer() {
  const { runningReply } = view.value;
  const id = sessionId.value || sessionInAddress();
  const [text, setText] = useState('');
  const box = useRef<HTMLTextAreaElement>(null);
  const stopping = useStopping(runningReply);
  const notify = useTyping();

  // The draft belongs to the session, whose id may be known a moment later.
  useEffect(() => {
    if (id === '') return;
    if (text === '') setText(draft(id));
    else keepDraft(id, text);
  }, [id]);
  useEffect(() => {
    if (!isPhone.value) box.current?.focus();
  }, []);
  useEffect(() => fit(box.current), [text]);

  const change = (value: string) => {
    setText(value);
    if (id !== '') keepDraft(id, value);
    notify(value !== '');
  };
  const bytes = utf8Length(text);
  const sendable = text.trim() !== '' && bytes <= MAX_BYTES && !isEnded.value;
  const submit = () => {
    if (!sendable) return;
    send(text);
    change('');
    box.current?.focus();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    // Enter while composing chooses a word in many scripts.
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  };

  if (isEnded.value) return null;
  return (
    <div class="composer">
      <div class="composer-box">
        <textarea
          id="message"
          ref={box}
          rows={1}
          value={text}
          placeholder="Write a message"
          aria-label="Message"
          aria-describedby="composer-hint"
          enterkeyhint="send"
          onInput={(event) => change(event.currentTarget.value)}
          onKeyDown={onKeyDown}
        />
        {runningReply === null ? null : (
          <button
            type="button"
            class="round stop"
            aria-label="Stop the answer"
            title="Stop the answer"
            disabled={stopping.is}
            onClick={stopping.ask}
          >
            <Icon name="stop" />
          </button>
        )}
        <button type="button" class="round send" aria-label="Send" title="Send" disabled={!sendable} onClick={submit}>
          <Icon name="send" />
        </button>
      </div>
      <p id="composer-hint" class="composer-hint">
        {bytes > NEARLY_FULL ? (
          <span class={bytes > MAX_BYTES ? 'over' : ''}>{`${MAX_BYTES - bytes} bytes left`}</span>
        ) : (
          <>
            <kbd>Enter</kbd> sends, <kbd>Shift</kbd>+<kbd>Enter</kbd> starts a new line
          </>
        )}
      </p>
    </div>
  );
}

/** As tall as its text, up to the limit in the style sheet. */
function fit(area: HTMLTextAreaElement | null): void {
  if (!area || CSS.supports('field-sizing', 'content')) return;
  area.style.height = 'auto';
  area.style.height = `${area.scrollHeight}px`;
}

function useStopping(runningReply: string | null) {
  const [asked, setAsked] = useState<string | null>(null);
  return {
    is: asked !== null && asked === runningReply,
    ask: () => {
      setAsked(runningReply);
      void stop().then(() => setAsked(null));
      document.getElementById('message')?.focus();
    },
  };
}

function useTyping(): (active: boolean) => void {
  const last = useRef({ active: false, at: 0 });
  return (active) => {
    const now = Date.now();
    if (active === last.current.active && (!active || now - last.current.at < TYPING_EVERY_MS)) return;
    last.current = { active, at: now };
    typing(active);
  };
}
