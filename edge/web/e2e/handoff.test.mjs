import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { api, endAll, visit } from './harness.mjs';

const ADMIN = process.env.CHATBOX_TOKEN_ADMIN;

beforeEach(() => endAll());

const act = (chat, what) =>
  api(`admin/sessions/${chat.sessionId}/${what}`, { token: ADMIN, body: { reason: 'a test of the page' } });

test('a visitor asks for a person by keyboard, sees the place over a reload, and who speaks', { skip: !ADMIN }, async () => {
  const chat = await visit();
  const notice = chat.page.locator('.help-notice');
  const button = chat.page.getByRole('button', { name: 'Talk to a person' });
  await button.focus();
  await chat.page.keyboard.press('Enter');
  await notice.getByText('number 1 in the queue').waitFor();
  assert.equal(await button.count(), 0);
  await chat.page.reload();
  await chat.connected();
  await notice.getByText('number 1 in the queue').waitFor();
  await chat.screenshot('handoff-waiting');

  await act(chat, 'takeover');
  await notice.getByText('The assistant is silent').waitFor();
  await chat.send('Is somebody there?');
  await chat.own.first().waitFor();
  await chat.page.reload();
  await chat.connected();
  await notice.getByText('The assistant is silent').waitFor();
  assert.equal(await chat.replies.count(), 0);
  await chat.screenshot('handoff-held');

  await act(chat, 'release');
  await chat.page.getByText('The assistant answers again').waitFor();
  await button.waitFor();
  await chat.send('And now?');
  await chat.finished();
  await chat.close();
});

test('a takeover cuts the answer that runs, and says so', { skip: !ADMIN }, async () => {
  const chat = await visit();
  await chat.send('A long answer, please.');
  await chat.streaming();
  await act(chat, 'takeover');
  const reply = await chat.finished();
  assert.equal(await reply.getAttribute('data-finish'), 'SUPERSEDED');
  await chat.close();
});
