import { Backoff } from './backoff';
import { ChatboxError } from './errors';
import type { Ack, Frame } from './wire';

export interface SendOptions {
  /** Doing it twice is doing it once, so it is sent again when its answer was lost. */
  repeat: boolean;
}

/** More frames than this without an answer are refused: the edge keeps as many. */
const MAX_UNANSWERED = 64;
/** A frame is answered long before this, or the feed is dead: a store call has 5 s and is tried again once. */
const ANSWER_MS = 20_000;
/** How often a frame is sent again because it was answered with an error that passes. */
const MAX_REPEATS = 5;

interface Waiting {
  readonly frame: Frame;
  readonly repeat: boolean;
  readonly resolve: (ack: Ack) => void;
  readonly reject: (error: ChatboxError) => void;
  /** The id of the transmission under way; empty while none is. Unique per stream, so every one has its own. */
  id: string;
  sent: boolean;
  readonly backoff: Backoff;
  timer?: ReturnType<typeof setTimeout>;
}

/** The frames that wait for an answer, in the order they were made. */
export class Outbound {
  readonly #waiting = new Set<Waiting>();
  #attached = false;
  #ids = 0;

  constructor(
    private readonly write: (text: string) => void,
    private readonly onSilence: () => void,
  ) {}

  nextId(): string {
    this.#ids += 1;
    return `r${this.#ids}`;
  }

  request(frame: Frame, options: SendOptions): Promise<Ack> {
    if (this.#waiting.size >= MAX_UNANSWERED) {
      return Promise.reject(new ChatboxError({ code: 'RESOURCE_EXHAUSTED', reason: 'TOO_MANY_UNANSWERED' }));
    }
    return new Promise((resolve, reject) => {
      const one: Waiting = { frame, repeat: options.repeat, resolve, reject, id: '', sent: false, backoff: new Backoff() };
      this.#waiting.add(one);
      if (this.#attached) this.#transmit(one);
    });
  }

  /** A stream is attached: everything that waits is sent on it. */
  attach(): void {
    this.#attached = true;
    for (const one of this.#waiting) this.#transmit(one);
  }

  /** The stream is gone. What must not be repeated has an unknown outcome. */
  detach(): void {
    this.#attached = false;
    for (const one of this.#waiting) {
      clearTimeout(one.timer);
      if (one.sent && !one.repeat) {
        this.#waiting.delete(one);
        one.reject(new ChatboxError({ code: 'UNAVAILABLE', reason: 'CONNECTION_LOST', outcomeUnknown: true }));
      }
      one.id = '';
    }
  }

  acknowledge(ack: Ack): void {
    const one = this.#find(ack.requestId ?? '');
    if (one) this.#settle(one)?.resolve(ack);
  }

  /** True when the error belongs to one of these frames. */
  fail(requestId: string, error: ChatboxError): boolean {
    const one = this.#find(requestId);
    if (!one) return false;
    const again = one.repeat && one.backoff.attempt < MAX_REPEATS && (error.outcomeUnknown || isPassing(error));
    if (!again) {
      this.#settle(one)?.reject(error);
      return true;
    }
    clearTimeout(one.timer);
    one.id = '';
    one.timer = setTimeout(() => {
      if (this.#attached && one.id === '') this.#transmit(one);
    }, one.backoff.next(error.retryAfterMs));
    return true;
  }

  failAll(error: ChatboxError): void {
    for (const one of [...this.#waiting]) this.#settle(one)?.reject(error);
  }

  #transmit(one: Waiting): void {
    clearTimeout(one.timer);
    one.id = this.nextId();
    one.sent = true;
    one.timer = setTimeout(() => this.onSilence(), ANSWER_MS);
    this.write(JSON.stringify({ requestId: one.id, ...one.frame } satisfies Frame));
  }

  #find(id: string): Waiting | undefined {
    if (id === '') return undefined;
    for (const one of this.#waiting) if (one.id === id) return one;
    return undefined;
  }

  #settle(one: Waiting): Waiting | undefined {
    clearTimeout(one.timer);
    return this.#waiting.delete(one) ? one : undefined;
  }
}

/** It will pass by itself. A limit without a time to wait is for the person to decide. */
function isPassing(error: ChatboxError): boolean {
  return error.retryable && (error.code !== 'RESOURCE_EXHAUSTED' || error.retryAfterMs !== undefined);
}
