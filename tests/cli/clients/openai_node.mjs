// Talks to a server with the official OpenAI client of npm. Usage: node openai_node.mjs URL

import assert from 'node:assert/strict';
import OpenAI from 'openai';

const url = process.argv[2];
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'unused', maxRetries: 0 });
// A question whose answer the model is sure of: no rounding changes it.
const messages = [{ role: 'user', content: 'Complete the sentence: The capital of France is' }];

const ids = [];
for await (const model of client.models.list()) ids.push(model.id);
const model = ids.find((id) => id.startsWith('smollm2'));
assert.ok(model, ids.join());
assert.equal((await client.models.retrieve(model)).id, model);

const whole = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 32 });
const answer = whole.choices[0].message.content;
assert.match(answer, /Paris/);
assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);

let [text, finish, usage, pieces] = ['', null, null, 0];
const stream = await client.chat.completions.create({
  model, messages, temperature: 0, max_tokens: 32, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? '';
  finish = chunk.choices[0]?.finish_reason ?? finish;
  usage = chunk.usage ?? usage;
  pieces += 1;
}
assert.equal(text, answer);
assert.ok(pieces > 3 && ['stop', 'length'].includes(finish), `${pieces} ${finish}`);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

// The client's own helper puts the pieces together.
const helper = client.chat.completions.stream({ model, messages, temperature: 0, max_tokens: 32 });
assert.equal((await helper.finalChatCompletion()).choices[0].message.content, answer);

// Aborting closes the connection, by which the server stops.
const running = async () => {
  const metrics = await (await fetch(`${url}/metrics`)).text();
  return [...metrics.matchAll(/^vllm:num_requests_running\{.*\} (\S+)$/gm)].reduce((sum, [, count]) => sum + Number(count), 0);
};
const endless = await client.chat.completions.create({
  model, messages: [{ role: 'user', content: 'Tell me a story.' }], ignore_eos: true, stream: true,
});
let heard = 0;
for await (const _ of endless) {
  heard += 1;
  if (heard === 5) {
    assert.ok((await running()) >= 1);
    endless.controller.abort();
  }
}
for (let tries = 0; (await running()) > 0; tries += 1) {
  assert.ok(tries < 3000, 'the server still answers nobody');
  await new Promise((resolve) => setTimeout(resolve, 20));
}

await assert.rejects(client.chat.completions.create({ model: 'no-such-model', messages }), (error) => {
  assert.ok(error instanceof OpenAI.NotFoundError, error);
  assert.equal(error.code, 'model_not_found');
  return true;
});
await assert.rejects(client.chat.completions.create({ model, messages, temperature: -1 }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError, error);
  assert.equal(error.param, 'temperature');
  return true;
});

const several = await Promise.all([1, 2, 3].map(() => client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 32 })));
for (const one of several) assert.match(one.choices[0].message.content, /Paris/);
console.log('all good');
