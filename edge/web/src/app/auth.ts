import { computed, signal } from '@preact/signals';
import type { TokenNeed } from '../client';
import { takeToken } from './address';
import { forgetAll, recall, remember } from './storage';

interface Claims {
  sub?: string;
  user_id?: string;
  name?: string;
  exp?: number;
}

/** The bearer token; empty when there is none. */
export const token = signal('');
/** Why the last token is of no use any more. */
export const refusal = signal<string | null>(null);
/** The token is about to expire: when, in milliseconds since the epoch. */
export const expiring = signal<number | null>(null);

const claims = computed(() => decode(token.value));
export const userName = computed(() => claims.value.name || subject(claims.value) || 'You');

/** Reads the token of the link, or the one this tab had. */
export function restoreToken(): void {
  const fresh = takeToken();
  if (fresh !== null) adopt(fresh);
  else token.value = recall('token') ?? '';
}

export function adopt(fresh: string): void {
  // Somebody else's drafts and unsent messages are not for this person.
  const user = subject(decode(fresh));
  if (recall('user') !== user) forgetAll();
  remember('user', user);
  remember('token', fresh);
  refusal.value = null;
  expiring.value = null;
  token.value = fresh;
  resolveWaiting(fresh);
}

export function refuse(reason: string): void {
  remember('token', '');
  expiring.value = null;
  refusal.value = reason;
  token.value = '';
  resolveWaiting(null);
}

let waiting: { promise: Promise<string | null>; resolve: (token: string | null) => void } | null = null;

/** Asks the person for a new token while the old one still works; null when it is too late for that. */
export function askForToken(why: TokenNeed): Promise<string | null> {
  const expiry = (claims.value.exp ?? 0) * 1000;
  if (why === 'refused' || expiry <= Date.now()) return Promise.resolve(null);
  if (waiting) return waiting.promise;
  let resolve: (token: string | null) => void = () => undefined;
  const promise = new Promise<string | null>((done) => {
    resolve = done;
  });
  waiting = { promise, resolve };
  expiring.value = expiry;
  return promise;
}

function resolveWaiting(answer: string | null): void {
  waiting?.resolve(answer);
  waiting = null;
}

function subject(of: Claims): string {
  return of.sub ?? of.user_id ?? '';
}

/** For display only: whether a token is good is decided by the server. */
function decode(jwt: string): Claims {
  try {
    const payload = (jwt.split('.')[1] ?? '').replaceAll('-', '+').replaceAll('_', '/');
    const bytes = Uint8Array.from(atob(payload), (char) => char.charCodeAt(0));
    const value: unknown = JSON.parse(new TextDecoder().decode(bytes));
    return typeof value === 'object' && value !== null ? value : {};
  } catch {
    return {};
  }
}

/** A token as it was pasted: alone, with a scheme, or inside the link that `chatbox dev` prints. */
export function extractToken(pasted: string): string | null {
  const match = /[\w-]+\.[\w-]+\.[\w-]+/.exec(pasted.includes('token=') ? (pasted.split('token=')[1] ?? '') : pasted);
  return match ? match[0] : null;
}
