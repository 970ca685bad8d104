import type { ChatboxError } from './errors';
import type { Items } from './items';
import type { Message, Open, Participant, Sender, ServerEvent, Session } from './wire';

/** A reply while it is generated. Its text is provisional until the terminal entry. */
export interface RunningReply {
  readonly messageId: string;
  readonly startedSeq: number;
  readonly text: string;
  /** The next_offset of the last delta or snapshot, echoed and never computed. */
  readonly nextOffset: number;
  /** A piece is missing: no delta is taken until a snapshot repairs it. */
  readonly broken: boolean;
}

/** A message of this client that is not in the log yet, as far as it knows. */
export interface Pending {
  readonly clientMessageId: string;
  readonly text: string;
  /** Seq of its entry once acknowledged, 0 before. */
  readonly seq: number;
  /** Why it could not be sent; it is kept until it is sent again or discarded. */
  readonly error: ChatboxError | null;
}

export interface TypingSender {
  readonly sender: Sender;
  readonly until: number;
}

/** How much older history there is. */
export type Older = { readonly state: 'unknown' } | { readonly state: 'more'; readonly token: string } | { readonly state: 'none' };

/** Everything a page shows of one conversation. A value: it is replaced, never changed. */
export interface ConversationState {
  readonly session: Session | null;
  readonly you: Sender | null;
  /** Seq of the last entry that was taken in; what a resume starts after. */
  readonly head: number;
  readonly items: Items;
  readonly running: RunningReply | null;
  readonly pending: readonly Pending[];
  readonly typing: readonly TypingSender[];
  readonly participants: readonly Participant[];
  readonly older: Older;
  /** Messages with a larger seq are to be fetched; a new object for every gap. */
  readonly gap: { readonly after: number } | null;
  /** Something is missing that only a resume can bring. */
  readonly broken: boolean;
}

export type Action =
  | { readonly type: 'event'; readonly event: ServerEvent; readonly now: number }
  | { readonly type: 'session'; readonly session: Session }
  | { readonly type: 'history'; readonly messages: readonly Message[]; readonly next: string }
  | { readonly type: 'gap_page'; readonly messages: readonly Message[]; readonly gap: object; readonly last: boolean }
  | { readonly type: 'queued'; readonly clientMessageId: string; readonly text: string }
  | { readonly type: 'acked'; readonly clientMessageId: string; readonly seq: number }
  | { readonly type: 'failed'; readonly clientMessageId: string; readonly error: ChatboxError }
  | { readonly type: 'discarded'; readonly clientMessageId: string }
  | { readonly type: 'tick'; readonly now: number };

export const EMPTY: ConversationState = {
  session: null,
  you: null,
  head: 0,
  items: [],
  running: null,
  pending: [],
  typing: [],
  participants: [],
  older: { state: 'unknown' },
  gap: null,
  broken: false,
};

/** The open frame that continues from a state. */
export function resumeFrom(state: ConversationState): Open {
  const sessionId = state.session?.sessionId;
  if (sessionId === undefined) return {};
  const open: Open = { sessionId, afterSeq: String(state.head) };
  const { running } = state;
  if (running && !running.broken && running.nextOffset > 0) {
    open.reply = { messageId: running.messageId, nextOffset: running.nextOffset };
  }
  return open;
}
