// The page with a real model: what is on the screen, what was streamed and what is stored are the same. The environment is
// that of edge/web/e2e/harness.mjs.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { matchesHistory, visit } from '../../edge/web/e2e/harness.mjs';

test('a real model answers through the page, and what was streamed is what is stored', async () => {
  const chat = await visit();
  await chat.send('Say hello in one short sentence.');
  const reply = await chat.finished();
  const [question, answer] = await matchesHistory(chat);
  assert.equal(question.text, 'Say hello in one short sentence.');
  assert.ok(['FINISH_REASON_STOP', 'FINISH_REASON_LENGTH'].includes(answer.reply.finishReason), answer.reply.finishReason);
  assert.equal(answer.reply.model, 'smollm2');
  assert.ok(answer.text.trim().length > 0);
  assert.equal(chat.streamed(answer.messageId), answer.text);
  assert.equal(await chat.copied(reply), answer.text);
  const { promptTokens, completionTokens, estimated = false } = answer.reply.usage;
  assert.ok(Number(promptTokens) > 0 && Number(completionTokens) > 0 && !estimated);
  await chat.close();
});
