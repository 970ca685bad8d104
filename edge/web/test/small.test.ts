import { describe, expect, it } from 'vitest';
import { Api, Backoff, ChatboxError, durationMs, mayResume, seqOf } from '../src/client';
import { utf8Length, utf8Prefix } from '../src/client/utf8';
import { randomFrom } from './harness';
import { FakeServer } from './server';

describe('back-off', () => {
  it('stays between the floor and a ceiling that doubles up to the cap', () => {
    const random = randomFrom(7);
    for (let run = 0; run < 200; run += 1) {
      const backoff = new Backoff(500, 20_000, random);
      for (let attempt = 0; attempt < 60; attempt += 1) {
        const delay = backoff.next(300);
        expect(delay).toBeGreaterThanOrEqual(300);
        expect(delay).toBeLessThanOrEqual(300 + Math.min(20_000, 500 * 2 ** attempt));
      }
    }
  });

  it('uses the whole range, so that clients do not come back in step', () => {
    const random = randomFrom(8);
    const delays = Array.from({ length: 500 }, () => new Backoff(1000, 20_000, random).next());
    expect(Math.min(...delays)).toBeLessThan(50);
    expect(Math.max(...delays)).toBeGreaterThan(950);
  });

  it('starts over after a reset', () => {
    const backoff = new Backoff(500, 20_000, () => 1);
    backoff.next();
    backoff.next();
    expect(backoff.next()).toBe(2000);
    backoff.reset();
    expect(backoff.next()).toBe(500);
  });
});

describe('the wire', () => {
  it('reads an absent number as zero and 64-bit numbers from strings', () => {
    expect(seqOf(undefined)).toBe(0);
    expect(seqOf('4294967297')).toBe(4_294_967_297);
  });

  it('reads durations in their canonical form only', () => {
    expect(durationMs('1.500s')).toBe(1500);
    expect(durationMs('0s')).toBe(0);
    expect(durationMs(undefined)).toBeUndefined();
    expect(durationMs('1500')).toBeUndefined();
  });

  it('counts and cuts in UTF-8 bytes', () => {
    expect(utf8Length('aé漢🙂')).toBe(10);
    expect(utf8Prefix('aé漢🙂', 6)).toBe('aé漢');
    expect(utf8Prefix('aé', 3)).toBe('aé');
    expect(utf8Prefix('aé', 4)).toBeUndefined();
    expect(utf8Prefix('\ufeffab', 4)).toBe('\ufeffa');
  });
});

describe('errors', () => {
  it('keep the typed facts of the wire', () => {
    const error = ChatboxError.fromWire({
      code: 'ERROR_CODE_RESOURCE_EXHAUSTED',
      reason: 'RATE',
      retryAfter: '2s',
      closeCode: 4029,
    });
    expect(error).toMatchObject({ code: 'RESOURCE_EXHAUSTED', reason: 'RATE', retryAfterMs: 2000, closeCode: 4029 });
    expect(error.retryable).toBe(true);
  });

  it('of an unknown class are a fault of the server', () => {
    expect(ChatboxError.fromWire({ code: 99 as never }).code).toBe('INTERNAL');
  });

  it('from a proxy without a body follow from the status', () => {
    const error = ChatboxError.fromHttp(503, undefined, '7');
    expect(error).toMatchObject({ code: 'UNAVAILABLE', retryAfterMs: 7000, retryable: true });
    expect(ChatboxError.fromHttp(401, '<html>', null).code).toBe('UNAUTHENTICATED');
  });

  it('separate the close codes one may come back from', () => {
    for (const code of [1001, 1005, 1006, 1011, 1012, 1013, 1014, 4000, 4012, 4099]) expect(mayResume(code)).toBe(true);
    for (const code of [1000, 1002, 1003, 1007, 1008, 1009, 1010, 1015, 4100, 4101, 4110, 4999]) {
      expect(mayResume(code)).toBe(false);
    }
  });
});

describe('the calls', () => {
  const api = (server: FakeServer) =>
    new Api({ base: new URL('http://test/chatbox/'), token: () => 'jwt', fetch: server.fetch as typeof fetch });

  it('delete a session by its own path, whatever its id holds', async () => {
    const server = new FakeServer();
    await api(server).deleteSession('a/b');
    expect(server.calls).toEqual(['DELETE /chatbox/api/v1/sessions/a%2Fb']);
  });

  it('tell why a session could not be deleted', async () => {
    const server = new FakeServer();
    server.httpStatus = 404;
    await expect(api(server).deleteSession('s1')).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });
});
