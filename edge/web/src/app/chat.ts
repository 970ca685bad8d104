// The conversation on the screen: one client, published to the components at the pace of the screen.
import { computed, signal } from '@preact/signals';
import { Api, Conversation, EMPTY, type ConversationState, type LinkStatus } from '../client';
import { BASE, SOCKET_URL, showSession } from './address';
import { askForToken, refuse, token } from './auth';
import { outbox, recall, remember } from './storage';
import { sayError } from './wording';

export const api = new Api({ base: BASE, token: () => token.value });

interface View {
  readonly state: ConversationState;
  readonly status: LinkStatus;
  readonly runningReply: string | null;
  readonly lastReply: string | null;
  readonly loadingHistory: boolean;
  readonly historyFailed: boolean;
}

const NOTHING: View = {
  state: EMPTY,
  status: { phase: 'idle' },
  runningReply: null,
  lastReply: null,
  loadingHistory: false,
  historyFailed: false,
};

export const view = signal<View>(NOTHING);
/** Grows with every change of conversation, so that the log and the composer start over. */
export const generation = signal(0);
/** The last session that was destroyed while it was on the screen. */
export const destroyed = signal('');
/** Something to tell the person once. */
export const toast = signal<string | null>(null);

export const session = computed(() => view.value.state.session);
export const sessionId = computed(() => session.value?.sessionId ?? '');
export const isEnded = computed(() => session.value?.status === 'SESSION_STATUS_ENDED');

let current: Conversation | null = null;
let wanted = '';
let scheduled = false;

/** Shows a session; an empty id is the active one, or a new one. */
export function show(id: string, ended = false, push = false): void {
  current?.close();
  wanted = id;
  const conversation: Conversation = new Conversation({
    api,
    socketUrl: SOCKET_URL,
    token: () => token.value,
    refreshToken: askForToken,
    sessionId: id,
    ended,
    outbox,
    onChange: () => {
      if (current === conversation) schedule();
    },
  });
  current = conversation;
  view.value = NOTHING;
  generation.value += 1;
  showSession(id, push);
  conversation.start();
}

export function leave(): void {
  current?.close();
  current = null;
  view.value = NOTHING;
}

/** At most once a frame: a replay of a thousand entries is one rendering. */
function schedule(): void {
  if (scheduled) return;
  scheduled = true;
  // A hidden page gets no frames.
  if (document.hidden) setTimeout(publish, 100);
  else requestAnimationFrame(publish);
}

function publish(): void {
  scheduled = false;
  if (!current) return;
  view.value = {
    state: current.state,
    status: current.status,
    runningReply: current.runningReply,
    lastReply: current.lastReply,
    loadingHistory: current.loadingHistory,
    historyFailed: current.historyError !== null,
  };
  const id = current.state.session?.sessionId;
  if (id) showSession(id, false);
  const { status } = current;
  if (status.phase !== 'closed' || !status.cause) return;
  if (status.cause.code === 'UNAUTHENTICATED') {
    leave();
    refuse('Your access has expired or is not accepted here.');
  } else if (status.cause.code === 'NOT_FOUND' && id) {
    destroyed.value = id;
    toast.value = 'The conversation was deleted.';
    show('');
  } else if (status.cause.code === 'NOT_FOUND' && wanted !== '') {
    toast.value = 'That conversation does not exist, or it is not yours.';
    show('');
  }
}

export function send(text: string): void {
  current?.send(text);
}

export function resend(clientMessageId: string): void {
  current?.resend(clientMessageId);
}

export function discard(clientMessageId: string): void {
  current?.discard(clientMessageId);
}

export async function stop(): Promise<void> {
  try {
    await current?.stop();
  } catch (error) {
    toast.value = sayError(error, 'The answer could not be stopped.');
  }
}

export async function regenerate(): Promise<void> {
  try {
    await current?.regenerate();
  } catch (error) {
    toast.value = sayError(error, 'The answer could not be made again.');
  }
}

export async function selectModel(model: string): Promise<void> {
  try {
    await current?.selectModel(model);
  } catch (error) {
    toast.value = sayError(error, 'The model could not be chosen.');
  }
}

export async function requestHelp(): Promise<void> {
  try {
    await current?.requestHelp();
  } catch (error) {
    toast.value = sayError(error, 'Nobody could be asked.');
  }
}

export function loadOlder(): void {
  void current?.loadOlder();
}

export function read(seq: number): void {
  current?.read(seq);
}

export function typing(active: boolean): void {
  current?.typing(active);
}

/** Comes back at once instead of waiting, or after a close that was final. */
export function reconnect(): void {
  if (view.value.status.phase === 'closed') current?.start();
  else current?.wake();
}

export function watchNetwork(): void {
  window.addEventListener('online', () => current?.wake());
  window.addEventListener('offline', () => current?.sleep());
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden) current?.wake();
  });
}

export function draft(id: string): string {
  return recall(`draft.${id}`) ?? '';
}

export function keepDraft(id: string, text: string): void {
  remember(`draft.${id}`, text);
}
