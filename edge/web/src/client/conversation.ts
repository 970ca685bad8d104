// One session as a page needs it: the live feed, its history, and the messages on their way.
import type { Api } from './api';
import { Backoff } from './backoff';
import { ChatboxError } from './errors';
import { Link, type LinkStatus, type Socket, type Timing, type TokenNeed } from './link';
import { reduce } from './reducer';
import { EMPTY, resumeFrom, type Action, type ConversationState } from './state';
import { isFinished, seqOf, SUBPROTOCOL, type Message, type Open } from './wire';

/** A message that has not been acknowledged, as it is kept over a reload. */
export interface Unsent {
  clientMessageId: string;
  text: string;
}

/** Where unacknowledged messages survive a reload. `sessionId` is empty for a session that has no id yet. */
export interface Outbox {
  load(sessionId: string): Unsent[];
  save(sessionId: string, unsent: Unsent[]): void;
}

export interface ConversationOptions {
  api: Api;
  /** The socket, e.g. `wss://example.org/chatbox/ws`. */
  socketUrl: URL;
  token(): string;
  /** Gets a new token and keeps it, so that `token()` returns it; null when there is none. */
  refreshToken?(why: TokenNeed): Promise<string | null>;
  /** Which session; empty: the active one, or a new one. */
  sessionId?: string;
  /** It is ended: read its history and do not connect. */
  ended?: boolean;
  outbox?: Outbox;
  onChange(): void;
  makeSocket?(url: URL, protocols: string[]): Socket;
  /** Makes a random id; for tests. */
  makeId?(): string;
  timing?: Partial<Timing>;
  backoff?: Backoff;
}

const PAGE_SIZE = 50;

export class Conversation {
  readonly #options: ConversationOptions;
  readonly #link: Link;
  #state: ConversationState = EMPTY;
  #status: LinkStatus = { phase: 'idle' };
  #historyError: ChatboxError | null = null;
  #filling = false;
  #loading = false;
  /** The session whose unsent messages are kept; empty until its id is known, undefined before the start. */
  #kept: string | undefined;
  #over = false;
  #readSeq = 0;
  #tick: ReturnType<typeof setInterval> | undefined;

  constructor(options: ConversationOptions) {
    this.#options = options;
    this.#link = new Link({
      connect: () => this.#connect(),
      position: () => this.#position(),
      head: () => this.#state.head,
      onEvent: (event) => {
        this.#dispatch({ type: 'event', event, now: Date.now() });
        if (event.opened) this.#onOpened();
        if (event.entry && this.isEnded && this.#status.phase === 'live') this.#link.close();
        return this.#state.broken;
      },
      onStatus: (status) => this.#onStatus(status),
      refreshToken: (why) => options.refreshToken?.(why) ?? Promise.resolve(null),
      diagnose: () => options.api.models().then(
        () => null,
        (error: unknown) => ChatboxError.from(error),
      ),
      ...(options.timing ? { timing: options.timing } : {}),
      ...(options.backoff ? { backoff: options.backoff } : {}),
    });
  }

  get state(): ConversationState {
    return this.#state;
  }

  get status(): LinkStatus {
    return this.#status;
  }

  /** Why history could not be loaded; it is tried again with the next `loadOlder`. */
  get historyError(): ChatboxError | null {
    return this.#historyError;
  }

  get loadingHistory(): boolean {
    return this.#loading;
  }

  start(): void {
    this.#over = false;
    clearInterval(this.#tick);
    this.#tick = setInterval(() => this.#dispatch({ type: 'tick', now: Date.now() }), 1000);
    if (this.#options.ended && this.#options.sessionId) {
      void this.#readOnly(this.#options.sessionId);
      return;
    }
    this.#link.start();
    if (this.#kept === undefined) this.#restore(this.#options.sessionId ?? '');
    else for (const one of this.#state.pending) if (one.seq === 0 && one.error === null) this.#transmit(one);
  }

  /** Leaves; the session and a running reply go on. */
  close(): void {
    this.#over = true;
    clearInterval(this.#tick);
    this.#link.close();
  }

  wake(): void {
    this.#link.wake();
  }

  sleep(): void {
    this.#link.sleep();
  }

  /** Writes a message. It is on its way, whatever happens to the connection; see `state.pending`. */
  send(text: string): void {
    const clientMessageId = this.#options.makeId?.() ?? randomId();
    this.#post({ clientMessageId, text });
  }

  /** Sends a failed message again, as the same message. */
  resend(clientMessageId: string): void {
    const failed = this.#state.pending.find((one) => one.clientMessageId === clientMessageId);
    if (failed?.error) this.#post({ clientMessageId, text: failed.text });
  }

  discard(clientMessageId: string): void {
    this.#dispatch({ type: 'discarded', clientMessageId });
    this.#saveOutbox();
  }

  /** Id of the reply that runs, as far as is known. */
  get runningReply(): string | null {
    if (this.#state.running) return this.#state.running.messageId;
    const last = this.#state.items.findLast(
      (item) => item.kind === 'message' && item.message.sender?.role === 'SENDER_ROLE_ASSISTANT',
    );
    return last?.kind === 'message' && !isFinished(last.message) && !this.isEnded ? last.id : null;
  }

  get isEnded(): boolean {
    return this.#state.session?.status === 'SESSION_STATUS_ENDED';
  }

  async stop(): Promise<void> {
    const messageId = this.runningReply;
    if (messageId !== null) await this.#link.request({ stop: { messageId } }, { repeat: true });
  }

  /** The last reply, when it may be generated once more: nothing runs, and nobody has written since. */
  get lastReply(): string | null {
    if (this.isEnded || this.#state.session?.responder === 'RESPONDER_ADMIN' || this.#state.pending.length > 0) return null;
    const last = this.#state.items.findLast((item) => item.kind === 'message');
    if (last?.kind !== 'message' || last.message.sender?.role !== 'SENDER_ROLE_ASSISTANT') return null;
    return isFinished(last.message) ? last.id : null;
  }

  /** Has the last reply generated once more; the older one stays in history. */
  async regenerate(): Promise<void> {
    const messageId = this.lastReply;
    if (messageId !== null) await this.#link.request({ regenerate: { messageId } }, { repeat: false });
  }

  /** Chooses the model that answers from the next reply on. */
  async selectModel(model: string): Promise<void> {
    await this.#link.request({ selectModel: { model } }, { repeat: false });
  }

  /** Says how far somebody has read; a monotonic maximum. */
  read(seq: number): void {
    if (seq <= this.#readSeq || this.isEnded || this.#status.phase !== 'live') return;
    this.#readSeq = seq;
    this.#link.request({ read: { seq: String(seq) } }, { repeat: true }).catch(() => undefined);
  }

  /** Asks for a person; while one is asked for or there, it changes nothing. */
  async requestHelp(reason = ''): Promise<void> {
    await this.#link.request({ requestHelp: reason === '' ? {} : { reason } }, { repeat: true });
  }

  typing(active: boolean): void {
    if (this.#status.phase === 'live' && !this.isEnded) this.#link.notify({ typing: { active } });
  }

  /** Loads the page of history before the oldest one that is shown. */
  async loadOlder(): Promise<void> {
    const sessionId = this.#state.session?.sessionId;
    const { older } = this.#state;
    if (sessionId === undefined || this.#loading || older.state === 'none') return;
    this.#loading = true;
    this.#historyError = null;
    this.#options.onChange();
    try {
      const pageToken = older.state === 'more' ? older.token : '';
      const page = await this.#options.api.messages(sessionId, { pageSize: PAGE_SIZE, pageToken });
      this.#loading = false;
      this.#dispatch({ type: 'history', messages: page.messages ?? [], next: page.nextPageToken ?? '' });
    } catch (error) {
      this.#loading = false;
      this.#historyError = ChatboxError.from(error);
      this.#options.onChange();
    }
  }

  #connect(): Socket {
    const protocols = [SUBPROTOCOL, `bearer.${this.#options.token()}`];
    if (this.#options.makeSocket) return this.#options.makeSocket(this.#options.socketUrl, protocols);
    return new WebSocket(this.#options.socketUrl, protocols);
  }

  #position(): Open {
    if (this.#state.session !== null) return resumeFrom(this.#state);
    return this.#options.sessionId ? { sessionId: this.#options.sessionId } : {};
  }

  #dispatch(action: Action): void {
    const next = reduce(this.#state, action);
    if (next === this.#state) return;
    const settled = next.pending.length !== this.#state.pending.length;
    const changedGap = next.gap !== null && next.gap !== this.#state.gap;
    this.#state = next;
    if (settled) this.#saveOutbox();
    if (changedGap) void this.#fillGap();
    this.#options.onChange();
  }

  #onOpened(): void {
    const sessionId = this.#state.session?.sessionId ?? '';
    if (this.#kept === '') {
      this.#options.outbox?.save('', []);
      this.#restore(sessionId);
    }
    if (this.#state.older.state === 'unknown') void this.#loadNewest();
    if (this.#state.gap !== null) void this.#fillGap();
  }

  #onStatus(status: LinkStatus): void {
    this.#status = status;
    if (status.phase === 'live' && this.isEnded) {
      // Nothing more will happen here.
      this.#link.close();
      return;
    }
    const sessionId = this.#state.session?.sessionId ?? this.#options.sessionId;
    if (status.phase === 'closed' && status.cause?.code === 'FAILED_PRECONDITION' && sessionId) {
      void this.#readOnly(sessionId);
    }
    this.#options.onChange();
  }

  #post(unsent: Unsent): void {
    const { clientMessageId, text } = unsent;
    this.#dispatch({ type: 'queued', clientMessageId, text });
    if (!this.#state.pending.some((one) => one.clientMessageId === clientMessageId)) return;
    this.#saveOutbox();
    this.#transmit(unsent);
  }

  #transmit({ clientMessageId, text }: Unsent): void {
    this.#link.request({ send: { clientMessageId, text } }, { repeat: true }).then(
      (ack) => {
        this.#dispatch({ type: 'acked', clientMessageId, seq: seqOf(ack.seq) });
        this.#saveOutbox();
      },
      (failure: unknown) => {
        const error = ChatboxError.from(failure);
        if (error.reason !== 'CLOSED') this.#dispatch({ type: 'failed', clientMessageId, error });
        else if (this.isEnded) this.#dispatch({ type: 'failed', clientMessageId, error: tooLate() });
        // Otherwise it was left on its way: the outbox has it, and the next start sends it.
      },
    );
  }

  /** Sends what an earlier life of this page left. */
  #restore(sessionId: string): void {
    const unsent = this.#options.outbox?.load(sessionId) ?? [];
    this.#kept = sessionId;
    for (const one of unsent) this.#post(one);
    this.#saveOutbox();
  }

  #saveOutbox(): void {
    if (this.#kept === undefined) return;
    const unsent = this.#state.pending
      .filter((one) => one.seq === 0)
      .map(({ clientMessageId, text }) => ({ clientMessageId, text }));
    this.#options.outbox?.save(this.#kept, unsent);
  }

  async #loadNewest(): Promise<void> {
    const backoff = new Backoff();
    while (!this.#over && this.#state.older.state === 'unknown' && !this.#loading) {
      await this.loadOlder();
      if (this.#historyError === null || !this.#historyError.retryable) return;
      await pause(backoff.next(this.#historyError.retryAfterMs));
    }
  }

  /** Fetches what happened while away, when it was too much to be replayed. */
  async #fillGap(): Promise<void> {
    if (this.#filling) return;
    this.#filling = true;
    const backoff = new Backoff();
    let pageToken = '';
    let { gap } = this.#state;
    while (!this.#over && gap !== null) {
      try {
        const page: { messages?: Message[]; nextPageToken?: string } = await this.#options.api.messages(
          this.#state.session?.sessionId ?? '',
          { pageSize: 200, pageToken, order: 'PAGE_ORDER_OLDEST_FIRST', afterSeq: gap.after },
        );
        pageToken = page.nextPageToken ?? '';
        this.#dispatch({ type: 'gap_page', messages: page.messages ?? [], gap, last: pageToken === '' });
        backoff.reset();
      } catch (error) {
        const failure = ChatboxError.from(error);
        if (!failure.retryable) break;
        await pause(backoff.next(failure.retryAfterMs));
      }
      // A new gap while this one was filled: from its beginning.
      if (this.#state.gap !== gap) pageToken = '';
      gap = this.#state.gap;
    }
    this.#filling = false;
  }

  async #readOnly(sessionId: string): Promise<void> {
    try {
      this.#dispatch({ type: 'session', session: await this.#options.api.session(sessionId) });
      this.#status = { phase: 'closed', cause: this.isEnded ? null : this.#causeOfClose() };
    } catch (error) {
      this.#status = { phase: 'closed', cause: ChatboxError.from(error) };
    }
    this.#options.onChange();
    if (!this.isEnded) return;
    for (const { clientMessageId, text } of this.#options.outbox?.load(sessionId) ?? []) {
      this.#dispatch({ type: 'queued', clientMessageId, text });
      this.#dispatch({ type: 'failed', clientMessageId, error: tooLate() });
    }
    this.#kept = sessionId;
    await this.#loadNewest();
  }

  #causeOfClose(): ChatboxError | null {
    return this.#status.phase === 'closed' ? this.#status.cause : null;
  }
}

/** What was written before a session ended and had not arrived. */
function tooLate(): ChatboxError {
  return new ChatboxError({ code: 'FAILED_PRECONDITION', reason: 'SESSION_ENDED' });
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** 128 random bits. Not `randomUUID`, which a page served without TLS does not have. */
export function randomId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
