// Runs the page in a real browser against a running product. CHATBOX_URL names the product, e.g.
// http://127.0.0.1:8080/chatbox/; CHATBOX_TOKEN and CHATBOX_TOKEN_B are tokens of two users.
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { after, before } from 'node:test';
import { chromium } from 'playwright-core';

export const URL_ = need('CHATBOX_URL');
export const TOKEN = need('CHATBOX_TOKEN');
export const TOKEN_B = need('CHATBOX_TOKEN_B');
const RESULTS = fileURLToPath(new URL('../test-results/', import.meta.url));
const EXECUTABLE = process.env.CHROMIUM ?? '/usr/bin/chromium';

function need(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: see edge/web/README.md`);
  return value;
}

let browser;

before(async () => {
  mkdirSync(RESULTS, { recursive: true });
  browser = await chromium.launch({
    executablePath: EXECUTABLE,
    args: [
      ...['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'],
      ...['--disable-background-networking', '--disable-component-update'],
    ],
  });
});

after(() => browser?.close());

/** Calls the HTTP API as a user. */
export async function api(path, { token = TOKEN, body } = {}) {
  const response = await fetch(new URL(`api/v1/${path}`, URL_), {
    method: body === undefined ? 'GET' : 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  assert.ok(response.ok, `${path} answered ${response.status}`);
  return response.json();
}

/** All stored messages of a session, oldest first. */
export async function history(sessionId, token = TOKEN) {
  const { messages = [] } = await api(`sessions/${sessionId}/messages?order=PAGE_ORDER_OLDEST_FIRST&pageSize=1000`, { token });
  return messages;
}

/** Ends what is open, so that a test begins with nothing. */
export async function endAll(token = TOKEN) {
  const { sessions = [] } = await api('sessions?status=SESSION_STATUS_ACTIVE', { token });
  for (const { sessionId } of sessions) await api(`sessions/${sessionId}/end`, { token, body: {} });
}

/**
 * A window with the page in it. What the browser complains about is kept and must be nothing at the end; `tolerate`
 * names complaints that the test itself provokes.
 */
export async function visit(options = {}) {
  const { token = TOKEN, tolerate = [], context: shared, ...contextOptions } = options;
  const context = shared ?? (await browser.newContext({ viewport: { width: 1180, height: 780 }, ...contextOptions }));
  await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: new URL(URL_).origin });
  const page = await context.newPage();
  const complaints = [];
  const frames = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(`${error}`));
  page.on('websocket', (socket) => {
    socket.on('framereceived', ({ payload }) => frames.push({ ...JSON.parse(payload), at: frames.length }));
  });
  await page.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) => console.error(`CSP ${event.violatedDirective}`));
    // To cut a connection as a network would, from the inside.
    const sockets = (window.testSockets = []);
    window.WebSocket = class extends WebSocket {
      constructor(...args) {
        super(...args);
        sockets.push(this);
      }
    };
  });
  await page.goto(token === null ? URL_ : `${URL_}#token=${token}`);
  const chat = new Chat(page, frames, complaints, tolerate);
  if (token !== null) await chat.connected();
  return chat;
}

export class Chat {
  constructor(page, frames, complaints, tolerate) {
    Object.assign(this, { page, frames, complaints, tolerate });
    this.box = page.getByRole('textbox', { name: 'Message' });
    this.replies = page.locator('article.reply');
    this.own = page.locator('article.own');
  }

  get sessionId() {
    return new URLSearchParams(new URL(this.page.url()).hash.slice(1)).get('session');
  }

  async connected() {
    await this.page.locator('.status[data-phase=live]').waitFor();
    await this.page.getByText('Loading…').waitFor({ state: 'detached' });
  }

  async send(text) {
    await this.box.fill(text);
    await this.page.keyboard.press('Enter');
  }

  /** Waits until the nth reply, from 0, shows some text and still runs. */
  async streaming(index = 0) {
    const reply = this.replies.nth(index);
    await reply.locator('.markdown').waitFor();
    assert.equal(await reply.getAttribute('data-state'), 'running');
    return reply;
  }

  /** Waits for the end of the nth reply, from 0. */
  async finished(index = 0) {
    const reply = this.replies.nth(index);
    await reply.and(this.page.locator('[data-state=finished]')).waitFor({ timeout: 120_000 });
    return reply;
  }

  /** The text of a finished reply, by its own copy button. */
  async copied(reply) {
    await reply.getByRole('button', { name: 'Copy answer' }).click();
    await reply.getByText('Copied').waitFor();
    return this.page.evaluate(() => navigator.clipboard.readText());
  }

  /** Ids of the messages on the screen, in order. */
  ids() {
    return this.page.locator('[data-message]').evaluateAll((all) => all.map((one) => one.dataset.message));
  }

  /** The text a reply had in the deltas and snapshots of the socket. */
  streamed(messageId) {
    let bytes = Buffer.alloc(0);
    for (const { replyDelta, replySnapshot } of this.frames) {
      const piece = replySnapshot ?? replyDelta;
      if (piece?.messageId !== messageId) continue;
      bytes = Buffer.concat([bytes.subarray(0, piece.offset ?? 0), Buffer.from(piece.text ?? '')]);
    }
    return bytes.toString();
  }

  async screenshot(name) {
    await this.page.screenshot({ path: `${RESULTS}${name}.png` });
  }

  cut() {
    return this.page.evaluate(() => window.testSockets.at(-1).close());
  }

  /** Closes the window; the browser must have had nothing to say. */
  async close() {
    const left = this.complaints.filter((text) => !this.tolerate.some((pattern) => pattern.test(text)));
    await this.page.close();
    assert.deepEqual(left, []);
  }
}

/** What is on the screen is what is stored, in order and once. */
export async function matchesHistory(chat, token = TOKEN) {
  const stored = await history(chat.sessionId, token);
  assert.deepEqual(await chat.ids(), stored.map((one) => one.messageId));
  return stored;
}
