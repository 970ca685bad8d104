import { describe, expect, it } from 'vitest';
import { EMPTY, reduce, resumeFrom, type Action, type ConversationState, type ServerEvent } from '../src/client';
import { texts } from './harness';

const you = { role: 'SENDER_ROLE_USER', userId: 'alice' } as const;

function run(state: ConversationState, ...steps: (Action | ServerEvent)[]): ConversationState {
  return steps.reduce<ConversationState>(
    (before, step) => reduce(before, 'type' in step ? step : { type: 'event', event: step, now: 0 }),
    state,
  );
}

const opened = (head: number, verdict: 'FRESH' | 'GAP' | 'REPLAYED' = 'FRESH'): ServerEvent => ({
  opened: {
    session: { sessionId: 's1', status: 'SESSION_STATUS_ACTIVE' },
    you,
    verdict: `RESUME_VERDICT_${verdict}`,
    ...(head === 0 ? {} : { head: String(head) }),
  },
});
const said = (seq: number, text: string, clientMessageId = ''): ServerEvent => ({
  entry: { seq: String(seq), message: { messageId: `m${seq}`, sender: you, text, clientMessageId } },
});
const started = (seq: number, id = `r${seq}`): ServerEvent => ({
  entry: { seq: String(seq), replyStarted: { messageId: id, model: 'demo' } },
});
const delta = (id: string, startedSeq: number, offset: number, text: string): ServerEvent => ({
  replyDelta: {
    messageId: id,
    startedSeq: String(startedSeq),
    text,
    nextOffset: offset + Buffer.byteLength(text),
    ...(offset === 0 ? {} : { offset }),
  },
});
const snapshot = (id: string, startedSeq: number, offset: number, text: string): ServerEvent => ({
  replySnapshot: { ...delta(id, startedSeq, offset, text).replyDelta, model: 'demo' },
});
const finished = (seq: number, id: string, startedSeq: number, text: string): ServerEvent => ({
  entry: {
    seq: String(seq),
    replyFinished: { messageId: id, startedSeq: String(startedSeq), text, finishReason: 'FINISH_REASON_STOP' },
  },
});
const history = (next: string, ...messages: object[]): Action => ({ type: 'history', messages, next });

const live = run(EMPTY, opened(0), history(''));

describe('entries', () => {
  it('are taken in once each, whatever is delivered again', () => {
    const state = run(live, said(1, 'a'), said(2, 'b'), said(1, 'other'), said(3, 'c'));
    expect(texts(state.items)).toEqual(['a', 'b', 'c']);
    expect(state).toMatchObject({ head: 3, broken: false });
  });

  it('behind a hole are not taken: the feed is broken and resumes where it was', () => {
    const state = run(live, said(1, 'a'), said(3, 'c'));
    expect(texts(state.items)).toEqual(['a']);
    expect(state.broken).toBe(true);
    expect(resumeFrom(state)).toEqual({ sessionId: 's1', afterSeq: '1' });
    expect(run(state, opened(3, 'REPLAYED')).broken).toBe(false);
  });

  it('that are replayed follow one after another, with nothing to be fetched', () => {
    const back = run(live, said(1, 'a'), opened(3, 'REPLAYED'));
    expect(back).toMatchObject({ head: 1, gap: null });
    expect(texts(run(back, said(2, 'b'), said(3, 'c'), { caughtUp: { seq: '3' } }).items)).toEqual(['a', 'b', 'c']);
  });

  it('that were promised and did not come break the feed', () => {
    expect(run(live, { caughtUp: { seq: '2' } }).broken).toBe(true);
  });

  it('change the session that is shown', () => {
    const ended = run(live, { entry: { seq: '1', createTime: '2026-01-01T00:00:00Z', ended: {} } });
    expect(ended.session).toMatchObject({ status: 'SESSION_STATUS_ENDED', endTime: '2026-01-01T00:00:00Z' });
    expect(run(live, { entry: { seq: '1', renamed: { name: '<b>' } } }).session?.name).toBe('<b>');
  });
});

describe('a reply', () => {
  const asked = run(live, said(1, 'hi'), started(2));

  it('stands where it started, before messages that were written meanwhile', () => {
    const state = run(asked, delta('r2', 2, 0, 'An'), said(3, 'more'), finished(4, 'r2', 2, 'Answer'));
    expect(texts(state.items)).toEqual(['hi', 'Answer', 'more']);
    expect(state.running).toBeNull();
  });

  it('grows by deltas at its end only, counted in bytes', () => {
    const state = run(asked, delta('r2', 2, 0, 'é'), delta('r2', 2, 2, '漢'), delta('r2', 2, 5, '!'));
    expect(state.running).toMatchObject({ text: 'é漢!', nextOffset: 6, broken: false });
  });

  it('ignores a delta it has already', () => {
    const state = run(asked, delta('r2', 2, 0, 'ab'), delta('r2', 2, 2, 'cd'), delta('r2', 2, 0, 'ab'), delta('r2', 2, 2, 'cd'));
    expect(state.running?.text).toBe('abcd');
    expect(state.broken).toBe(false);
  });

  it('takes nothing behind a hole until a snapshot repairs it', () => {
    const hole = run(asked, delta('r2', 2, 0, 'ab'), delta('r2', 2, 4, 'ef'), delta('r2', 2, 6, 'gh'));
    expect(hole.running).toMatchObject({ text: 'ab', broken: true });
    expect(hole.broken).toBe(true);
    expect(resumeFrom(hole).reply).toBeUndefined();
    const repaired = run(hole, opened(2, 'REPLAYED'), snapshot('r2', 2, 0, 'abcdefgh'), delta('r2', 2, 8, 'i'));
    expect(repaired.running).toMatchObject({ text: 'abcdefghi', broken: false });
    expect(repaired.broken).toBe(false);
  });

  it('is replaced from the offset of a snapshot on', () => {
    const state = run(asked, delta('r2', 2, 0, 'one two'), snapshot('r2', 2, 4, 'three'));
    expect(state.running).toMatchObject({ text: 'one three', nextOffset: 9 });
    expect(run(state, snapshot('r2', 2, 0, 'new')).running?.text).toBe('new');
    expect(run(state, snapshot('r2', 2, 99, 'x')).running?.broken).toBe(true);
  });

  it('has the text of its terminal entry, whatever was streamed', () => {
    const state = run(asked, delta('r2', 2, 0, 'streamed'), finished(3, 'r2', 2, 'stored'), delta('r2', 2, 8, ' late'));
    expect(texts(state.items)).toEqual(['hi', 'stored']);
    expect(state.running).toBeNull();
    expect(run(state, snapshot('r2', 2, 0, 'late')).running).toBeNull();
  });

  it('is known from a snapshot alone, before history is loaded', () => {
    const state = run(EMPTY, opened(2), snapshot('r2', 2, 0, 'so far'), { caughtUp: { seq: '2' } });
    expect(state.running?.text).toBe('so far');
    const merged = run(
      state,
      history('', { messageId: 'm1', seq: '1', text: 'hi' }, { messageId: 'r2', seq: '2', createTime: 'T', reply: {} }),
    );
    expect(merged.items.map((item) => item.id)).toEqual(['m1', 'r2']);
    expect(merged.running?.text).toBe('so far');
  });

  it('that finished live is not undone by a page of history read before', () => {
    const late = { messageId: 'r2', seq: '2', createTime: 'T', text: '', reply: { finishReason: 'FINISH_REASON_UNSPECIFIED' } };
    const state = run(asked, finished(3, 'r2', 2, 'done'), history('', late));
    expect(state.items.at(-1)).toMatchObject({
      message: { text: 'done', createTime: 'T', reply: { finishReason: 'FINISH_REASON_STOP' } },
    });
  });

  it('is named in the position to resume from', () => {
    const state = run(asked, delta('r2', 2, 0, 'ab'));
    expect(resumeFrom(state)).toEqual({
      sessionId: 's1',
      afterSeq: '2',
      reply: { messageId: 'r2', nextOffset: 2 },
    });
  });
});

describe('a gap', () => {
  it('is filled from before the reply that was running, and ends it', () => {
    const before = run(live, said(1, 'hi'), started(2), delta('r2', 2, 0, 'par'));
    const gap = run(before, opened(2000, 'GAP'));
    expect(gap).toMatchObject({ head: 2000, gap: { after: 1 } });
    const filled = run(gap, {
      type: 'gap_page',
      gap: gap.gap ?? {},
      last: true,
      messages: [{ messageId: 'r2', seq: '2', text: 'partial no more', reply: { finishReason: 'FINISH_REASON_STOP' } }],
    });
    expect(filled).toMatchObject({ gap: null, running: null });
    expect(texts(filled.items)).toEqual(['hi', 'partial no more']);
  });

  it('inside a gap begins where the first one did, and a page of the first does not close it', () => {
    const first = run(live, said(1, 'hi'), opened(2000, 'GAP'));
    const second = run(first, opened(4000, 'GAP'));
    expect(second.gap).toEqual({ after: 1 });
    expect(run(second, { type: 'gap_page', gap: first.gap ?? {}, last: true, messages: [] }).gap).toBe(second.gap);
  });
});

describe('messages on their way', () => {
  const queued: Action = { type: 'queued', clientMessageId: 'c1', text: 'hi' };

  it('are shown until their entry comes, before or after the ack', () => {
    const acked: Action = { type: 'acked', clientMessageId: 'c1', seq: 1 };
    const waiting = run(live, queued, acked);
    expect(waiting.pending).toHaveLength(1);
    for (const state of [run(waiting, said(1, 'hi', 'c1')), run(live, queued, said(1, 'hi', 'c1'), acked)]) {
      expect(state.pending).toEqual([]);
      expect(texts(state.items)).toEqual(['hi']);
    }
  });

  it('are not taken away by a message of somebody else with the same id', () => {
    const other: ServerEvent = {
      entry: {
        seq: '1',
        message: { messageId: 'm1', sender: { role: 'SENDER_ROLE_ADMIN', userId: 'bob' }, clientMessageId: 'c1' },
      },
    };
    expect(run(live, queued, other).pending).toHaveLength(1);
  });

  it('that were written long ago go once history is known', () => {
    const early = run(EMPTY, opened(90), queued, { type: 'acked', clientMessageId: 'c1', seq: 3 });
    expect(early.pending).toHaveLength(1);
    expect(run(early, history('more', { messageId: 'm90', seq: '90' })).pending).toEqual([]);
  });
});

describe('typing', () => {
  it('lapses after ten seconds and at the message', () => {
    const bob = { role: 'SENDER_ROLE_ADMIN', userId: 'bob' } as const;
    const state = run(live, { typing: { sender: bob, active: true } });
    expect(state.typing).toHaveLength(1);
    expect(run(state, { type: 'tick', now: 9_999 }).typing).toHaveLength(1);
    expect(run(state, { type: 'tick', now: 10_000 }).typing).toEqual([]);
    expect(run(state, { entry: { seq: '1', message: { sender: bob } } }).typing).toEqual([]);
    expect(run(live, { typing: { sender: you, active: true } }).typing).toEqual([]);
  });
});
