export { Api, type ApiOptions, type MessagesQuery } from './api';
export { Backoff } from './backoff';
export { Conversation, randomId, type ConversationOptions, type Outbox, type Unsent } from './conversation';
export { ChatboxError, mayResume, type ErrorClass } from './errors';
export type { Item, Items, MessageItem, NoticeItem } from './items';
export { Link, type LinkOptions, type LinkStatus, type Socket, type Timing, type TokenNeed } from './link';
export { reduce } from './reducer';
export { EMPTY, resumeFrom, type Action, type ConversationState, type Pending, type RunningReply } from './state';
export { utf8Length } from './utf8';
export {
  durationMs,
  isFinished,
  seqOf,
  type Entry,
  type FinishReason,
  type Frame,
  type Message,
  type Model,
  type Sender,
  type ServerEvent,
  type Session,
} from './wire';
