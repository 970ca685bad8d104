import { useState } from 'preact/hooks';
import { adopt, extractToken, refusal } from './auth';
import { Mark } from './icons';

/** What somebody without a token sees. */
export function SignIn() {
  return (
    <main class="signin">
      <div class="card">
        <Mark />
        <h1>Chatbox</h1>
        {refusal.value === null ? (
          <p>This page needs a personal link. Open the one you were given, and you are in.</p>
        ) : (
          <p class="refusal" role="alert">
            {refusal.value} Open a new link to go on; nothing of your conversations is lost.
          </p>
        )}
        <p class="muted">
          Running it yourself? <code>chatbox dev</code> prints such a link, and <code>chatbox token</code> prints a token
          that you can paste here.
        </p>
        <TokenForm label="Token or link" action="Continue" />
      </div>
    </main>
  );
}

export function TokenForm({ label, action }: { label: string; action: string }) {
  const [text, setText] = useState('');
  const [wrong, setWrong] = useState(false);
  const submit = (event: Event) => {
    event.preventDefault();
    const token = extractToken(text);
    if (token === null) setWrong(true);
    else adopt(token);
  };
  return (
    <form class="token-form" onSubmit={submit}>
      <label for="token">{label}</label>
      <input
        id="token"
        type="password"
        autocomplete="off"
        spellcheck={false}
        value={text}
        aria-invalid={wrong}
        aria-describedby={wrong ? 'token-wrong' : undefined}
        onInput={(event) => {
          setText(event.currentTarget.value);
          setWrong(false);
        }}
      />
      {wrong ? (
        <p id="token-wrong" class="wrong" role="alert">
          That does not look like a token.
        </p>
      ) : null}
      <button type="submit" class="button primary">
        {action}
      </button>
    </form>
  );
}
