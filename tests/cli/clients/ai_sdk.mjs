// Talks to a server with Vercel's AI SDK. Usage: node ai_sdk.mjs URL

import assert from 'node:assert/strict';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { APICallError, generateText, streamText } from 'ai';

const url = process.argv[2];
const provider = createOpenAICompatible({ name: 'shimmy', baseURL: `${url}/v1`, apiKey: 'unused', includeUsage: true });
const list = await (await fetch(`${url}/v1/models`)).json();
const name = list.data.map(({ id }) => id).find((id) => id.startsWith('smollm2'));
const model = provider(name);
const settings = { model, temperature: 0, maxOutputTokens: 32, maxRetries: 0 };
const prompt = 'Complete the sentence: The capital of France is';

const whole = await generateText({ ...settings, prompt });
assert.match(whole.text, /Paris/);
assert.ok(whole.usage.inputTokens > 5 && whole.usage.outputTokens > 1, JSON.stringify(whole.usage));

const result = streamText({ ...settings, prompt });
const pieces = [];
for await (const piece of result.textStream) pieces.push(piece);
assert.equal(pieces.join(''), whole.text);
assert.ok(pieces.length > 3, `${pieces.length} pieces`);
assert.equal(await result.finishReason, whole.finishReason);
assert.equal((await result.usage).outputTokens, whole.usage.outputTokens);

const system = await generateText({
  ...settings,
  maxOutputTokens: 4,
  system: 'You answer in one word.',
  messages: [
    { role: 'user', content: [{ type: 'text', text: 'Hello.' }] },
    { role: 'assistant', content: 'Hi!' },
    { role: 'user', content: 'Tell me a long story.' },
  ],
});
assert.equal(system.finishReason, 'length');

// An abort ends the stream, and what had come stays.
const controller = new AbortController();
let aborted = false;
const story = streamText({
  ...settings, maxOutputTokens: 2000, prompt: 'Tell me a long story.', abortSignal: controller.signal, onAbort: () => (aborted = true),
});
let said = '';
for await (const piece of story.textStream) {
  said += piece;
  if (said.length > 20) controller.abort();
}
assert.ok(aborted && said.length > 20);

await assert.rejects(generateText({ ...settings, model: provider('no-such-model'), prompt }), (error) => {
  assert.ok(APICallError.isInstance(error) && error.statusCode === 404, error);
  assert.match(error.message, /no-such-model/);
  return true;
});
console.log('all good');
