import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { endAll, visit } from './harness.mjs';

beforeEach(() => endAll());

const focused = (chat) =>
  chat.page.evaluate(() => {
    const element = document.activeElement;
    const style = getComputedStyle(element.id === 'message' ? element.parentElement : element);
    return {
      nowhere: element === document.body,
      name: element.getAttribute('aria-label') ?? element.textContent.trim(),
      visible: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0,
    };
  });

/** Presses Tab until the named control has the focus, which must be seen all the way. */
async function tabTo(chat, name) {
  for (let presses = 0; presses < 40; presses += 1) {
    await chat.page.keyboard.press('Tab');
    const now = await focused(chat);
    if (now.nowhere) continue;
    assert.ok(now.visible, `the focus on "${now.name}" cannot be seen`);
    if (now.name === name) return;
  }
  assert.fail(`Tab does not reach "${name}"`);
}

test('everything works by keyboard alone, with a focus that is seen', async () => {
  const chat = await visit({ tolerate: [/409/] });
  await chat.page.reload();
  await chat.connected();
  await tabTo(chat, 'Skip to the message box');
  await chat.page.keyboard.press('Enter');
  await chat.page.keyboard.type('A long answer, please.');
  await chat.page.keyboard.press('Enter');
  await chat.streaming();
  await tabTo(chat, 'Stop the answer');
  await chat.page.keyboard.press('Enter');
  await chat.finished();
  assert.equal((await focused(chat)).name, 'Message');
  await tabTo(chat, 'New conversation');
  await chat.page.keyboard.press('Enter');
  await chat.page.getByRole('dialog').waitFor();
  await tabTo(chat, 'End it and start a new one');
  await chat.page.keyboard.press('Enter');
  await chat.page.getByText('What can I do for you?').waitFor();
  await chat.connected();
  await chat.close();
});

test('a screen reader hears the answer once, and not word by word', async () => {
  const chat = await visit();
  await chat.page.evaluate(() => {
    window.heard = [];
    const place = document.getElementById('spoken-answer');
    new MutationObserver(() => place.textContent && window.heard.push(place.textContent)).observe(place, {
      childList: true,
      characterData: true,
      subtree: true,
    });
  });
  assert.equal(await chat.page.getByRole('log').getAttribute('aria-live'), 'off');
  await chat.send('Tell me something.');
  await chat.finished();
  await chat.page.waitForFunction(() => window.heard.length >= 2);
  const heard = await chat.page.evaluate(() => window.heard);
  assert.equal(heard[0], 'The assistant is answering');
  assert.match(heard[1], /^Assistant: /);
  assert.equal(heard.length, 2);
  await chat.close();
});

test('on a phone the list is a drawer, and nothing is wider than the screen', async () => {
  const chat = await visit({
    viewport: { width: 360, height: 740 },
    deviceScaleFactor: 2,
    hasTouch: true,
    isMobile: true,
  });
  await chat.send(`A table, and a word without an end: ${'x'.repeat(200)}`);
  await chat.finished();
  const width = () => chat.page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok((await width()) <= 360);
  await chat.screenshot('phone');
  await chat.page.getByRole('button', { name: 'Conversations' }).click();
  await chat.page.getByRole('button', { name: 'New conversation', exact: true }).waitFor();
  await chat.page.waitForTimeout(400);
  await chat.screenshot('phone-drawer');
  await chat.page.keyboard.press('Escape');
  await chat.page.locator('.sidebar.open').waitFor({ state: 'detached' });
  for (const button of await chat.page.locator('.header button, .composer button').all()) {
    const { width: wide, height } = await button.boundingBox();
    assert.ok(wide >= 36 && height >= 36, 'large enough for a finger');
  }
  await chat.page.emulateMedia({ colorScheme: 'dark' });
  await chat.screenshot('phone-dark');
  await chat.close();
});

test('dark and light follow the system, and still pictures are respected', async () => {
  const chat = await visit({ deviceScaleFactor: 2 });
  await chat.screenshot('empty');
  await chat.send('Show me a long answer, with a list and some code.');
  const answer = await chat.streaming();
  await answer.locator('figure.code').waitFor();
  await chat.screenshot('streaming');
  await chat.finished();
  await chat.page.getByRole('log').evaluate((box) => box.scrollTo(0, 0));
  await chat.page.getByRole('button', { name: 'Latest' }).waitFor();
  await chat.screenshot('light');
  const paper = () => chat.page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await paper();
  await chat.page.emulateMedia({ colorScheme: 'dark' });
  assert.notEqual(await paper(), light);
  await chat.screenshot('dark');
  await chat.page.getByRole('button', { name: 'Latest' }).click();
  await chat.page.emulateMedia({ reducedMotion: 'reduce' });
  await chat.send('A long answer, please.');
  const reply = await chat.streaming(1);
  const motion = await reply.evaluate(() => {
    const probe = document.createElement('span');
    probe.className = 'dots';
    probe.append(document.createElement('span'));
    document.body.append(probe);
    const { animationIterationCount } = getComputedStyle(probe.firstChild);
    probe.remove();
    return animationIterationCount;
  });
  assert.equal(motion, '1');
  await chat.page.getByRole('button', { name: 'Stop the answer' }).click();
  await chat.finished(1);
  await chat.close();
});
