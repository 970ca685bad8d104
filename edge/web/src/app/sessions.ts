// The list of conversations, and beginning and ending them.
import { computed, effect, signal } from '@preact/signals';
import { ChatboxError, randomId, type Model, type Session } from '../client';
import { api, destroyed, session, sessionId, show, toast, view } from './chat';
import { forget, recall, remember } from './storage';
import { sayError } from './wording';

export const models = signal<readonly Model[]>([]);
export const defaultModel = signal('');

const listed = signal<readonly Session[]>([]);
const next = signal('');
/** Names made from the first message, for sessions that have none. */
const titles = signal<Readonly<Record<string, string>>>({});

export const hasMore = computed(() => next.value !== '');
/** What the person was asked to confirm. */
export const question = signal<'end' | 'replace' | 'rename' | 'share' | 'delete' | null>(null);
/** The conversation that is asked about before it is deleted. */
export const doomed = signal<Session | null>(null);
/** What is looked for in the names of conversations. */
export const searched = signal('');
/** Those that were found; null while nothing is looked for. */
export const found = signal<readonly Session[] | null>(null);
/** A beginning or an ending is under way. */
export const busy = signal(false);

/** Last activity first; those that ended before anything was said are nothing to come back to. */
export const sessions = computed<readonly Session[]>(() =>
  listed.value
    .filter((one) => (one.messageCount ?? 0) > 0 || one.status === 'SESSION_STATUS_ACTIVE')
    .toSorted((left, right) => activity(right) - activity(left)),
);

/** The session that takes messages now; there is one at most by default. */
export const active = computed(() => sessions.value.find((one) => one.status === 'SESSION_STATUS_ACTIVE'));

function activity(one: Session): number {
  return Date.parse(one.lastActivityTime ?? one.createTime ?? '') || 0;
}

export function titleOf(one: Session): string {
  const known = one.name || titles.value[one.sessionId ?? ''];
  return known || ((one.messageCount ?? 0) === 0 ? 'New conversation' : 'Conversation');
}

export function modelName(id: string | undefined): string {
  return models.value.find((model) => model.id === id)?.name || id || '';
}

export function isDemo(id: string | undefined): boolean {
  return models.value.find((model) => model.id === id)?.demo ?? false;
}

/** Grows when somebody else may be next at this tab: what was asked for before must not be shown or kept after. */
let era = 0;

export function forgetSessions(): void {
  era += 1;
  listed.value = [];
  next.value = '';
  titles.value = {};
  models.value = [];
  searched.value = '';
  found.value = null;
  question.value = null;
  doomed.value = null;
}

export async function loadModels(): Promise<void> {
  try {
    const answer = await api.models();
    models.value = answer.models ?? [];
    defaultModel.value = answer.defaultModel ?? '';
  } catch {
    // Only names and the demo label hang on it; the next start tries again.
  }
}

export async function loadSessions(): Promise<void> {
  const asked = era;
  try {
    const page = await api.sessions();
    if (asked !== era) return;
    const live = session.value;
    const stored = page.sessions ?? [];
    listed.value = live ? [...stored.filter((one) => one.sessionId !== live.sessionId), live] : stored;
    next.value = page.nextPageToken ?? '';
    void nameSessions();
  } catch (error) {
    if (listed.value.length > 0 || asked !== era) return;
    const failure = ChatboxError.from(error);
    if (failure.code !== 'UNAUTHENTICATED') toast.value = sayError(failure, 'The conversations could not be loaded.');
  }
}

export async function loadMore(): Promise<void> {
  const asked = era;
  try {
    const page = await api.sessions({ pageToken: next.value });
    if (asked !== era) return;
    const known = new Set(listed.value.map((one) => one.sessionId));
    listed.value = [...listed.value, ...(page.sessions ?? []).filter((one) => !known.has(one.sessionId))];
    next.value = page.nextPageToken ?? '';
    void nameSessions();
  } catch (error) {
    toast.value = sayError(error, 'More conversations could not be loaded.');
  }
}

/** How many first messages are fetched for one list: names are a comfort. */
const MAX_NAMED = 20;
const TITLE_LENGTH = 60;

async function nameSessions(): Promise<void> {
  const nameless = listed.value.filter(
    (one) => !one.name && (one.messageCount ?? 0) > 0 && !titles.value[one.sessionId ?? ''],
  );
  const asked = era;
  for (const one of nameless.slice(0, MAX_NAMED)) {
    const id = one.sessionId ?? '';
    const kept = recall(`title.${id}`);
    if (kept !== null) {
      setTitle(id, kept);
      continue;
    }
    try {
      const page = await api.messages(id, { order: 'PAGE_ORDER_OLDEST_FIRST', pageSize: 1 });
      if (asked !== era) return;
      setTitle(id, page.messages?.[0]?.text ?? '');
    } catch {
      return;
    }
  }
}

function setTitle(id: string, text: string): void {
  const line = text.trim().split('\n', 1)[0] ?? '';
  if (id === '' || line === '' || titles.value[id]) return;
  const title = line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH).trimEnd()}…` : line;
  remember(`title.${id}`, title);
  titles.value = { ...titles.value, [id]: title };
}

/** The session on the screen is listed as its live feed knows it. */
effect(() => {
  const live = session.value;
  if (!live?.sessionId) return;
  listed.value = [...listed.peek().filter((one) => one.sessionId !== live.sessionId), live];
});

/** The session on the screen is named from its own first message. */
effect(() => {
  const { items, older } = view.value.state;
  if (older.state !== 'none') return;
  const first = items.find((item) => item.kind === 'message');
  if (first?.kind === 'message' && !titles.peek()[sessionId.peek()]) setTitle(sessionId.peek(), first.message.text ?? '');
});

export function choose(one: Session): void {
  if (one.sessionId && one.sessionId !== sessionId.value) {
    show(one.sessionId, one.status === 'SESSION_STATUS_ENDED', true);
  }
}

/** Begins a conversation; by default a person has one at a time, so it may first have to be asked. */
export async function begin(): Promise<void> {
  const empty = active.value;
  if (empty?.sessionId && (empty.messageCount ?? 0) === 0) {
    choose(empty);
    return;
  }
  await act('A conversation could not be started.', async () => {
    try {
      const made = await api.createSession({ requestId: randomId() });
      show(made.sessionId ?? '', false, true);
      await loadSessions();
    } catch (error) {
      if (!isLimit(error)) throw error;
      await loadSessions();
      // Another window may have begun one already.
      const other = active.value;
      if (other && (other.messageCount ?? 0) === 0) choose(other);
      else question.value = 'replace';
    }
  });
}

function isLimit(error: unknown): boolean {
  const failure = ChatboxError.from(error);
  return failure.reason === 'SESSION_LIMIT' || failure.code === 'FAILED_PRECONDITION';
}

/** Ends the active conversation and begins another. */
export async function replace(model = ''): Promise<void> {
  question.value = null;
  await act('The conversation could not be ended.', async () => {
    if (active.value?.sessionId) await api.endSession(active.value.sessionId);
    const made = await api.createSession({ requestId: randomId(), ...(model === '' ? {} : { model }) });
    show(made.sessionId ?? '', false, true);
    await loadSessions();
  });
}

export async function rename(name: string): Promise<void> {
  question.value = null;
  await act('The conversation could not be renamed.', async () => {
    const renamed = await api.renameSession(sessionId.value, name);
    listed.value = listed.value.map((one) => (one.sessionId === renamed.sessionId ? renamed : one));
    // The live feed tells the one on the screen; an ended one has none.
    if (renamed.status === 'SESSION_STATUS_ENDED') show(renamed.sessionId ?? '', true);
  });
}

/** Goes on with an ended conversation; by default a person has one at a time. */
export async function reopen(): Promise<void> {
  await act('The conversation could not be continued.', async () => {
    const reopened = await api.reopenSession(sessionId.value);
    show(reopened.sessionId ?? '', false);
    await loadSessions();
  });
}

/** How many pages without a hit are looked through for one search. */
const MAX_SEARCH_PAGES = 10;

export async function search(text: string): Promise<void> {
  searched.value = text;
  const wanted = text.trim();
  if (wanted === '') {
    found.value = null;
    return;
  }
  const asked = era;
  try {
    const hits: Session[] = [];
    let pageToken = '';
    for (let pages = 0; pages < MAX_SEARCH_PAGES && hits.length < 50; pages += 1) {
      const page = await api.sessions({ nameContains: wanted.slice(0, 100), pageToken });
      if (asked !== era || searched.value.trim() !== wanted) return;
      hits.push(...(page.sessions ?? []));
      pageToken = page.nextPageToken ?? '';
      if (pageToken === '') break;
    }
    found.value = hits;
  } catch (error) {
    toast.value = sayError(error, 'The conversations could not be searched.');
  }
}

export async function end(): Promise<void> {
  question.value = null;
  await act('The conversation could not be ended.', async () => {
    await api.endSession(sessionId.value);
    await loadSessions();
  });
}

export function askToDelete(one: Session): void {
  doomed.value = one;
  question.value = 'delete';
}

/** Destroys the conversation that was asked about. */
export async function erase(): Promise<void> {
  const id = doomed.value?.sessionId ?? '';
  question.value = null;
  doomed.value = null;
  if (id === '') return;
  await act('The conversation could not be deleted.', async () => {
    await api.deleteSession(id);
    drop(id);
    // Its own feed may have said so already.
    if (id === sessionId.value) show('');
  });
}

/** Nothing of a destroyed conversation stays in this tab. */
function drop(id: string): void {
  listed.value = listed.peek().filter((one) => one.sessionId !== id);
  found.value = found.peek()?.filter((one) => one.sessionId !== id) ?? null;
  const { [id]: _, ...others } = titles.peek();
  titles.value = others;
  forget(id);
}

effect(() => {
  if (destroyed.value !== '') drop(destroyed.value);
});

async function act(failed: string, work: () => Promise<void>): Promise<void> {
  if (busy.value) return;
  busy.value = true;
  try {
    await work();
  } catch (error) {
    toast.value = sayError(error, failed);
  } finally {
    busy.value = false;
  }
}
