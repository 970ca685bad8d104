import { TokenForm } from './signin';
import { expiring } from './auth';
import { isEnded, reconnect, view } from './chat';
import { clock } from './ui';
import { sayClosed } from './wording';

/** What stands above the log and asks for something to be done. */
export function Notices() {
  const { status } = view.value;
  const expiry = expiring.value;
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
      {expiry !== null ? (
        <div class="notice" role="alert">
          <span>Your access ends at {clock(new Date(expiry).toISOString())}. Paste a new token to stay connected.</span>
          <TokenForm label="New token or link" action="Use it" />
        </div>
      ) : null}
    </>
  );
}
