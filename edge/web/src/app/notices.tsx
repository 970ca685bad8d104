import { TokenForm } from './signin';
import { expiring } from './auth';
import { isEnded, reconnect, session, view } from './chat';
import { clock } from './ui';
import { sayClosed, sayHelp } from './wording';

/** What stands above the log and asks for something to be done. */
export function Notices() {
  const { status } = view.value;
  const expiry = expiring.value;
  const help = sayHelp(session.value);
  return (
    <>
      {status.phase === 'closed' && status.cause && !isEnded.value ? (
        <div class="notice bad" role="alert">
          <span>{sayClosed(status.cause)}</span>
          <button type="button" class="button" onClick={reconnect}>
            Connect again
          </button>
        </div>
      ) : null}
      {/* Always there, so that what it says is announced when it changes. */}
      <div class={help === null ? 'help-notice' : 'notice help-notice'} role="status">
        {help === null ? null : <span>{help}</span>}
      </div>
      {expiry !== null ? (
        <div class="notice" role="alert">
          <span>Your access ends at {clock(new Date(expiry).toISOString())}. Paste a new token to stay connected.</span>
          <TokenForm label="New token or link" action="Use it" />
        </div>
      ) : null}
    </>
  );
}
