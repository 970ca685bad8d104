import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { endAll, history, matchesHistory, visit } from './harness.mjs';

beforeEach(() => endAll());

test('a message is answered by a stream, and what was streamed is what is stored', async () => {
  const chat = await visit();
  await chat.send('Tell me something.');
  const reply = await chat.streaming();
  const early = (await reply.innerText()).length;
  await chat.page.waitForFunction(
    (length) => document.querySelector('article.reply').innerText.length > length,
    early + 40,
  );
  await chat.finished();
  const [question, answer] = await matchesHistory(chat);
  assert.equal(question.text, 'Tell me something.');
  assert.equal(answer.reply.finishReason, 'FINISH_REASON_STOP');
  assert.deepEqual(answer.reply.answers, [question.messageId]);
  assert.equal(chat.streamed(answer.messageId), answer.text);
  assert.equal(await chat.copied(reply), answer.text);
  assert.ok(chat.frames.filter((frame) => frame.replyDelta).length > 5, 'the answer came in pieces');
  await chat.close();
});

test('Enter sends, Shift+Enter makes a line, and nothing of the text is changed', async () => {
  const chat = await visit();
  await chat.box.focus();
  await chat.page.keyboard.type('one & <two>');
  await chat.page.keyboard.press('Shift+Enter');
  await chat.page.keyboard.type('"three" \'é漢🙂\'  end ');
  await chat.page.keyboard.press('Enter');
  await chat.finished();
  const text = 'one & <two>\n"three" \'é漢🙂\'  end ';
  assert.equal((await history(chat.sessionId))[0].text, text);
  assert.equal(await chat.own.first().locator('.plain').textContent(), text);
  assert.equal(await chat.box.inputValue(), '');
  await chat.close();
});

test('markdown is rendered, and a code block is copied as it is', async () => {
  const chat = await visit();
  await chat.send('Here:\n\n```js\nconst a = 1 < 2;\n\tlet b;\n```\n\nAnd **bold**.');
  const reply = await chat.finished();
  await reply.locator('strong').first().waitFor();
  const code = reply.locator('figure.code').first();
  await code.getByRole('button', { name: 'Copy code' }).click();
  await code.getByText('Copied').waitFor();
  const copied = await chat.page.evaluate(() => navigator.clipboard.readText());
  assert.equal(copied, await code.locator('code').textContent());
  assert.ok((await history(chat.sessionId))[1].text.includes(copied.trimEnd().split('\n')[0]));
  await chat.close();
});

test('stop ends the answer, keeps what was said, and says so', async () => {
  const chat = await visit();
  await chat.send('A long answer, please.');
  await chat.streaming();
  await chat.page.getByRole('button', { name: 'Stop the answer' }).click();
  const reply = await chat.finished();
  assert.equal(await reply.getAttribute('data-finish'), 'CANCELLED');
  await reply.getByText('Stopped').waitFor();
  assert.equal(await chat.page.getByRole('button', { name: 'Stop the answer' }).count(), 0);
  const [, answer] = await matchesHistory(chat);
  assert.equal(answer.reply.finishReason, 'FINISH_REASON_CANCELLED');
  assert.ok(answer.text.length > 0);
  assert.equal(await chat.copied(reply), answer.text);
  assert.equal(chat.streamed(answer.messageId), answer.text);
  await chat.send('Still there?');
  await chat.finished(1);
  await chat.close();
});

test('messages written during an answer come after it and are answered together', async () => {
  const chat = await visit();
  await chat.send('A long answer, please.');
  await chat.streaming();
  await chat.send('And a second question.');
  await chat.send('And a third.');
  await chat.own.nth(2).waitFor();
  await chat.page.getByRole('button', { name: 'Stop the answer' }).click();
  await chat.finished(0);
  await chat.finished(1);
  const stored = await matchesHistory(chat);
  assert.deepEqual(
    stored.map((one) => (one.reply ? 'reply' : one.text)),
    ['A long answer, please.', 'reply', 'And a second question.', 'And a third.', 'reply'],
  );
  assert.deepEqual(stored[4].reply.answers, [stored[2].messageId, stored[3].messageId]);
  await chat.close();
});

test('the end stays in view, unless somebody scrolls up to read', async () => {
  const chat = await visit();
  await chat.send('A long answer, please.');
  await chat.streaming();
  const log = chat.page.getByRole('log');
  const distance = () => log.evaluate((box) => box.scrollHeight - box.clientHeight - box.scrollTop);
  await chat.page.waitForFunction(() => document.querySelector('.log').scrollHeight > 1.4 * innerHeight);
  assert.ok((await distance()) < 60, 'follows the answer');
  await log.hover();
  await chat.page.mouse.wheel(0, -500);
  const jump = chat.page.getByRole('button', { name: 'Follow the answer' });
  await jump.waitFor();
  const top = await log.evaluate((box) => box.scrollTop);
  await chat.page.waitForTimeout(600);
  assert.equal(await log.evaluate((box) => box.scrollTop), top, 'stays where it is read');
  await jump.click();
  await chat.page.waitForFunction(() => {
    const box = document.querySelector('.log');
    return box.scrollHeight - box.clientHeight - box.scrollTop < 60;
  });
  assert.equal(await jump.count(), 0);
  await chat.page.getByRole('button', { name: 'Stop the answer' }).click();
  await chat.finished();
  await chat.close();
});

test('older messages come when somebody scrolls up, each once, and the place is kept', async () => {
  const chat = await visit();
  // 60 messages at the pace a person cannot keep: by a socket of its own, each answer stopped at once.
  await chat.page.evaluate(
    () =>
      new Promise((resolve, reject) => {
        const url = new URL('ws', location.href);
        url.protocol = 'ws:';
        const token = sessionStorage.getItem('chatbox.token');
        const socket = new WebSocket(url, ['chatbox.v1.json', `bearer.${token}`]);
        const tell = (frame) => socket.send(JSON.stringify({ requestId: crypto.randomUUID(), ...frame }));
        let sent = 0;
        socket.onopen = () => tell({ open: {} });
        socket.onmessage = ({ data }) => {
          const { caughtUp, entry, error } = JSON.parse(data);
          if (error) reject(new Error(error.reason));
          if (entry?.replyStarted) tell({ stop: { messageId: entry.replyStarted.messageId } });
          if (!caughtUp && !entry?.replyFinished) return;
          if (sent === 30) {
            socket.close();
            resolve();
            return;
          }
          sent += 1;
          const send = { clientMessageId: `fill-${sent}`, text: `Number ${sent}` };
          // The edge allows 30 frames a second.
          setTimeout(() => tell({ send }), 100);
        };
      }),
  );
  await matchesHistory(chat);
  await chat.page.reload();
  await chat.connected();
  assert.equal((await chat.ids()).length, 50);
  const log = chat.page.getByRole('log');
  const place = (text) => chat.own.filter({ hasText: new RegExp(`^${text}$`) }).evaluate((one) => one.getBoundingClientRect().top);
  await log.evaluate((box) => box.scrollTo(0, 320));
  const before = await place('Number 8');
  await log.evaluate((box) => box.scrollBy(0, -60));
  await chat.page.waitForFunction(() => document.querySelectorAll('[data-message]').length === 60);
  assert.ok(Math.abs((await place('Number 8')) - before - 60) < 3, 'what is read stays in its place');
  await matchesHistory(chat);
  await chat.close();
});
