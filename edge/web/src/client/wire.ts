// The frames, events and messages of the contract in their canonical JSON form. On this wire fields with their default
// value are left out and 64-bit numbers are strings: read them with the functions below only.
import type {
  ChatRequestJson,
  ChatRequest_OpenJson,
  ChatRequest_ReplyPositionJson,
  ChatResponseJson,
  ChatResponse_AckJson,
  ChatResponse_OpenedJson,
  ChatResponse_ParticipantJson,
  ChatResponse_ReplyDeltaJson,
  ChatResponse_ReplySnapshotJson,
} from './gen/chatbox/v1/chat_pb';
import type { ListMessagesResponseJson, ListSessionsResponseJson, ModelJson } from './gen/chatbox/v1/chat_core_pb';
import type { ErrorCodeJson, ErrorJson } from './gen/chatbox/v1/error_pb';
import type {
  EntryJson,
  Entry_ReplyFinishedJson,
  FinishReasonJson,
  MessageJson,
  SenderJson,
  SessionJson,
} from './gen/chatbox/v1/session_pb';

export type Frame = ChatRequestJson;
export type Open = ChatRequest_OpenJson;
export type ReplyPosition = ChatRequest_ReplyPositionJson;
export type ServerEvent = ChatResponseJson;
export type Ack = ChatResponse_AckJson;
export type Opened = ChatResponse_OpenedJson;
export type Participant = ChatResponse_ParticipantJson;
export type ReplyDelta = ChatResponse_ReplyDeltaJson;
export type ReplySnapshot = ChatResponse_ReplySnapshotJson;
export type Entry = EntryJson;
export type ReplyFinished = Entry_ReplyFinishedJson;
export type FinishReason = FinishReasonJson;
export type Message = MessageJson;
export type Sender = SenderJson;
export type Session = SessionJson;
export type Model = ModelJson;
export type MessagesPage = ListMessagesResponseJson;
export type SessionsPage = ListSessionsResponseJson;
export type WireError = ErrorJson;
export type WireErrorCode = ErrorCodeJson;

export const SUBPROTOCOL = 'chatbox.v1.json';

/** A sequence number; absent means 0. Sequence numbers stay far below 2^53. */
export function seqOf(value: string | number | undefined): number {
  return value === undefined ? 0 : Number(value);
}

/** A duration such as `1.500s` in milliseconds; absent or unreadable means unknown. */
export function durationMs(value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  const match = /^(-?\d+(?:\.\d+)?)s$/.exec(value);
  return match ? Math.max(0, Number(match[1]) * 1000) : undefined;
}

/** A reply that nothing more will be said about. */
export function isFinished(message: Message): boolean {
  const reason = message.reply?.finishReason;
  return reason !== undefined && reason !== 'FINISH_REASON_UNSPECIFIED';
}
