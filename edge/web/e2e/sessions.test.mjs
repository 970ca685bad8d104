import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { api, endAll, TOKEN, TOKEN_B, URL_, visit } from './harness.mjs';

beforeEach(() => endAll());

test('a second conversation asks to end the first, which stays readable', async () => {
  // That there is one already is the server's answer, which a browser reports.
  const chat = await visit({ tolerate: [/409/] });
  const first = chat.sessionId;
  await chat.send('The first conversation');
  await chat.finished();
  await chat.page.getByRole('button', { name: 'New conversation', exact: true }).click();
  const dialog = chat.page.getByRole('dialog');
  await dialog.getByText('End the current conversation').waitFor();
  await chat.page.keyboard.press('Escape');
  await dialog.waitFor({ state: 'hidden' });
  assert.equal(chat.sessionId, first);
  await chat.page.getByRole('button', { name: 'New conversation', exact: true }).click();
  await dialog.getByRole('button', { name: 'End it and start a new one' }).click();
  await chat.page.getByText('What can I do for you?').waitFor();
  await chat.connected();
  assert.notEqual(chat.sessionId, first);
  await chat.send('The second conversation');
  await chat.finished();

  const row = chat.page.getByRole('navigation').getByRole('button', { name: /The first conversation/ }).first();
  await row.click();
  await chat.page.getByText('This conversation has ended').first().waitFor();
  assert.equal(await chat.own.first().innerText(), 'The first conversation');
  assert.equal(await chat.box.count(), 0);
  assert.equal((await api(`sessions/${first}`)).session.status, 'SESSION_STATUS_ENDED');

  await chat.page.goBack();
  await chat.connected();
  assert.equal(await chat.own.first().innerText(), 'The second conversation');
  await chat.page.goForward();
  await chat.page.getByText('This conversation has ended').first().waitFor();
  await chat.page.reload();
  await chat.page.getByText('This conversation has ended').first().waitFor();
  assert.equal(await chat.own.first().innerText(), 'The first conversation');
  await chat.close();
});

test('ending is asked for, told to other tabs, and takes no more messages', async () => {
  const chat = await visit();
  const other = await visit({ context: chat.page.context() });
  await chat.send('Soon over');
  await chat.finished();
  await chat.page.getByRole('button', { name: 'End this conversation' }).click();
  await chat.page.getByRole('dialog').getByRole('button', { name: 'End conversation' }).click();
  for (const tab of [chat, other]) {
    await tab.page.getByText('This conversation has ended').first().waitFor();
    assert.equal(await tab.box.count(), 0);
  }
  await other.close();
  await chat.close();
});

test('deleting is asked for, and the conversation is gone here, in other tabs and on the server', async () => {
  // That it is not there any more is what is asked of the server at the end.
  const chat = await visit({ tolerate: [/404/] });
  const other = await visit({ context: chat.page.context(), tolerate: [/404/, /WebSocket connection/] });
  await chat.send('Soon forgotten');
  await chat.finished();
  const doomed = chat.sessionId;
  const row = chat.page.getByRole('navigation').locator('li', { hasText: 'Soon forgotten' });
  await row.hover();
  await row.getByRole('button', { name: /Delete/ }).click();
  const dialog = chat.page.getByRole('dialog');
  await dialog.getByText('Soon forgotten').waitFor();
  await dialog.getByRole('button', { name: 'Cancel' }).click();
  await dialog.waitFor({ state: 'hidden' });
  assert.equal((await api(`sessions/${doomed}`)).session.status, 'SESSION_STATUS_ACTIVE');
  await row.hover();
  await row.getByRole('button', { name: /Delete/ }).click();
  await dialog.getByRole('button', { name: 'Delete for good' }).click();
  await chat.page.waitForURL((url) => !url.hash.includes(doomed));
  // Another tab sees its end at once, and that it is gone when it asks for it again.
  await other.page.getByText('This conversation has ended').first().waitFor();
  await other.page.reload();
  await other.page.getByText('does not exist, or it is not yours').waitFor();
  for (const tab of [chat, other]) {
    await tab.connected();
    await tab.page.getByText('What can I do for you?').waitFor();
    assert.equal(await tab.page.getByRole('navigation').getByText('Soon forgotten').count(), 0);
    assert.notEqual(tab.sessionId, doomed);
  }
  const answer = await fetch(new URL(`api/v1/sessions/${doomed}`, URL_), { headers: { authorization: `Bearer ${TOKEN}` } });
  assert.equal(answer.status, 404);
  const { sessions = [] } = await api('sessions');
  assert.ok(sessions.every((one) => one.sessionId !== doomed));
  await other.close();
  await chat.close();
});

test('a conversation of somebody else is not there', async () => {
  await endAll(TOKEN_B);
  const bob = await visit({ token: TOKEN_B });
  await bob.send('A secret of Bob');
  await bob.finished();
  const chat = await visit({ tolerate: [/404/, /WebSocket connection/] });
  const mine = chat.sessionId;
  await chat.page.goto(`${new URL(chat.page.url()).href.split('#')[0]}#session=${bob.sessionId}`);
  await chat.page.reload();
  await chat.page.getByText('does not exist, or it is not yours').waitFor();
  await chat.connected();
  assert.equal(chat.sessionId, mine);
  assert.equal(await chat.page.getByText('A secret of Bob').count(), 0);
  assert.equal(await bob.own.count(), 1);
  await chat.close();
  await bob.close();
});
