// One connection that heals itself: it attaches, watches the feed, comes back with back-off and resumes, and carries
// the frames that were not answered over to the next socket. It knows nothing of what the events mean.
import { Backoff } from './backoff';
import { ChatboxError, CLOSE, closeError, mayResume } from './errors';
import { Outbound, type SendOptions } from './outbound';
import { durationMs, seqOf, type Ack, type Frame, type Open, type ServerEvent, type WireError } from './wire';

/** The part of a browser's WebSocket that is used. */
export type Socket = Pick<WebSocket, 'onopen' | 'onmessage' | 'onclose' | 'send' | 'close'>;

export type LinkStatus =
  /** Not started yet. */
  | { readonly phase: 'idle' }
  /** A socket is being opened, or entries are being replayed. */
  | { readonly phase: 'connecting'; readonly attempt: number }
  | { readonly phase: 'live' }
  /** Disconnected; tries again at `retryAt` (milliseconds since the epoch). */
  | { readonly phase: 'waiting'; readonly attempt: number; readonly retryAt: number; readonly cause: ChatboxError }
  /** Ended; it does not come back by itself. `cause` is null when it was closed on purpose. */
  | { readonly phase: 'closed'; readonly cause: ChatboxError | null };

/** The token still works for a while, or it does not work any more. */
export type TokenNeed = 'expiring' | 'refused';

export interface LinkOptions {
  /** Makes a socket with the current token. */
  connect(): Socket;
  /** The open frame for the state as it is now. */
  position(): Open;
  /** Seq of the last entry that was taken in. */
  head(): number;
  /** Takes an event; true when something is missing that only a resume can bring. */
  onEvent(event: ServerEvent): boolean;
  onStatus(status: LinkStatus): void;
  /** Gets a new token, to be used by the next `connect`; null when there is none. */
  refreshToken(why: TokenNeed): Promise<string | null>;
  /** Finds out why a handshake failed, which a browser does not tell; null when it cannot say. */
  diagnose(): Promise<ChatboxError | null>;
  timing?: Partial<Timing>;
  backoff?: Backoff;
}

export interface Timing {
  /** From the start of a connection to `opened`. */
  openMs: number;
  /** The server's interval; after more than two without any event the feed is taken for dead. */
  heartbeatMs: number;
  /** How long a heartbeat may be ahead of what was received. */
  behindMs: number;
  /** How long a connection has to hold before the back-off starts over. */
  stableMs: number;
}

const DEFAULTS: Timing = { openMs: 10_000, heartbeatMs: 15_000, behindMs: 5_000, stableMs: 5_000 };

type Timer = ReturnType<typeof setTimeout>;
type TimerName = 'open' | 'watch' | 'behind' | 'stable' | 'leave' | 'retry';

export class Link {
  readonly #options: LinkOptions;
  readonly #timing: Timing;
  readonly #backoff: Backoff;
  readonly #outbound: Outbound;
  #status: LinkStatus = { phase: 'idle' };
  #socket: Socket | null = null;
  #attached = false;
  #lastEventAt = 0;
  /** The server asked not to be called before this time. */
  #notBefore = 0;
  /** The last error event that announced the end of the connection. */
  #farewell: ChatboxError | null = null;
  readonly #timers: Partial<Record<TimerName, Timer>> = {};

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#timing = { ...DEFAULTS, ...options.timing };
    this.#backoff = options.backoff ?? new Backoff();
    this.#outbound = new Outbound((text) => this.#socket?.send(text), () => this.resync());
  }

  get status(): LinkStatus {
    return this.#status;
  }

  start(): void {
    if (this.#status.phase === 'idle' || this.#status.phase === 'closed') this.#connect();
  }

  /** Leaves for good; frames without an answer fail with CANCELLED. */
  close(cause: ChatboxError | null = null): void {
    this.#drop();
    this.#clear('retry');
    this.#outbound.failAll(cause ?? new ChatboxError({ code: 'CANCELLED', reason: 'CLOSED' }));
    this.#set({ phase: 'closed', cause });
  }

  /** Sends a frame and waits for its answer, across reconnects when it may be repeated. */
  request(frame: Frame, options: SendOptions): Promise<Ack> {
    if (this.#status.phase === 'closed') {
      return Promise.reject(new ChatboxError({ code: 'CANCELLED', reason: 'CLOSED' }));
    }
    return this.#outbound.request(frame, options);
  }

  /** Sends a frame that is not worth repeating; dropped while disconnected. */
  notify(frame: Frame): void {
    if (this.#attached) this.#socket?.send(JSON.stringify(frame));
  }

  /** Gives the feed up and resumes. */
  resync(): void {
    if (this.#socket) this.#lost(new ChatboxError({ code: 'UNAVAILABLE', reason: 'FEED_LOST' }));
  }

  /** The network is back, or somebody looks at the page again: no reason to wait any longer. */
  wake(): void {
    if (this.#status.phase === 'waiting') {
      this.#backoff.reset();
      if (Date.now() >= this.#notBefore) this.#connect();
    } else if (this.#socket && this.#attached && this.#isSilent()) {
      this.resync();
    }
  }

  /** The network is gone. */
  sleep(): void {
    if (this.#socket) this.#lost(new ChatboxError({ code: 'UNAVAILABLE', reason: 'OFFLINE', message: 'offline' }));
  }

  #connect(): void {
    this.#drop();
    this.#clear('retry');
    this.#set({ phase: 'connecting', attempt: this.#backoff.attempt });
    this.#farewell = null;
    let socket: Socket;
    try {
      socket = this.#options.connect();
    } catch {
      this.#retry(ChatboxError.unreachable());
      return;
    }
    this.#socket = socket;
    let shaken = false;
    socket.onopen = () => {
      shaken = true;
      const open = this.#options.position();
      socket.send(JSON.stringify({ requestId: this.#outbound.nextId(), open } satisfies Frame));
    };
    socket.onmessage = (event) => this.#receive(socket, event.data);
    socket.onclose = (event) => {
      if (this.#socket !== socket) return;
      if (shaken) void this.#closed(event.code, event.reason);
      else void this.#refused();
    };
    this.#arm('open', this.#timing.openMs, () => this.#lost(new ChatboxError({ code: 'DEADLINE_EXCEEDED' })));
  }

  #receive(socket: Socket, data: unknown): void {
    if (this.#socket !== socket || typeof data !== 'string') return;
    let event: ServerEvent;
    try {
      event = JSON.parse(data) as ServerEvent;
    } catch {
      this.resync();
      return;
    }
    this.#lastEventAt = Date.now();
    if (event.ack) this.#outbound.acknowledge(event.ack);
    else if (event.error) this.#failed(event.error);
    if (this.#socket !== socket) return;
    const broken = this.#options.onEvent(event);
    if (event.opened) this.#opened();
    if (event.caughtUp) this.#caughtUp();
    if (event.heartbeat) this.#compare(seqOf(event.heartbeat.head));
    if (event.tokenExpiring) void this.#refresh();
    if (event.goingAway) this.#leave(durationMs(event.goingAway.retryAfter) ?? 0);
    if (broken) this.resync();
  }

  #opened(): void {
    this.#attached = true;
    this.#clear('open');
    this.#watch();
    this.#outbound.attach();
  }

  #caughtUp(): void {
    this.#set({ phase: 'live' });
    this.#arm('stable', this.#timing.stableMs, () => this.#backoff.reset());
  }

  /** A failed frame, or the announcement of the end of the connection. */
  #failed(wire: WireError): void {
    const error = ChatboxError.fromWire(wire);
    if (error.closeCode !== 0) this.#farewell = error;
    if (error.retryAfterMs !== undefined && error.closeCode !== 0) this.#notBefore = Date.now() + error.retryAfterMs;
    if (this.#outbound.fail(wire.requestId ?? '', error)) return;
    // Not attached yet, so it can only be the open frame.
    if (this.#attached || error.closeCode !== 0) return;
    if (error.retryable) this.#lost(error);
    else this.close(error);
  }

  async #closed(code: number, text: string): Promise<void> {
    const cause = this.#farewell ?? closeError(code, text);
    this.#drop();
    if (code === CLOSE.TOKEN_EXPIRED) await this.#replaceToken(new ChatboxError({ code: 'UNAUTHENTICATED', closeCode: code }));
    else if (mayResume(code)) this.#retry(cause);
    else this.close(cause);
  }

  /** A handshake that failed: a browser says nothing about why. */
  async #refused(): Promise<void> {
    this.#drop();
    const cause = await this.#options.diagnose().catch(() => null);
    if (!this.#isBetweenSockets()) return;
    if (cause?.code === 'UNAUTHENTICATED') await this.#replaceToken(cause);
    else if (cause && !cause.retryable) this.close(cause);
    else this.#retry(cause ?? ChatboxError.unreachable());
  }

  /** The token was not accepted: comes back with a new one, or ends. */
  async #replaceToken(cause: ChatboxError): Promise<void> {
    this.#set({ phase: 'connecting', attempt: this.#backoff.attempt });
    const token = await this.#options.refreshToken('refused').catch(() => null);
    if (!this.#isBetweenSockets()) return;
    if (token === null) this.close(cause);
    else this.#retry(cause);
  }

  #isBetweenSockets(): boolean {
    return this.#status.phase === 'connecting' && this.#socket === null;
  }

  #lost(cause: ChatboxError): void {
    this.#drop();
    this.#retry(cause);
  }

  #retry(cause: ChatboxError): void {
    const asked = Math.max(cause.retryAfterMs ?? 0, this.#notBefore - Date.now(), 0);
    const attempt = this.#backoff.attempt;
    const delay = this.#backoff.next(asked);
    this.#notBefore = Date.now() + asked;
    this.#set({ phase: 'waiting', attempt, retryAt: Date.now() + delay, cause });
    this.#arm('retry', delay, () => this.#connect());
  }

  async #refresh(): Promise<void> {
    const token = await this.#options.refreshToken('expiring').catch(() => null);
    if (token === null || !this.#attached) return;
    // A refusal is no loss: the connection ends at the expiry, and the next one uses what there is then.
    await this.#outbound.request({ refreshToken: { token } }, { repeat: false }).catch(() => undefined);
  }

  #leave(afterMs: number): void {
    this.#notBefore = Date.now() + afterMs;
    this.#arm('leave', afterMs, () => this.#lost(new ChatboxError({ code: 'UNAVAILABLE', reason: 'GOING_AWAY' })));
  }

  #compare(head: number): void {
    if (head <= this.#options.head()) {
      this.#clear('behind');
    } else if (this.#timers.behind === undefined) {
      this.#arm('behind', this.#timing.behindMs, () => {
        if (this.#options.head() < head) this.resync();
      });
    }
  }

  #watch(): void {
    const limit = this.#timing.heartbeatMs * 2;
    this.#arm('watch', Math.max(1, this.#lastEventAt + limit + 1 - Date.now()), () => {
      if (this.#isSilent()) this.resync();
      else this.#watch();
    });
  }

  #isSilent(): boolean {
    return Date.now() - this.#lastEventAt > this.#timing.heartbeatMs * 2;
  }

  #drop(): void {
    const socket = this.#socket;
    this.#socket = null;
    this.#attached = false;
    for (const name of ['open', 'watch', 'behind', 'stable', 'leave'] as const) this.#clear(name);
    this.#outbound.detach();
    if (!socket) return;
    socket.onopen = null;
    socket.onmessage = null;
    socket.onclose = null;
    socket.close(CLOSE.NORMAL);
  }

  #set(status: LinkStatus): void {
    this.#status = status;
    this.#options.onStatus(status);
  }

  #arm(name: TimerName, delayMs: number, run: () => void): void {
    this.#clear(name);
    this.#timers[name] = setTimeout(() => {
      delete this.#timers[name];
      run();
    }, delayMs);
  }

  #clear(name: TimerName): void {
    clearTimeout(this.#timers[name]);
    delete this.#timers[name];
  }
}
