import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { endAll, history, TOKEN, TOKEN_B, URL_, visit } from './harness.mjs';

beforeEach(() => endAll());

const PAYLOADS = [
  '<img src=x onerror="window.pwned=1">',
  '<script>window.pwned=1</script>',
  '<svg onload="window.pwned=1"><animate onbegin="window.pwned=1" attributeName=x dur=1s></svg>',
  '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe>',
  '<a href="javascript:window.pwned=1">raw</a>',
  '[click](javascript:window.pwned=1) [upper](JaVaScRiPt:window.pwned=1) [data](data:text/html,<script>pwned=1</script>)',
  '[entity](&#106;avascript:window.pwned=1) <javascript:window.pwned=1>',
  '![picture](https://example.org/pixel.png "x\\" onerror=\\"window.pwned=1") ![js](javascript:window.pwned=1)',
  '[good](https://example.org/?a=1&b="2") and https://example.org/plain',
  '<style>*{display:none}</style><form action="https://example.org"><input name=q></form>',
  '```html\n<script>window.pwned=1</script>\n```',
  '`<b onmouseover=window.pwned=1>`',
];

test('nothing in a message runs, whoever wrote it and wherever it is shown', async () => {
  const chat = await visit();
  for (const [index, payload] of PAYLOADS.entries()) {
    await chat.send(payload);
    const reply = await chat.finished(index);
    for (const link of await reply.locator('a').all()) {
      assert.match(await link.getAttribute('href'), /^(https?:|mailto:)/i);
      assert.equal(await link.getAttribute('rel'), 'noopener noreferrer nofollow');
    }
  }
  const log = chat.page.getByRole('log');
  const live = 'script, iframe, img, style, form, input, object, embed, [onerror], [onload], [onclick], [style], [srcdoc]';
  assert.equal(await log.locator(live).count(), 0);
  assert.equal(await log.locator('.markdown svg, .plain *').count(), 0);
  // The first message is also the name of the session in the list and in the heading.
  const title = PAYLOADS[0];
  await chat.page.getByRole('heading', { level: 1, name: title }).waitFor();
  assert.equal(await chat.page.locator('.session-title').first().textContent(), title);
  for (const link of await log.locator('a').all()) await link.hover();
  await chat.page.reload();
  await chat.connected();
  await chat.replies.nth(PAYLOADS.length - 1).waitFor();
  assert.equal(await chat.page.evaluate(() => window.pwned), undefined);
  const stored = await history(chat.sessionId);
  assert.deepEqual(stored.filter((one) => !one.reply).map((one) => one.text), PAYLOADS);
  await chat.close();
});

test('the token leaves the address bar and stays in this tab only', async () => {
  const chat = await visit();
  assert.ok(!chat.page.url().includes(TOKEN));
  await chat.page.goBack();
  assert.ok(!chat.page.url().includes(TOKEN));
  await chat.page.goto(URL_);
  await chat.connected();
  assert.equal(await chat.page.evaluate(() => localStorage.length + document.cookie.length), 0);
  await chat.close();
});

test('without a token the page explains itself and takes a pasted one', async () => {
  const chat = await visit({ token: null });
  await chat.page.getByText('needs a personal link').waitFor();
  await chat.screenshot('signin');
  const field = chat.page.getByLabel('Token or link');
  await field.fill('nonsense');
  await chat.page.keyboard.press('Enter');
  await chat.page.getByText('does not look like a token').waitFor();
  await field.fill(`${URL_}#token=${TOKEN}`);
  await chat.page.keyboard.press('Enter');
  await chat.connected();
  await chat.page.getByRole('button', { name: 'Sign out' }).click();
  await chat.page.getByText('signed out').waitFor();
  assert.equal(await chat.page.evaluate(() => sessionStorage.length), 0);
  await chat.close();
});

test('the next person at the same tab sees nothing of the one before', async () => {
  await endAll(TOKEN_B);
  const chat = await visit();
  await chat.send('Something of Alice');
  await chat.finished();
  await chat.box.fill('A draft of Alice');
  await chat.page.goto(`${URL_}#token=${TOKEN_B}`);
  await chat.page.getByText('What can I do for you?').waitFor();
  await chat.connected();
  assert.equal(await chat.box.inputValue(), '');
  assert.equal(await chat.page.getByText('of Alice').count(), 0);
  const kept = await chat.page.evaluate(() => JSON.stringify(Object.entries(sessionStorage)));
  assert.ok(!kept.includes('of Alice'));
  await chat.close();
});

test('a token that is not accepted is refused once and said so', async () => {
  const chat = await visit({ token: null, tolerate: [/401/, /WebSocket connection/] });
  const forged = `${TOKEN.split('.').slice(0, 2).join('.')}.${'A'.repeat(43)}`;
  await chat.page.getByLabel('Token or link').fill(forged);
  await chat.page.keyboard.press('Enter');
  await chat.page.getByText('not accepted here').waitFor();
  await chat.close();
});
