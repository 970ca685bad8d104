import { isFinished, seqOf, type Entry, type Message } from './wire';

/** What a person sees as one line of the conversation, at the place `seq` of its log. */
export type Item = MessageItem | NoticeItem;

export interface MessageItem {
  readonly kind: 'message';
  readonly seq: number;
  readonly id: string;
  readonly message: Message;
}

/** An entry that is no message. */
export interface NoticeItem {
  readonly kind: 'notice';
  readonly seq: number;
  readonly id: string;
  readonly entry: Entry;
}

export type Items = readonly Item[];

export function findMessage(items: Items, messageId: string): MessageItem | undefined {
  // Almost always one of the last ones.
  for (let index = items.length - 1; index >= 0; index -= 1) {
    const item = items[index];
    if (item?.kind === 'message' && item.id === messageId) return item;
  }
  return undefined;
}

/** Puts an item at its place; one with the same id is replaced. */
export function place(items: Items, item: Item): Items {
  const same = items.findIndex((other) => other.id === item.id);
  if (same >= 0 && items[same]?.seq === item.seq) return items.with(same, item);
  const rest = same >= 0 ? items.filter((other) => other.id !== item.id) : items;
  let at = rest.length;
  while (at > 0 && (rest[at - 1]?.seq ?? 0) > item.seq) at -= 1;
  return rest.toSpliced(at, 0, item);
}

/** Puts a message at its place, or adds what it says to what is known. */
export function placeMessage(items: Items, incoming: Message): Items {
  const id = incoming.messageId ?? '';
  const known = findMessage(items, id);
  const message = known ? merge(known.message, incoming) : incoming;
  return place(items, { kind: 'message', seq: seqOf(message.seq), id, message });
}

/** Two readings of one message. A finished reply never turns back into a running one, whatever arrives late. */
function merge(known: Message, incoming: Message): Message {
  if (isFinished(known) && !isFinished(incoming)) {
    return { ...incoming, ...known, reply: { ...incoming.reply, ...known.reply } };
  }
  const merged: Message = { ...known, ...incoming };
  if (known.reply || incoming.reply) merged.reply = { ...known.reply, ...incoming.reply };
  return merged;
}
