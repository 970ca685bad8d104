import { vi } from 'vitest';
import { Api, Backoff, Conversation, type ConversationOptions, type Item, type Outbox, type Unsent } from '../src/client';
import { FakeServer } from './server';

export class MemoryOutbox implements Outbox {
  readonly kept = new Map<string, Unsent[]>();

  load(sessionId: string): Unsent[] {
    return this.kept.get(sessionId) ?? [];
  }

  save(sessionId: string, unsent: Unsent[]): void {
    if (unsent.length === 0) this.kept.delete(sessionId);
    else this.kept.set(sessionId, unsent);
  }
}

export function converse(server: FakeServer, options: Partial<ConversationOptions> = {}): Conversation {
  let ids = 0;
  return new Conversation({
    api: new Api({ base: new URL('http://test/chatbox/'), token: () => 'jwt', fetch: server.fetch as typeof fetch }),
    socketUrl: new URL('ws://test/chatbox/ws'),
    token: () => 'jwt',
    onChange: () => undefined,
    makeSocket: server.connect,
    makeId: () => `c${(ids += 1)}`,
    backoff: new Backoff(100, 1000, () => 0.5),
    ...options,
  });
}

/** Lets a time pass with everything that is due in it. */
export async function pass(ms = 50): Promise<void> {
  await vi.advanceTimersByTimeAsync(ms);
}

/** What a person reads, in order. */
export function texts(items: readonly Item[]): string[] {
  return items.map((item) => (item.kind === 'message' ? (item.message.text ?? '…') : Object.keys(item.entry).at(-1) ?? ''));
}

/** A small reproducible generator (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
