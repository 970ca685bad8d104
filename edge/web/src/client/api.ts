import type {
  CreateSessionRequestJson,
  CreateSessionResponseJson,
  CreateShareRequestJson,
  CreateShareResponseJson,
  EndSessionResponseJson,
  GetSessionResponseJson,
  GetSharedSessionResponseJson,
  ListModelsResponseJson,
  ListSessionsRequestJson,
  ListSharesResponseJson,
  ReopenSessionResponseJson,
  UpdateSessionResponseJson,
} from './gen/chatbox/v1/chat_core_pb';
import { ChatboxError } from './errors';
import type { MessagesPage, Session, SessionsPage } from './wire';

export interface ApiOptions {
  /** Where the product is served, e.g. `https://example.org/chatbox/`. */
  base: URL;
  /** The current bearer token. */
  token(): string;
  fetch?: typeof fetch;
  timeoutMs?: number;
}

export type ShareRequest = Omit<CreateShareRequestJson, 'sessionId'>;

export interface MessagesQuery {
  pageSize?: number;
  pageToken?: string;
  order?: 'PAGE_ORDER_OLDEST_FIRST';
  afterSeq?: number;
}

type Query = Readonly<Record<string, string | number | undefined>>;

/** The unary calls of the contract as the edge offers them over HTTP. Failures are [`ChatboxError`]s. */
export class Api {
  readonly #options: ApiOptions;

  constructor(options: ApiOptions) {
    this.#options = options;
  }

  models(): Promise<ListModelsResponseJson> {
    return this.#call('GET', 'models');
  }

  sessions(query: ListSessionsRequestJson = {}): Promise<SessionsPage> {
    return this.#call('GET', 'sessions', { ...query });
  }

  async createSession(request: CreateSessionRequestJson = {}): Promise<Session> {
    const made = await this.#call<CreateSessionResponseJson>('POST', 'sessions', {}, request);
    return made.session ?? {};
  }

  async session(sessionId: string): Promise<Session> {
    const found = await this.#call<GetSessionResponseJson>('GET', `sessions/${encodeURIComponent(sessionId)}`);
    return found.session ?? {};
  }

  messages(sessionId: string, query: MessagesQuery = {}): Promise<MessagesPage> {
    return this.#call('GET', `sessions/${encodeURIComponent(sessionId)}/messages`, { ...query });
  }

  async endSession(sessionId: string): Promise<Session> {
    const path = `sessions/${encodeURIComponent(sessionId)}/end`;
    const ended = await this.#call<EndSessionResponseJson>('POST', path, {}, {});
    return ended.session ?? {};
  }

  async renameSession(sessionId: string, name: string): Promise<Session> {
    const path = `sessions/${encodeURIComponent(sessionId)}`;
    const renamed = await this.#call<UpdateSessionResponseJson>('PATCH', path, {}, { name });
    return renamed.session ?? {};
  }

  async reopenSession(sessionId: string): Promise<Session> {
    const path = `sessions/${encodeURIComponent(sessionId)}/reopen`;
    const reopened = await this.#call<ReopenSessionResponseJson>('POST', path, {}, {});
    return reopened.session ?? {};
  }

  /** Makes a link; its secret is told this once. */
  createShare(sessionId: string, request: ShareRequest): Promise<CreateShareResponseJson> {
    return this.#call('POST', `sessions/${encodeURIComponent(sessionId)}/shares`, {}, request);
  }

  shares(sessionId: string): Promise<ListSharesResponseJson> {
    return this.#call('GET', `sessions/${encodeURIComponent(sessionId)}/shares`);
  }

  async revokeShare(sessionId: string, shareId: string): Promise<void> {
    const path = `sessions/${encodeURIComponent(sessionId)}/shares/${encodeURIComponent(shareId)}/revoke`;
    await this.#call<object>('POST', path, {}, {});
  }

  /** What a link shows, to whoever has its secret: that is the token then. */
  shared(shareId: string, pageToken = ''): Promise<GetSharedSessionResponseJson> {
    return this.#call('GET', `shared/${encodeURIComponent(shareId)}`, { pageToken });
  }

  /** Destroys a session and everything in it, for good. */
  async deleteSession(sessionId: string): Promise<void> {
    await this.#call('DELETE', `sessions/${encodeURIComponent(sessionId)}`);
  }

  async #call<T>(
    method: 'GET' | 'POST' | 'PATCH' | 'DELETE',
    path: string,
    query: Query = {},
    body?: object,
  ): Promise<T> {
    const url = new URL(`api/v1/${path}`, this.#options.base);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined && value !== '') url.searchParams.set(name, String(value));
    }
    const headers: Record<string, string> = { authorization: `Bearer ${this.#options.token()}` };
    if (body !== undefined) headers['content-type'] = 'application/json';
    const request: RequestInit = {
      method,
      headers,
      cache: 'no-store',
      credentials: 'omit',
      signal: AbortSignal.timeout(this.#options.timeoutMs ?? 15_000),
    };
    if (body !== undefined) request.body = JSON.stringify(body);
    const send = this.#options.fetch ?? fetch;
    let response: Response;
    let text: string;
    try {
      response = await send(url, request);
      text = await response.text();
    } catch {
      throw ChatboxError.unreachable();
    }
    const answer = parse(text);
    if (!response.ok) throw ChatboxError.fromHttp(response.status, answer, response.headers.get('retry-after'));
    // A proxy's own page with status 200 is no answer of this API.
    if (answer === undefined) throw ChatboxError.unreachable();
    return answer as T;
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
