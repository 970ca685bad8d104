// Everything the page says about states and failures, in one place.
import { ChatboxError, durationMs, type FinishReason, type LinkStatus, type NoticeItem, type Sender, type Session } from '../client';

export function sayError(error: unknown, what: string): string {
  const failure = ChatboxError.from(error);
  const wait = failure.retryAfterMs === undefined ? '' : ` Try again in ${seconds(failure.retryAfterMs)}.`;
  switch (failure.code) {
    case 'UNAVAILABLE':
    case 'DEADLINE_EXCEEDED':
      return `${what} The server cannot be reached.${wait}`;
    case 'RESOURCE_EXHAUSTED':
      return `${what} Too much at once.${wait || ' Try again in a moment.'}`;
    case 'FAILED_PRECONDITION':
      return failure.reason === 'SESSION_ENDED'
        ? `${what} The conversation had ended.`
        : `${what} The conversation does not allow it now.`;
    case 'INVALID_ARGUMENT':
      return `${what} ${failure.fields[0]?.description ?? 'It was not accepted.'}`;
    case 'UNIMPLEMENTED':
      return `${what} This server cannot do that yet.`;
    default:
      return `${what} Something went wrong (${failure.reason || failure.code}).`;
  }
}

export function seconds(ms: number): string {
  return `${Math.max(1, Math.ceil(ms / 1000))} s`;
}

/** How a reply ended, when it did not simply end. */
export function sayFinish(reason: FinishReason | undefined): string | null {
  switch (reason) {
    case undefined:
    case 'FINISH_REASON_UNSPECIFIED':
    case 'FINISH_REASON_STOP':
      return null;
    case 'FINISH_REASON_LENGTH':
      return 'Cut off: the model reached its output limit';
    case 'FINISH_REASON_CANCELLED':
      return 'Stopped';
    case 'FINISH_REASON_SUPERSEDED':
      return 'Ended: a person took over';
    case 'FINISH_REASON_INTERRUPTED':
      return 'Interrupted: the server went away';
    case 'FINISH_REASON_PROVIDER_ERROR':
      return 'The provider failed';
    case 'FINISH_REASON_FILTERED':
      return 'Withheld by a filter';
    case 'FINISH_REASON_TIMEOUT':
      return 'The provider was too slow';
    case 'FINISH_REASON_BUDGET_EXHAUSTED':
      return 'The budget of this day is used up';
  }
}

export function sayNotice(item: NoticeItem): string | null {
  const { entry } = item;
  if (entry.modelSelected) return `${entry.modelSelected.model ?? 'Another model'} answers from here on`;
  if (entry.helpRequested) return 'You asked for a person';
  if (entry.takenOver) return `${nameOf(entry.takenOver.admin)} joined the conversation`;
  if (entry.released) {
    return entry.released.lapsed ? 'The person is gone; you are in the queue again' : 'The assistant answers again';
  }
  // A name that was made by itself is nothing anybody did.
  if (entry.renamed) return entry.renamed.automatic ? null : `Renamed to “${entry.renamed.name ?? ''}”`;
  if (entry.shared) return entry.shared.revoked ? 'A share link was revoked' : 'A share link was made';
  if (entry.reopened) return 'The conversation goes on';
  if (entry.erased) return 'The content was destroyed';
  return null;
}

export function nameOf(sender: Sender | undefined): string {
  if (sender?.displayName) return sender.displayName;
  switch (sender?.role) {
    case 'SENDER_ROLE_ASSISTANT':
      return 'Assistant';
    case 'SENDER_ROLE_ADMIN':
      return 'A person of the team';
    case 'SENDER_ROLE_SYSTEM':
      return 'Chatbox';
    default:
      return sender?.userId ?? 'Somebody';
  }
}

/** Where a request for a person stands, while there is something to say. */
export function sayHelp(session: Session | null): string | null {
  const help = session?.help;
  if (session === null || session.status === 'SESSION_STATUS_ENDED') return null;
  if (help?.state === 'HELP_STATE_ASSIGNED') return `You are talking to ${nameOf(session.heldBy)}. The assistant is silent.`;
  if (help?.state !== 'HELP_STATE_REQUESTED') return null;
  const place = help.position ? ` You are number ${help.position} in the queue` : '';
  const wait = durationMs(help.estimatedWait);
  const minutes = wait === undefined ? '' : `, about ${Math.max(1, Math.round(wait / 60_000))} min`;
  return `You asked for a person.${place === '' ? '' : `${place}${minutes}.`} The assistant goes on answering until then.`;
}

export interface StatusText {
  readonly tone: 'good' | 'busy' | 'bad';
  readonly text: string;
  /** For screen readers, without a countdown that would be read again and again. */
  readonly spoken: string;
}

export function sayStatus(status: LinkStatus, now: number): StatusText {
  switch (status.phase) {
    case 'live':
      return { tone: 'good', text: 'Connected', spoken: 'Connected' };
    case 'idle':
    case 'connecting':
      return { tone: 'busy', text: 'Connecting…', spoken: 'Connecting' };
    case 'waiting': {
      const what = status.cause.reason === 'OFFLINE' ? 'Offline' : 'Connection lost';
      const wait = status.retryAt - now;
      const text = wait > 1500 ? `${what} · retry in ${seconds(wait)}` : `${what} · retrying…`;
      return { tone: 'bad', text, spoken: `${what}, trying again` };
    }
    case 'closed':
      return { tone: 'bad', text: 'Disconnected', spoken: 'Disconnected' };
  }
}

/** Why a connection ended for good. */
export function sayClosed(cause: ChatboxError): string {
  if (cause.closeCode === 4110 || cause.reason === 'TOO_MANY_CONNECTIONS') {
    return 'You have too many windows open. Close one and connect again.';
  }
  if (cause.closeCode === 1000) return 'The server closed this connection.';
  return sayError(cause, 'The connection ended.');
}
