// Events in, state out: pure, so that every order of arrival can be tested. What it relies on is the contract alone:
// entries are numbered without gaps, deltas carry offsets, the terminal entry is authoritative.
import { findMessage, place, placeMessage, type Items } from './items';
import type { Action, ConversationState, RunningReply } from './state';
import { utf8Prefix } from './utf8';
import {
  isFinished,
  seqOf,
  type Entry,
  type Message,
  type Opened,
  type ReplyDelta,
  type ReplyFinished,
  type ReplySnapshot,
  type Sender,
  type ServerEvent,
  type Session,
} from './wire';

/** Typing lapses after this time unless refreshed (contract). */
const TYPING_MS = 10_000;

export function reduce(state: ConversationState, action: Action): ConversationState {
  switch (action.type) {
    case 'event':
      return settle(onEvent(state, action.event, action.now));
    case 'session':
      return { ...state, session: action.session, head: Math.max(state.head, seqOf(action.session.head)) };
    case 'history':
      return settle({
        ...addMessages(state, action.messages),
        older: action.next === '' ? { state: 'none' } : { state: 'more', token: action.next },
      });
    case 'gap_page': {
      const filled = action.last && state.gap === action.gap;
      return settle({ ...addMessages(state, action.messages), gap: filled ? null : state.gap });
    }
    case 'queued':
      return queue(state, action.clientMessageId, action.text);
    case 'acked':
      return settle(updatePending(state, action.clientMessageId, { seq: action.seq, error: null }));
    case 'failed':
      return updatePending(state, action.clientMessageId, { error: action.error });
    case 'discarded':
      return { ...state, pending: state.pending.filter((one) => one.clientMessageId !== action.clientMessageId) };
    case 'tick': {
      const typing = state.typing.filter((one) => one.until > action.now);
      return typing.length === state.typing.length ? state : { ...state, typing };
    }
  }
}

function onEvent(state: ConversationState, event: ServerEvent, now: number): ConversationState {
  if (event.opened) return onOpened(state, event.opened);
  if (event.entry) return onEntry(state, event.entry);
  if (event.replyDelta) return onDelta(state, event.replyDelta);
  if (event.replySnapshot) return onSnapshot(state, event.replySnapshot);
  if (event.caughtUp) return seqOf(event.caughtUp.seq) > state.head ? { ...state, broken: true } : state;
  if (event.help) return state.session ? { ...state, session: { ...state.session, help: event.help } } : state;
  if (event.presence) return { ...state, participants: event.presence.participants ?? [] };
  if (event.typing) {
    const sender = event.typing.sender ?? {};
    if (isSame(sender, state.you)) return state;
    const others = state.typing.filter((one) => !isSame(one.sender, sender));
    return { ...state, typing: event.typing.active ? [...others, { sender, until: now + TYPING_MS }] : others };
  }
  return state;
}

function onOpened(state: ConversationState, opened: Opened): ConversationState {
  const head = seqOf(opened.head);
  const attached: ConversationState = {
    ...state,
    session: opened.session ?? state.session,
    you: opened.you ?? state.you,
    typing: [],
    broken: false,
  };
  if (opened.verdict === 'RESUME_VERDICT_REPLAYED') return attached;
  if (state.session === null) return { ...attached, head };
  // Entries after ours will not come. A reply that was running has its place before them and may have ended since.
  const oldest = Math.min(state.gap?.after ?? state.head, firstUnfinished(state.items) - 1);
  return { ...attached, head: Math.max(head, state.head), gap: { after: Math.max(0, oldest) } };
}

function onEntry(state: ConversationState, entry: Entry): ConversationState {
  const seq = seqOf(entry.seq);
  if (seq <= state.head) return state;
  if (seq > state.head + 1) return { ...state, broken: true };
  const next: ConversationState = { ...state, head: seq, session: afterEntry(state.session, entry) };
  if (entry.message) {
    const message: Message = { seq: String(seq), ...entry.message };
    const typing = state.typing.filter((one) => !isSame(one.sender, message.sender ?? {}));
    return { ...next, typing, items: placeMessage(state.items, message) };
  }
  if (entry.replyStarted) {
    const started = entry.replyStarted;
    const id = started.messageId ?? '';
    const reply = { model: started.model ?? '', answers: started.answers ?? [], supersedes: started.supersedes ?? '' };
    const at = entry.createTime === undefined ? {} : { createTime: entry.createTime };
    const message = assistant(id, seq, { ...at, reply });
    const items = supersede(placeMessage(state.items, message), started.supersedes, id);
    return { ...next, items, running: state.running?.messageId === id ? state.running : freshReply(id, seq) };
  }
  if (entry.replyFinished) return onFinished(next, entry.replyFinished, entry);
  return { ...next, items: place(state.items, { kind: 'notice', seq, id: `entry-${seq}`, entry }) };
}

function onFinished(state: ConversationState, finished: ReplyFinished, entry: Entry): ConversationState {
  const id = finished.messageId ?? '';
  const reply: Message['reply'] = {
    finishReason: finished.finishReason ?? 'FINISH_REASON_UNSPECIFIED',
    finishedSeq: entry.seq ?? '0',
    ...(finished.model === undefined ? {} : { model: finished.model }),
    ...(finished.usage === undefined ? {} : { usage: finished.usage }),
    ...(entry.createTime === undefined ? {} : { finishTime: entry.createTime }),
  };
  const message = assistant(id, seqOf(finished.startedSeq), { text: finished.text ?? '', reply });
  const running = state.running?.messageId === id ? null : state.running;
  return { ...state, running, items: placeMessage(state.items, message) };
}

function onDelta(state: ConversationState, delta: ReplyDelta): ConversationState {
  const id = delta.messageId ?? '';
  const offset = delta.offset ?? 0;
  const nextOffset = delta.nextOffset ?? 0;
  const current = attach(state, id, seqOf(delta.startedSeq));
  if (!current) return state;
  const { running } = current;
  if (nextOffset <= running.nextOffset) return current.state;
  if (offset !== running.nextOffset) return breakReply(current.state, running);
  return { ...current.state, running: { ...running, text: running.text + (delta.text ?? ''), nextOffset } };
}

function onSnapshot(state: ConversationState, snapshot: ReplySnapshot): ConversationState {
  const id = snapshot.messageId ?? '';
  const current = attach(state, id, seqOf(snapshot.startedSeq), snapshot.model);
  if (!current) return state;
  const { running } = current;
  // What lies before the offset must be what the server sent; behind a hole only the part before it is.
  const before = utf8Prefix(running.text, snapshot.offset ?? 0);
  if (before === undefined) return breakReply(current.state, running);
  const text = before + (snapshot.text ?? '');
  return { ...current.state, running: { ...running, text, nextOffset: snapshot.nextOffset ?? 0, broken: false } };
}

/** The reply a delta or snapshot belongs to, with a place in the conversation; nothing when it is over. */
function attach(
  state: ConversationState,
  id: string,
  startedSeq: number,
  model?: string,
): { state: ConversationState; running: RunningReply } | undefined {
  const item = findMessage(state.items, id);
  if (item && isFinished(item.message)) return undefined;
  if (state.running && state.running.messageId !== id && state.running.startedSeq > startedSeq) return undefined;
  const running = state.running?.messageId === id ? state.running : freshReply(id, startedSeq);
  const known = item !== undefined && (model === undefined || item.message.reply?.model !== undefined);
  const items = known
    ? state.items
    : placeMessage(state.items, assistant(id, startedSeq, { reply: model === undefined ? {} : { model } }));
  return { state: { ...state, running, items }, running };
}

function breakReply(state: ConversationState, running: RunningReply): ConversationState {
  return { ...state, broken: true, running: { ...running, broken: true } };
}

function freshReply(messageId: string, startedSeq: number): RunningReply {
  return { messageId, startedSeq, text: '', nextOffset: 0, broken: false };
}

function assistant(messageId: string, seq: number, rest: Message): Message {
  return { messageId, seq: String(seq), sender: { role: 'SENDER_ROLE_ASSISTANT' }, ...rest };
}

function supersede(items: Items, superseded: string | undefined, by: string): Items {
  const old = superseded ? findMessage(items, superseded) : undefined;
  if (!old) return items;
  return placeMessage(items, { ...old.message, reply: { ...old.message.reply, supersededBy: by } });
}

function addMessages(state: ConversationState, messages: readonly Message[]): ConversationState {
  let { items, running } = state;
  for (const message of messages) {
    items = placeMessage(items, message);
    if (running && running.messageId === message.messageId && isFinished(message)) running = null;
  }
  return { ...state, items, running };
}

function firstUnfinished(items: Items): number {
  const open = items.find((item) => item.kind === 'message' && isReply(item.message) && !isFinished(item.message));
  return open?.seq ?? Number.POSITIVE_INFINITY;
}

function isReply(message: Message): boolean {
  return message.sender?.role === 'SENDER_ROLE_ASSISTANT';
}

/** The session after an entry, so that status and name follow without another call. */
function afterEntry(session: Session | null, entry: Entry): Session | null {
  if (!session) return null;
  const next: Session = { ...session, head: entry.seq ?? '0' };
  if (entry.createTime !== undefined) next.lastActivityTime = entry.createTime;
  if (entry.message || entry.replyStarted) next.messageCount = (session.messageCount ?? 0) + 1;
  if (entry.modelSelected?.model) next.model = entry.modelSelected.model;
  if (entry.renamed) next.name = entry.renamed.name ?? '';
  if (entry.ended || entry.erased) next.status = 'SESSION_STATUS_ENDED';
  if (entry.ended && entry.createTime !== undefined) next.endTime = entry.createTime;
  if (entry.reopened) {
    next.status = 'SESSION_STATUS_ACTIVE';
    next.responder = 'RESPONDER_ASSISTANT';
    delete next.endTime;
    delete next.heldBy;
    delete next.help;
  }
  if (entry.helpRequested) {
    const since = entry.createTime === undefined ? {} : { requestTime: entry.createTime };
    next.help = { state: 'HELP_STATE_REQUESTED', ...since };
  }
  if (entry.takenOver) {
    next.responder = 'RESPONDER_ADMIN';
    next.heldBy = entry.takenOver.admin ?? {};
    next.help = { state: 'HELP_STATE_ASSIGNED' };
  }
  if (entry.released) {
    next.responder = 'RESPONDER_ASSISTANT';
    delete next.heldBy;
    // The place in the queue follows by itself.
    next.help = { state: entry.released.lapsed ? 'HELP_STATE_REQUESTED' : 'HELP_STATE_RELEASED' };
  }
  return next;
}

function queue(state: ConversationState, clientMessageId: string, text: string): ConversationState {
  if (state.pending.some((one) => one.clientMessageId === clientMessageId)) {
    return updatePending(state, clientMessageId, { error: null });
  }
  return settle({ ...state, pending: [...state.pending, { clientMessageId, text, seq: 0, error: null }] });
}

function updatePending(
  state: ConversationState,
  clientMessageId: string,
  change: Partial<ConversationState['pending'][number]>,
): ConversationState {
  const pending = state.pending.map((one) => (one.clientMessageId === clientMessageId ? { ...one, ...change } : one));
  return { ...state, pending };
}

/** Takes away the pending messages that are in the log now. */
function settle(state: ConversationState): ConversationState {
  if (state.pending.length === 0) return state;
  const complete = state.older.state !== 'unknown' && state.gap === null;
  const pending = state.pending.filter((one) => {
    // Acknowledged and before our head, but on no loaded page: it is further up in history.
    if (one.seq > 0 && one.seq <= state.head && complete) return false;
    return !state.items.some(
      (item) =>
        item.kind === 'message' &&
        item.message.clientMessageId === one.clientMessageId &&
        (state.you === null || isSame(item.message.sender ?? {}, state.you)),
    );
  });
  return pending.length === state.pending.length ? state : { ...state, pending };
}

function isSame(left: Sender, right: Sender | null): boolean {
  return right !== null && left.userId === right.userId && left.role === right.role;
}
