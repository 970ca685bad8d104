import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { api, endAll, history, URL_, visit } from './harness.mjs';

beforeEach(() => endAll());

test('a conversation is renamed and found by its name, by keyboard', async () => {
  const chat = await visit();
  await chat.send('Something to name');
  await chat.finished();
  await chat.page.getByRole('button', { name: 'Rename this conversation' }).focus();
  await chat.page.keyboard.press('Enter');
  const dialog = chat.page.getByRole('dialog');
  await dialog.getByRole('textbox', { name: 'Name' }).waitFor();
  const name = `Übung ${Date.now()}`;
  await chat.page.keyboard.type(name);
  await chat.page.keyboard.press('Enter');
  await dialog.waitFor({ state: 'hidden' });
  await chat.page.getByRole('heading', { level: 1, name }).waitFor();
  assert.equal((await api(`sessions/${chat.sessionId}`)).session.name, name);
  await chat.page.getByRole('searchbox').fill(name.toUpperCase());
  const found = chat.page.getByRole('region', { name: 'Found' });
  // A button to open it and one to delete it.
  await found.getByRole('button', { name: new RegExp(`^${name}`) }).waitFor();
  assert.equal(await found.locator('button.session').count(), 1);
  await chat.screenshot('life-search');
  await chat.page.getByRole('searchbox').fill('nothing has this name');
  await chat.page.getByRole('heading', { name: 'Nothing found' }).waitFor();
  await chat.close();
});

test('the last answer is made again, and the older one stays', async () => {
  const chat = await visit();
  await chat.send('Say it twice');
  await chat.finished();
  await chat.page.getByRole('button', { name: 'Answer again' }).click();
  await chat.finished(1);
  await chat.page.getByText('Replaced by the answer below').waitFor();
  assert.equal(await chat.page.getByRole('button', { name: 'Answer again' }).count(), 1);
  const replies = (await history(chat.sessionId)).filter((one) => one.reply);
  assert.equal(replies[0].reply.supersededBy, replies[1].messageId);
  await chat.close();
});

test('an ended conversation goes on', async () => {
  const chat = await visit();
  await chat.send('Not the end');
  await chat.finished();
  await chat.page.getByRole('button', { name: 'End this conversation' }).click();
  await chat.page.getByRole('dialog').getByRole('button', { name: 'End conversation' }).click();
  await chat.page.getByRole('button', { name: 'Go on with it' }).click();
  await chat.connected();
  await chat.send('Still here');
  await chat.finished(1);
  assert.equal(await chat.own.count(), 2);
  await chat.close();
});

test('whoever has a link sees the conversation, without a token, until it is revoked, on a phone too', async () => {
  const chat = await visit({ viewport: { width: 390, height: 780 } });
  await chat.send('Something to **share**');
  await chat.finished();
  await chat.page.getByRole('button', { name: 'Share this conversation' }).click();
  const dialog = chat.page.getByRole('dialog');
  await dialog.getByRole('button', { name: 'Make a link' }).click();
  const link = await dialog.getByRole('textbox', { name: 'The link' }).inputValue();
  assert.ok(link.startsWith(`${URL_}share.html#`), link);
  await chat.screenshot('life-share');
  const stranger = await chat.page.context().browser().newContext({ viewport: { width: 390, height: 780 } });
  const page = await stranger.newPage();
  const complaints = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(`${error}`));
  await page.goto(link);
  await page.getByText('Something to **share**').waitFor();
  assert.equal(await page.locator('article').count(), 2);
  assert.deepEqual(complaints, []);
  await dialog.getByRole('button', { name: 'Revoke' }).click();
  await dialog.getByRole('button', { name: 'Revoke' }).waitFor({ state: 'detached' });
  await page.reload();
  await page.getByText('This link does not work, or no longer.').waitFor();
  await stranger.close();
  await chat.close();
});
