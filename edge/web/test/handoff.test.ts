import { describe, expect, it } from 'vitest';
import { sayHelp } from '../src/app/wording';
import { EMPTY, reduce, type ConversationState, type ServerEvent, type Session } from '../src/client';

const bob = { role: 'SENDER_ROLE_ADMIN', userId: 'bob', displayName: 'Bob' } as const;

function run(state: ConversationState, ...events: ServerEvent[]): ConversationState {
  return events.reduce<ConversationState>((before, event) => reduce(before, { type: 'event', event, now: 0 }), state);
}

const live = run(EMPTY, {
  opened: { session: { sessionId: 's1', status: 'SESSION_STATUS_ACTIVE' }, verdict: 'RESUME_VERDICT_FRESH' },
});
const asked: ServerEvent = { entry: { seq: '1', helpRequested: {}, createTime: '2026-01-01T00:00:00Z' } };
const placed = (position: number, estimatedWait?: string): ServerEvent => ({
  help: { state: 'HELP_STATE_REQUESTED', position, ...(estimatedWait ? { estimatedWait } : {}) },
});
const taken: ServerEvent = { entry: { seq: '2', takenOver: { admin: bob } } };

describe('a request for a person', () => {
  it('is said with its place and the wait, as far as they are known', () => {
    expect(sayHelp(live.session)).toBeNull();
    expect(sayHelp(run(live, asked).session)).toMatch(/^You asked for a person\. The assistant/);
    expect(sayHelp(run(live, asked, placed(3)).session)).toContain('number 3 in the queue.');
    expect(sayHelp(run(live, asked, placed(2, '180s')).session)).toContain('number 2 in the queue, about 3 min.');
  });

  it('says who is there, and nothing once the assistant answers again', () => {
    const held = run(live, asked, taken);
    expect(held.session?.heldBy).toEqual(bob);
    expect(sayHelp(held.session)).toContain('talking to Bob');
    const released = run(held, { entry: { seq: '3', released: { admin: bob } } });
    expect(released.session?.help?.state).toBe('HELP_STATE_RELEASED');
    expect(sayHelp(released.session)).toBeNull();
  });

  it('waits again when the person is gone', () => {
    const lapsed = run(live, asked, taken, { entry: { seq: '3', released: { lapsed: true } } }, placed(1));
    expect(lapsed.session?.responder).toBe('RESPONDER_ASSISTANT');
    expect(sayHelp(lapsed.session)).toContain('number 1');
  });

  it('is over with the session, and a place without a session is nothing', () => {
    const ended: Session = { ...run(live, asked, placed(1)).session, status: 'SESSION_STATUS_ENDED' };
    expect(sayHelp(ended)).toBeNull();
    expect(run(EMPTY, placed(1))).toBe(EMPTY);
  });
});
