// Random lives of a conversation against the model of the server: whatever is cut, lost, repeated or delayed, in the end
// the page shows exactly what is stored, and at no time anything twice or out of order.
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { isFinished, type Conversation } from '../src/client';
import { converse, MemoryOutbox, pass, randomFrom } from './harness';
import { FakeServer } from './server';

const LIVES = 150;
const STEPS = 60;

beforeEach(() => {
  vi.useFakeTimers({ now: 1_000_000 });
});

afterEach(() => {
  vi.useRealTimers();
});

function check(conversation: Conversation, server: FakeServer, headBefore: number): number {
  const { items, running, head } = conversation.state;
  const seqs = items.map((item) => item.seq);
  expect(seqs).toEqual([...new Set(seqs)].sort((left, right) => left - right));
  expect(new Set(items.map((item) => item.id)).size).toBe(items.length);
  expect(head).toBeGreaterThanOrEqual(headBefore);
  expect(head).toBeLessThanOrEqual(server.entries.length);
  for (const item of items) {
    if (item.kind !== 'message' || !isFinished(item.message)) continue;
    expect(item.message.text).toBe(server.messages.find((one) => one.messageId === item.id)?.text);
  }
  if (!running) return head;
  const truth = server.running?.id === running.messageId ? server.running.text : textOf(server, running.messageId);
  expect(truth.startsWith(running.text)).toBe(true);
  return head;
}

function textOf(server: FakeServer, id: string): string {
  return server.messages.find((one) => one.messageId === id)?.text ?? '';
}

/** Heartbeats reach every socket that still carries anything, also one whose feed is dead. */
async function beat(server: FakeServer, times: number): Promise<void> {
  for (let time = 0; time < times; time += 1) {
    const heartbeat = { head: String(server.entries.length) };
    for (const socket of server.sockets) socket.event({ heartbeat });
    await pass(10_000);
  }
}

async function live(seed: number): Promise<void> {
  const random = randomFrom(seed);
  const server = new FakeServer();
  server.replayLimit = 1 + Math.floor(random() * 8);
  server.pageSize = 2 + Math.floor(random() * 6);
  const outbox = new MemoryOutbox();
  let sent = 0;
  const make = () => {
    let head = 0;
    const made: Conversation = converse(server, {
      outbox,
      sessionId: 's1',
      makeId: () => `c${(sent += 1)}`,
      onChange: () => {
        head = check(made, server, head);
      },
    });
    made.start();
    return made;
  };
  let conversation = make();
  const last = () => server.sockets.at(-1);
  const steps: (() => void)[] = [
    () => conversation.send(`message ${sent} é漢🙂`),
    () => server.say(`other ${server.entries.length}`, '', { role: 'SENDER_ROLE_ADMIN', userId: 'bob' }),
    () => server.running ?? server.startReply(['é ', 'two ', '漢字 ', '🙂', ' five', ' six']),
    () => void server.stream(),
    () => void server.stream(),
    () => void server.stream(random() < 0.7),
    () => server.finish(random() < 0.7 ? 'FINISH_REASON_STOP' : 'FINISH_REASON_CANCELLED'),
    () => last()?.end(random() < 0.5 ? 1006 : 4010),
    () => {
      const socket = last();
      if (socket) socket.stalled = true;
    },
    // A feed that beats but delivers nothing.
    () => {
      const socket = last();
      if (socket) socket.attached = false;
    },
    // Delivered again.
    () => {
      const entry = server.entries[Math.floor(random() * server.entries.length)];
      if (entry) server.broadcast({ entry });
    },
    () => {
      server.down = !server.down;
    },
    () => {
      server.httpStatus = server.httpStatus === 0 ? 503 : 0;
    },
    () => conversation.wake(),
    () => conversation.sleep(),
    () => void conversation.loadOlder(),
    () => void conversation.stop().catch(() => undefined),
    // The page is reloaded.
    () => {
      if (random() < 0.5) return;
      conversation.close();
      conversation = make();
    },
  ];
  for (let step = 0; step < STEPS; step += 1) {
    steps[Math.floor(random() * steps.length)]?.();
    if (random() < 0.6) await pass(Math.floor(random() * 400));
    server.heartbeat();
  }

  // The faults end: everything heals by itself.
  server.down = false;
  server.httpStatus = 0;
  await beat(server, 12);
  while (server.stream());
  server.finish();
  await beat(server, 2);
  while (conversation.state.older.state === 'more') await Promise.all([conversation.loadOlder(), pass(100)]);
  expect(conversation.status.phase).toBe('live');
  expect(conversation.state.pending).toEqual([]);
  const shown = conversation.state.items.map((item) =>
    item.kind === 'message' ? [item.id, item.seq, item.message.text, item.message.reply?.finishReason] : item,
  );
  expect(shown).toEqual(
    server.messages.map((one) => [one.messageId, Number(one.seq), one.text, one.reply?.finishReason]),
  );
  for (let index = 1; index <= sent; index += 1) {
    expect(server.messages.filter((one) => one.clientMessageId === `c${index}`)).toHaveLength(1);
  }
  conversation.close();
}

it(`shows exactly what is stored after each of ${LIVES} random lives`, { timeout: 120_000 }, async () => {
  for (let seed = 1; seed <= LIVES; seed += 1) {
    try {
      await live(seed);
    } catch (error) {
      throw new Error(`life ${seed} went wrong`, { cause: error });
    }
  }
});
