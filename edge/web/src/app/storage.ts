// What survives a reload, in this tab only. A browser that refuses storage costs the draft, not the chat.
import type { Outbox, Unsent } from '../client';

const PREFIX = 'chatbox.';

export function recall(key: string): string | null {
  try {
    return sessionStorage.getItem(PREFIX + key);
  } catch {
    return null;
  }
}

export function remember(key: string, value: string): void {
  try {
    if (value === '') sessionStorage.removeItem(PREFIX + key);
    else sessionStorage.setItem(PREFIX + key, value);
  } catch {
    // Full or refused.
  }
}

/** Forgets what is kept of one session. */
export function forget(sessionId: string): void {
  for (const kind of ['title', 'draft', 'outbox']) remember(`${kind}.${sessionId}`, '');
}

/** Forgets everything of this tab, for another person to use it. */
export function forgetAll(): void {
  try {
    for (const key of Object.keys(sessionStorage)) if (key.startsWith(PREFIX)) sessionStorage.removeItem(key);
  } catch {
    // Refused.
  }
}

export const outbox: Outbox = {
  load(sessionId) {
    try {
      const unsent: unknown = JSON.parse(recall(`outbox.${sessionId}`) ?? '[]');
      return Array.isArray(unsent) ? unsent.filter(isUnsent) : [];
    } catch {
      return [];
    }
  },
  save(sessionId, unsent) {
    remember(`outbox.${sessionId}`, unsent.length === 0 ? '' : JSON.stringify(unsent));
  },
};

function isUnsent(value: unknown): value is Unsent {
  const one = value as Partial<Unsent> | null;
  return typeof one?.clientMessageId === 'string' && typeof one.text === 'string';
}
