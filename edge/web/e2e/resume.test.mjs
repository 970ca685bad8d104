import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { endAll, matchesHistory, visit } from './harness.mjs';

beforeEach(() => endAll());

/** What a browser says about connections that the test cuts. */
const CUT = [/WebSocket connection/, /ERR_INTERNET_DISCONNECTED/, /Failed to load resource/];

test('a reload in the middle of an answer goes on and ends as it is stored', async () => {
  const chat = await visit();
  await chat.send('A long answer, please.');
  await chat.streaming();
  for (let round = 0; round < 3; round += 1) {
    await chat.page.reload();
    const reply = await chat.streaming();
    const before = (await reply.innerText()).length;
    await chat.page.waitForFunction(
      (length) => document.querySelector('article.reply').innerText.length > length,
      before,
    );
  }
  const reply = await chat.finished();
  const [, answer] = await matchesHistory(chat);
  assert.equal(answer.reply.finishReason, 'FINISH_REASON_STOP');
  assert.equal(await chat.copied(reply), answer.text);
  const shown = await reply.innerText();
  await chat.page.reload();
  await chat.connected();
  const again = await chat.finished();
  assert.equal((await again.innerText()).replace('Copied', 'Copy'), shown.replace('Copied', 'Copy'));
  await chat.close();
});

test('a cut connection resumes without loss or doubling', async () => {
  const chat = await visit({ tolerate: CUT });
  await chat.send('A long answer, please.');
  await chat.streaming();
  const opens = () => chat.frames.filter((frame) => frame.opened).length;
  for (let round = 1; round <= 4; round += 1) {
    await chat.page.waitForTimeout(300);
    await chat.cut();
    await chat.page.waitForTimeout(50);
    await chat.connected();
    assert.equal(opens(), round + 1);
  }
  assert.ok(chat.frames.some((frame) => frame.opened?.verdict === 'RESUME_VERDICT_REPLAYED'));
  await chat.finished();
  const [, answer] = await matchesHistory(chat);
  assert.equal(chat.streamed(answer.messageId), answer.text);
  assert.equal(await chat.copied(chat.replies.first()), answer.text);
  await chat.close();
});

test('offline and back: the answer is whole, and what was written meanwhile is sent once', async () => {
  const chat = await visit({ tolerate: CUT });
  await chat.send('A long answer, please.');
  await chat.streaming();
  const context = chat.page.context();
  await context.setOffline(true);
  await chat.page.locator('.status[data-phase=waiting]').waitFor();
  await chat.send('Written offline.');
  await chat.page.getByText('Will be sent when connected').waitFor();
  await chat.page.waitForTimeout(1_500);
  await context.setOffline(false);
  await chat.connected();
  await chat.finished(0);
  await chat.finished(1);
  assert.equal(await chat.page.locator('.pending').count(), 0);
  const stored = await matchesHistory(chat);
  assert.equal(stored.filter((one) => one.text === 'Written offline.').length, 1);
  assert.equal(await chat.copied(chat.replies.first()), stored[1].text);
  await chat.close();
});

test('a message and a draft survive a reload while offline', async () => {
  const chat = await visit({ tolerate: CUT });
  await chat.page.evaluate(() => {
    // The network swallows what is sent from here on.
    window.testSockets.at(-1).send = () => undefined;
  });
  await chat.send('Swallowed by the network.');
  await chat.page.getByText('Sending…').waitFor();
  await chat.box.fill('Half a thought');
  await chat.page.reload();
  await chat.connected();
  await chat.finished();
  assert.equal(await chat.box.inputValue(), 'Half a thought');
  const stored = await matchesHistory(chat);
  assert.equal(stored.filter((one) => one.text === 'Swallowed by the network.').length, 1);
  await chat.close();
});

test('two tabs on one session see the same, and either may stop', async () => {
  const first = await visit();
  const second = await visit({ context: first.page.context() });
  assert.equal(second.sessionId, first.sessionId);
  await first.send('A long answer, please.');
  await first.streaming();
  await second.streaming();
  await second.send('From the other tab.');
  await first.page.getByText('From the other tab.').first().waitFor();
  await second.page.getByRole('button', { name: 'Stop the answer' }).click();
  await Promise.all([first.finished(1), second.finished(1)]);
  const stored = await matchesHistory(first);
  await matchesHistory(second);
  assert.equal(stored[1].reply.finishReason, 'FINISH_REASON_CANCELLED');
  const shown = (chat) => chat.page.locator('.log-inner').innerText();
  assert.equal(await shown(first), await shown(second));
  await second.close();
  await first.close();
});
