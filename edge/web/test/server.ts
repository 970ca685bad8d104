// The server's side of the contract in memory, with faults: what the client is tested against. Time is the fake clock.
import type { Frame, Message, Open, ServerEvent } from '../src/client/wire';
import type { Socket } from '../src/client/link';

const BYTES = new TextEncoder();
export const bytes = (text: string) => BYTES.encode(text).length;
const cut = (text: string, from: number) => new TextDecoder().decode(BYTES.encode(text).subarray(from));

type Entry = NonNullable<ServerEvent['entry']>;

interface Running {
  id: string;
  seq: number;
  text: string;
  pieces: string[];
}

/** The browser's end of a connection. */
export class FakeSocket implements Socket {
  onopen: Socket['onopen'] = null;
  onmessage: Socket['onmessage'] = null;
  onclose: Socket['onclose'] = null;
  closed = false;
  /** Open on both sides, but nothing comes through any more. */
  stalled = false;
  attached = false;
  readonly sent: Frame[] = [];

  constructor(
    readonly protocols: string[],
    private readonly receive: (socket: FakeSocket, frame: Frame) => void,
  ) {}

  open(): void {
    if (!this.closed) this.onopen?.call(this as never, {} as Event);
  }

  send(data: string): void {
    if (this.closed) throw new Error('closed');
    const frame = JSON.parse(data) as Frame;
    this.sent.push(frame);
    if (!this.stalled) setTimeout(() => !this.closed && !this.stalled && this.receive(this, frame), 1);
  }

  close(): void {
    this.closed = true;
    this.attached = false;
  }

  /** The server, or the network, ends it. */
  end(code: number, reason = ''): void {
    if (this.closed) return;
    this.close();
    this.onclose?.call(this as never, { code, reason } as CloseEvent);
  }

  event(event: ServerEvent): void {
    if (!this.closed && !this.stalled) this.onmessage?.call(this as never, { data: JSON.stringify(event) } as MessageEvent);
  }
}

export class FakeServer {
  readonly entries: Entry[] = [];
  readonly messages: Message[] = [];
  readonly sockets: FakeSocket[] = [];
  running: Running | null = null;
  replayLimit = 1000;
  pageSize = 50;
  /** The next handshakes fail. */
  down = false;
  /** HTTP status of the next calls; 0: they are answered. */
  httpStatus = 0;
  answering = true;
  readonly you = { role: 'SENDER_ROLE_USER', userId: 'alice' } as const;
  #ids = 0;
  #unanswered: string[] = [];
  status: 'SESSION_STATUS_ACTIVE' | 'SESSION_STATUS_ENDED' = 'SESSION_STATUS_ACTIVE';

  get socket(): FakeSocket {
    const last = this.sockets.at(-1);
    if (!last) throw new Error('no connection was made');
    return last;
  }

  readonly connect = (_url: URL, protocols: string[]): Socket => {
    const socket = new FakeSocket(protocols, (from, frame) => this.#onFrame(from, frame));
    this.sockets.push(socket);
    setTimeout(() => (this.down ? socket.end(1006) : socket.open()), 2);
    return socket;
  };

  /** Method and path of every call. */
  readonly calls: string[] = [];

  readonly fetch = async (input: string | URL | Request, init?: RequestInit): Promise<Response> => {
    const url = new URL(String(input));
    const status = this.httpStatus;
    await new Promise((done) => setTimeout(done, 3));
    if (status !== 0) return new Response('<h1>no</h1>', { status });
    this.calls.push(`${init?.method ?? 'GET'} ${url.pathname}`);
    if (url.pathname.endsWith('/models')) return Response.json({ defaultModel: 'demo' });
    if (url.pathname.endsWith('/messages')) return Response.json(this.#page(url.searchParams));
    return Response.json({ session: this.session() });
  };

  session() {
    return { sessionId: 's1', status: this.status, head: String(this.entries.length), model: 'demo' };
  }

  broadcast(event: ServerEvent): void {
    for (const socket of this.sockets) if (socket.attached) socket.event(event);
  }

  heartbeat(): void {
    this.broadcast({ heartbeat: { head: String(this.entries.length) } });
  }

  append(kind: Omit<Entry, 'seq' | 'createTime'>): number {
    const seq = this.entries.length + 1;
    const entry: Entry = { seq: String(seq), createTime: '2026-01-01T00:00:00Z', ...kind };
    this.entries.push(entry);
    this.broadcast({ entry });
    return seq;
  }

  say(text: string, clientMessageId = '', sender: Message['sender'] = this.you): Message {
    const message: Message = {
      messageId: this.#id('m'),
      seq: String(this.entries.length + 1),
      sender,
      text,
      ...(clientMessageId === '' ? {} : { clientMessageId }),
    };
    this.messages.push(message);
    this.append({ message: { ...message } });
    this.#unanswered.push(message.messageId ?? '');
    return message;
  }

  startReply(pieces: string[]): void {
    const answers = this.#unanswered.splice(0);
    const id = this.#id('r');
    const seq = this.append({ replyStarted: { messageId: id, model: 'demo', answers } });
    this.messages.push({
      messageId: id,
      seq: String(seq),
      sender: { role: 'SENDER_ROLE_ASSISTANT' },
      reply: { model: 'demo', answers },
    });
    this.running = { id, seq, text: '', pieces };
  }

  /** Streams the next piece; false when there is none. */
  stream(deliver = true): boolean {
    const running = this.running;
    const piece = running?.pieces.shift();
    if (!running || piece === undefined) return false;
    const offset = bytes(running.text);
    running.text += piece;
    const replyDelta: NonNullable<ServerEvent['replyDelta']> = {
      messageId: running.id,
      startedSeq: String(running.seq),
      nextOffset: offset + bytes(piece),
      text: piece,
      ...(offset === 0 ? {} : { offset }),
    };
    if (deliver) this.broadcast({ replyDelta });
    return true;
  }

  finish(finishReason: 'FINISH_REASON_STOP' | 'FINISH_REASON_CANCELLED' = 'FINISH_REASON_STOP'): void {
    const running = this.running;
    if (!running) return;
    this.running = null;
    const { id, text, seq } = running;
    const finishedSeq = String(this.entries.length + 1);
    const message = this.messages.find((one) => one.messageId === id);
    if (message) Object.assign(message, { text, reply: { ...message.reply, finishReason, finishedSeq } });
    this.append({ replyFinished: { messageId: id, startedSeq: String(seq), text, finishReason, model: 'demo' } });
  }

  #onFrame(socket: FakeSocket, frame: Frame): void {
    const requestId = frame.requestId ?? '';
    if (frame.open) return this.#onOpen(socket, requestId, frame.open);
    if (frame.send) {
      const { clientMessageId = '', text = '' } = frame.send;
      const known = this.messages.find((one) => one.clientMessageId === clientMessageId);
      const message = known ?? this.say(text, clientMessageId);
      const ack = { requestId, messageId: message.messageId ?? '', seq: message.seq ?? '0' };
      socket.event({ ack: known ? { ...ack, duplicate: true } : ack });
    } else if (frame.stop) {
      if (this.running?.id === frame.stop.messageId) this.finish('FINISH_REASON_CANCELLED');
      socket.event({ ack: { requestId } });
    } else if (requestId !== '') {
      socket.event({ ack: { requestId } });
    }
  }

  #onOpen(socket: FakeSocket, requestId: string, open: Open): void {
    const head = this.entries.length;
    const after = open.afterSeq === undefined ? null : Number(open.afterSeq);
    const verdict = after === null ? 'FRESH' : head - after > this.replayLimit ? 'GAP' : 'REPLAYED';
    socket.event({
      opened: {
        requestId,
        session: this.session(),
        you: this.you,
        verdict: `RESUME_VERDICT_${verdict}`,
        ...(head === 0 ? {} : { head: String(head) }),
      },
    });
    if (verdict === 'REPLAYED') for (const entry of this.entries.slice(after ?? 0)) socket.event({ entry });
    if (this.running) {
      const { id, seq, text } = this.running;
      const offset = open.reply?.messageId === id ? (open.reply.nextOffset ?? 0) : 0;
      const replySnapshot: NonNullable<ServerEvent['replySnapshot']> = {
        messageId: id,
        startedSeq: String(seq),
        nextOffset: bytes(text),
        text: cut(text, offset),
        model: 'demo',
        ...(offset === 0 ? {} : { offset }),
      };
      socket.event({ replySnapshot });
    }
    socket.event({ caughtUp: head === 0 ? {} : { seq: String(head) } });
    socket.attached = true;
  }

  #page(query: URLSearchParams) {
    const size = Math.min(Number(query.get('pageSize') ?? 50), this.pageSize);
    const after = Number(query.get('afterSeq') ?? 0);
    const token = Number(query.get('pageToken') ?? 0);
    const head = String(this.entries.length);
    // A token is a seq, so that pages do not shift while messages arrive.
    if (query.get('order') === 'PAGE_ORDER_OLDEST_FIRST') {
      const list = this.messages.filter((one) => Number(one.seq) > Math.max(after, token));
      const page = list.slice(0, size);
      const nextPageToken = list.length > size ? (page.at(-1)?.seq ?? '') : '';
      return { messages: structuredClone(page), head, ...(nextPageToken === '' ? {} : { nextPageToken }) };
    }
    const list = this.messages.filter((one) => token === 0 || Number(one.seq) < token);
    const page = list.slice(-size);
    const nextPageToken = list.length > size ? (page[0]?.seq ?? '') : '';
    return { messages: structuredClone(page), head, ...(nextPageToken === '' ? {} : { nextPageToken }) };
  }

  #id(prefix: string): string {
    this.#ids += 1;
    return `${prefix}${this.#ids}`;
  }
}
