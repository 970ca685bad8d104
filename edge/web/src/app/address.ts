// The address bar: the token comes in its fragment and leaves it at once; the session stays, so that a reload, the
// back button and a bookmark find it.

/** Where the product is served. */
export const BASE = new URL('.', document.baseURI);

export const SOCKET_URL = new URL('ws', BASE);
SOCKET_URL.protocol = BASE.protocol === 'https:' ? 'wss:' : 'ws:';

function fragment(): URLSearchParams {
  return new URLSearchParams(location.hash.slice(1));
}

/** The token of the link, once: it is removed from the address bar and from this history entry. */
export function takeToken(): string | null {
  const values = fragment();
  const token = values.get('token');
  if (token === null) return null;
  values.delete('token');
  replace(values);
  return token.trim() || null;
}

export function sessionInAddress(): string {
  return fragment().get('session') ?? '';
}

/** Names the session in the address bar; `push` makes a step for the back button. */
export function showSession(sessionId: string, push: boolean): void {
  if (sessionInAddress() === sessionId) return;
  const values = new URLSearchParams(sessionId === '' ? {} : { session: sessionId });
  if (push) history.pushState(null, '', address(values));
  else replace(values);
}

function replace(values: URLSearchParams): void {
  history.replaceState(null, '', address(values));
}

function address(values: URLSearchParams): string {
  const hash = values.toString();
  return location.pathname + location.search + (hash === '' ? '' : `#${hash}`);
}
