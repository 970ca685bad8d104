import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { Conversation } from '../src/client';
import { converse, MemoryOutbox, pass, texts } from './harness';
import { FakeServer } from './server';

let server: FakeServer;
let open: Conversation[] = [];

beforeEach(() => {
  vi.useFakeTimers({ now: 1_000_000 });
  server = new FakeServer();
  open = [];
});

afterEach(() => {
  for (const one of open) one.close();
  // A conversation that was left keeps nothing going.
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

async function start(options: Parameters<typeof converse>[1] = {}): Promise<Conversation> {
  const conversation = converse(server, options);
  open.push(conversation);
  conversation.start();
  await pass();
  return conversation;
}

const frames = (kind: string) => server.sockets.flatMap((socket) => socket.sent).filter((frame) => kind in frame);

describe('attaching', () => {
  it('offers the subprotocol and the token, opens, and loads the newest page', async () => {
    for (let index = 1; index <= 60; index += 1) server.say(`t${index}`);
    const conversation = await start();
    expect(server.socket.protocols).toEqual(['chatbox.v1.json', 'bearer.jwt']);
    expect(frames('open')[0]?.open).toEqual({});
    expect(conversation.status.phase).toBe('live');
    expect(texts(conversation.state.items)).toEqual(Array.from({ length: 50 }, (_, index) => `t${index + 11}`));
    await Promise.all([conversation.loadOlder(), pass()]);
    expect(conversation.state.items).toHaveLength(60);
    expect(conversation.state.older).toEqual({ state: 'none' });
  });

  it('in the middle of a reply shows what was said so far and goes on', async () => {
    server.say('hi');
    server.startReply(['one ', 'two ', 'three']);
    server.stream();
    const conversation = await start();
    expect(conversation.state.running?.text).toBe('one ');
    expect(conversation.runningReply).toBe(conversation.state.running?.messageId);
    server.stream();
    server.stream();
    server.finish();
    expect(texts(conversation.state.items)).toEqual(['hi', 'one two three']);
    expect(conversation.runningReply).toBeNull();
  });

  it('loads history again and again until it is there', async () => {
    server.say('hi');
    server.httpStatus = 503;
    const conversation = await start();
    expect(conversation.state.items).toEqual([]);
    server.httpStatus = 0;
    await pass(5000);
    expect(texts(conversation.state.items)).toEqual(['hi']);
  });

  it('to an ended session only reads', async () => {
    server.say('hi');
    server.append({ ended: {} });
    server.status = 'SESSION_STATUS_ENDED';
    const conversation = await start({ sessionId: 's1', ended: true });
    expect(server.sockets).toHaveLength(0);
    expect(texts(conversation.state.items)).toEqual(['hi']);
    expect(conversation.status).toEqual({ phase: 'closed', cause: null });
  });
});

describe('coming back', () => {
  it('resumes after the last entry and the last byte of the reply', async () => {
    server.say('hi');
    server.startReply(['one ', 'two ', 'three']);
    const conversation = await start();
    server.stream();
    server.socket.end(1006);
    expect(conversation.status.phase).toBe('waiting');
    server.stream();
    server.say('meanwhile');
    await pass(200);
    expect(frames('open').at(-1)?.open).toEqual({
      sessionId: 's1',
      afterSeq: '2',
      reply: { messageId: 'r2', nextOffset: 4 },
    });
    expect(conversation.state.running?.text).toBe('one two ');
    server.stream();
    server.finish();
    expect(texts(conversation.state.items)).toEqual(['hi', 'one two three', 'meanwhile']);
  });

  it('fills a gap page by page, with a reply that ended in it', async () => {
    server.replayLimit = 5;
    server.pageSize = 4;
    server.say('hi');
    server.startReply(['one ', 'two']);
    const conversation = await start();
    server.stream();
    server.socket.end(1006);
    server.stream();
    server.finish();
    for (let index = 1; index <= 9; index += 1) server.say(`t${index}`);
    await pass(300);
    expect(conversation.state.gap).toBeNull();
    expect(texts(conversation.state.items)).toEqual(['hi', 'one two', ...Array.from({ length: 9 }, (_, index) => `t${index + 1}`)]);
  });

  it('waits as long as the server asked', async () => {
    const conversation = await start();
    server.socket.event({ error: { code: 'ERROR_CODE_UNAVAILABLE', retryAfter: '30s', closeCode: 1013 } });
    server.socket.end(1013);
    expect(conversation.status).toMatchObject({ phase: 'waiting', cause: { code: 'UNAVAILABLE' } });
    conversation.wake();
    await pass(29_000);
    expect(server.sockets).toHaveLength(1);
    await pass(2_000);
    expect(conversation.status.phase).toBe('live');
  });

  it('moves on when the server is going away', async () => {
    const conversation = await start();
    server.socket.event({ goingAway: { reason: 'DRAIN', retryAfter: '2s', closeCode: 1001 } });
    await pass(1_900);
    expect(server.sockets).toHaveLength(1);
    await pass(1_000);
    expect(server.sockets).toHaveLength(2);
    expect(conversation.status.phase).toBe('live');
  });

  it('backs off while the server is down, and comes at once when the network is back', async () => {
    const conversation = await start();
    server.down = true;
    server.httpStatus = 503;
    server.socket.end(1006);
    await pass(10_000);
    // 50, 100, 200, 400, then every 500 ms: with the factor 1/2 of this test.
    expect(server.sockets.length).toBeGreaterThan(10);
    expect(server.sockets.length).toBeLessThan(30);
    conversation.sleep();
    server.down = false;
    server.httpStatus = 0;
    conversation.wake();
    await pass(20);
    expect(conversation.status.phase).toBe('live');
  });

  it.each([1000, 1008, 4101, 4103, 4110])('does not come back after %i', async (code) => {
    const conversation = await start();
    server.socket.end(code, 'no');
    await pass(120_000);
    expect(server.sockets).toHaveLength(1);
    expect(conversation.status).toMatchObject({ phase: 'closed', cause: { closeCode: code } });
  });

  it('does not knock again with a token that is not accepted', async () => {
    server.down = true;
    server.httpStatus = 401;
    const conversation = await start();
    expect(conversation.status).toMatchObject({ phase: 'closed', cause: { code: 'UNAUTHENTICATED' } });
    await pass(60_000);
    expect(server.sockets).toHaveLength(1);
  });

  it('does not come back to a session that is not there', async () => {
    const conversation = await start({ sessionId: 'other' });
    server.socket.event({ error: { code: 'ERROR_CODE_NOT_FOUND', reason: 'SESSION_NOT_FOUND', closeCode: 4104 } });
    server.socket.end(4104);
    expect(conversation.status).toMatchObject({ phase: 'closed', cause: { code: 'NOT_FOUND' } });
  });
});

describe('a dead feed', () => {
  it('that is silent for more than two heartbeats is replaced', async () => {
    const conversation = await start();
    server.heartbeat();
    server.socket.stalled = true;
    server.say('unheard');
    await pass(29_000);
    expect(server.sockets).toHaveLength(1);
    await pass(2_000);
    expect(server.sockets).toHaveLength(2);
    expect(texts(conversation.state.items)).toEqual(['unheard']);
  });

  it('whose heartbeat is ahead for more than five seconds is replaced', async () => {
    const conversation = await start();
    const first = server.socket;
    first.attached = false;
    server.say('lost');
    first.event({ heartbeat: { head: '1' } });
    await pass(4_900);
    expect(server.sockets).toHaveLength(1);
    await pass(300);
    expect(server.sockets).toHaveLength(2);
    expect(texts(conversation.state.items)).toEqual(['lost']);
  });

  it('is not suspected when the entry follows its heartbeat', async () => {
    await start();
    server.socket.event({ heartbeat: { head: '1' } });
    await pass(1_000);
    server.say('late');
    await pass(10_000);
    expect(server.sockets).toHaveLength(1);
  });
});

describe('sending', () => {
  it('shows the message at once and once', async () => {
    const conversation = await start();
    conversation.send('hi');
    expect(conversation.state.pending).toMatchObject([{ clientMessageId: 'c1', text: 'hi' }]);
    await pass();
    expect(conversation.state.pending).toEqual([]);
    expect(texts(conversation.state.items)).toEqual(['hi']);
  });

  it('repeats an unanswered message as the same one after a cut', async () => {
    const conversation = await start();
    const first = server.socket;
    conversation.send('hi');
    await pass(0);
    // The server has it; its ack and entry are lost.
    server.say('hi', 'c1');
    first.end(1006);
    await pass(300);
    expect(frames('send').map((frame) => frame.send?.clientMessageId)).toEqual(['c1', 'c1']);
    expect(texts(conversation.state.items)).toEqual(['hi']);
    expect(conversation.state.pending).toEqual([]);
  });

  it('keeps what is written while disconnected, in order', async () => {
    const conversation = await start();
    server.down = true;
    server.socket.end(1006);
    conversation.send('one');
    conversation.send('two');
    await pass(3_000);
    expect(conversation.state.pending.map((one) => one.text)).toEqual(['one', 'two']);
    server.down = false;
    await pass(3_000);
    expect(texts(conversation.state.items)).toEqual(['one', 'two']);
  });

  it('survives a reload with the same id', async () => {
    const outbox = new MemoryOutbox();
    const before = await start({ outbox });
    server.socket.stalled = true;
    before.send('hi');
    expect(outbox.kept.get('s1')).toEqual([{ clientMessageId: 'c1', text: 'hi' }]);
    before.close();
    const after = await start({ outbox, sessionId: 's1' });
    expect(texts(after.state.items)).toEqual(['hi']);
    expect(after.state.pending).toEqual([]);
    expect(server.messages).toMatchObject([{ clientMessageId: 'c1' }]);
    expect(outbox.kept.size).toBe(0);
  });

  it('tries again by itself after an error that passes, and shows one that does not', async () => {
    const conversation = await start();
    server.socket.stalled = true;
    conversation.send('hi');
    const socket = server.socket;
    socket.stalled = false;
    const id = frames('send')[0]?.requestId ?? '';
    socket.event({ error: { requestId: id, code: 'ERROR_CODE_UNAVAILABLE', retryAfter: '1s', outcomeUnknown: true } });
    await pass(1_600);
    expect(frames('send')).toHaveLength(2);
    expect(new Set(frames('send').map((frame) => frame.requestId)).size).toBe(2);
    expect(texts(conversation.state.items)).toEqual(['hi']);

    socket.stalled = true;
    conversation.send('too much');
    socket.stalled = false;
    const second = frames('send').at(-1)?.requestId ?? '';
    socket.event({ error: { requestId: second, code: 'ERROR_CODE_FAILED_PRECONDITION', reason: 'ENDED' } });
    await pass();
    expect(conversation.state.pending).toMatchObject([{ text: 'too much', error: { code: 'FAILED_PRECONDITION' } }]);
    conversation.resend('c2');
    await pass();
    expect(texts(conversation.state.items)).toEqual(['hi', 'too much']);
  });

  it('goes on after a close that was final, once somebody connects again', async () => {
    const conversation = await start();
    server.socket.end(4110);
    conversation.send('hi');
    await pass(10_000);
    expect(conversation.state.pending).toMatchObject([{ text: 'hi', error: null }]);
    conversation.start();
    await pass();
    expect(texts(conversation.state.items)).toEqual(['hi']);
    expect(conversation.state.pending).toEqual([]);
  });

  it('says so when the session ended first, also after a reload, and loses no text', async () => {
    const outbox = new MemoryOutbox();
    const conversation = await start({ outbox });
    server.socket.stalled = true;
    conversation.send('too late');
    server.socket.stalled = false;
    server.status = 'SESSION_STATUS_ENDED';
    server.append({ ended: {} });
    await pass();
    const failed = [{ text: 'too late', error: { reason: 'SESSION_ENDED' } }];
    expect(conversation.state.pending).toMatchObject(failed);
    const after = await start({ outbox, sessionId: 's1', ended: true });
    expect(after.state.pending).toMatchObject(failed);
    after.discard('c1');
    expect(outbox.kept.size).toBe(0);
  });

  it('takes a connection without answers for dead', async () => {
    const conversation = await start();
    const first = server.socket;
    conversation.send('hi');
    first.stalled = true;
    await pass(19_000);
    first.stalled = false;
    first.event({ heartbeat: {} });
    await pass(2_000);
    expect(server.sockets).toHaveLength(2);
    expect(texts(conversation.state.items)).toEqual(['hi']);
  });
});

describe('the rest', () => {
  it('stops the running reply, also over a reconnect', async () => {
    server.say('hi');
    server.startReply(['one ', 'two']);
    const conversation = await start();
    server.stream();
    server.socket.stalled = true;
    const stopped = conversation.stop();
    server.socket.end(1006);
    await pass(300);
    await stopped;
    expect(texts(conversation.state.items)).toEqual(['hi', 'one ']);
    expect(conversation.runningReply).toBeNull();
  });

  it('replaces the token in band before it expires', async () => {
    let token = 'old';
    const conversation = await start({
      token: () => token,
      refreshToken: () => Promise.resolve((token = 'new')),
    });
    server.socket.event({ tokenExpiring: { expireTime: '2026-01-01T00:00:00Z' } });
    await pass();
    expect(frames('refreshToken')[0]?.refreshToken).toEqual({ token: 'new' });
    expect(server.sockets).toHaveLength(1);
    expect(conversation.status.phase).toBe('live');
  });

  it('comes back with a new token after the old one expired, or says so', async () => {
    let token = 'old';
    const conversation = await start({ token: () => token, refreshToken: () => Promise.resolve((token = 'new')) });
    server.socket.end(4012);
    await pass(300);
    expect(server.socket.protocols).toContain('bearer.new');
    expect(conversation.status.phase).toBe('live');
    const without = await start();
    server.socket.end(4012);
    await pass(300);
    expect(without.status).toMatchObject({ phase: 'closed', cause: { code: 'UNAUTHENTICATED' } });
  });

  it('leaves the socket of a session that ended', async () => {
    const conversation = await start();
    server.append({ ended: {} });
    expect(server.socket.closed).toBe(true);
    expect(conversation.isEnded).toBe(true);
    await pass(60_000);
    expect(server.sockets).toHaveLength(1);
  });

  it('does not say twice how far was read', async () => {
    const conversation = await start();
    conversation.read(3);
    conversation.read(3);
    conversation.read(2);
    await pass();
    expect(frames('read').map((frame) => frame.read?.seq)).toEqual(['3']);
  });
});

describe('the session as a whole', () => {
  it('has its last answer made again, and offers that for no other', async () => {
    server.say('hi');
    server.startReply(['one']);
    const conversation = await start();
    expect(conversation.lastReply).toBeNull();
    server.stream();
    server.finish();
    const last = conversation.state.items.at(-1)?.id ?? '';
    expect(conversation.lastReply).toBe(last);
    await Promise.all([conversation.regenerate(), pass()]);
    expect(frames('regenerate').map((frame) => frame.regenerate)).toEqual([{ messageId: last }]);
    server.say('and now?');
    expect(conversation.lastReply).toBeNull();
    await Promise.all([conversation.regenerate(), pass()]);
    expect(frames('regenerate')).toHaveLength(1);
  });

  it('has another model chosen once, also when the connection is lost', async () => {
    const conversation = await start();
    await Promise.all([conversation.selectModel('other'), pass()]);
    server.append({ modelSelected: { model: 'other' } });
    expect(frames('selectModel').map((frame) => frame.selectModel)).toEqual([{ model: 'other' }]);
    expect(conversation.state.session?.model).toBe('other');
  });

  it('goes on after its end when it is brought back', async () => {
    const conversation = await start();
    server.append({ renamed: { name: 'Opening hours', automatic: true } });
    expect(conversation.state.session?.name).toBe('Opening hours');
    server.append({ reopened: { by: server.you } });
    expect(conversation.state.session?.status).toBe('SESSION_STATUS_ACTIVE');
    expect(conversation.isEnded).toBe(false);
  });
});
