// Tests the page's modules that need no browser: the Markdown renderer on a small document of its own, the reader of
// streams, and what is accepted from storage and files. Usage: node page_units.mjs FOLDER_OF_THE_PAGE

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const folder = process.argv[2];

/** Imports a module of the page; its own imports become data URLs too, since the folder is no Node package. */
function dataUrl(name) {
  const text = readFileSync(join(folder, name), 'utf8');
  const inlined = text.replace(/from '\.\/([\w-]+\.js)'/g, (_, inner) => `from '${dataUrl(inner)}'`);
  return `data:text/javascript;base64,${Buffer.from(inlined).toString('base64')}`;
}

const { MarkdownStream, renderMarkdown } = await import(dataUrl('markdown.js'));
const { safeAddress } = await import(dataUrl('inline.js'));
const { Failure, payloads, streamAnswer, fetchModels } = await import(dataUrl('api.js'));
const { ImportFailure, LIMITS, StorageFailure, Store, newConversation, readConversation, titleOf } = await import(dataUrl('store.js'));
const { samplingFields } = await import(dataUrl('settings.js'));

// ---- A document that knows nodes and nothing else: there is no way to hand it HTML

class Node {
  parent = null;
  remove() {
    if (this.parent) this.parent.children = this.parent.children.filter((child) => child !== this);
    this.parent = null;
  }
}
class TextNode extends Node {
  constructor(data) {
    super();
    this.data = data;
  }
  appendData(data) {
    this.data += data;
    work.nodes += 1;
  }
}
class Element extends Node {
  children = [];
  attributes = {};
  constructor(name) {
    super();
    this.name = name;
  }
  append(...nodes) {
    for (const node of nodes) {
      const child = typeof node === 'string' ? new TextNode(node) : node;
      child.remove();
      child.parent = this;
      this.children.push(child);
    }
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  set className(value) {
    this.attributes.class = value;
  }
}
const work = { nodes: 0 };
const doc = {
  createElement(name) {
    work.nodes += 1;
    return new Element(name);
  },
  createTextNode(data) {
    work.nodes += 1;
    return new TextNode(data);
  },
};

const escape = (text) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
/** As HTML, without what every link and code block has. The spans of what isn't decided yet don't count. */
function html(node) {
  if (node instanceof TextNode) return escape(node.data);
  const inner = node.children.map(html).join('');
  if (node.name === 'span' && !node.parent?.attributes.class) return inner;
  if (node.attributes.class === 'code-bar') return `[${node.children[0].children.map(html).join('')}]`;
  const shown = Object.entries(node.attributes).filter(([name]) => !['rel', 'target', 'tabindex'].includes(name));
  return `<${node.name}${shown.map(([name, value]) => ` ${name}=${value}`).join('')}>${inner}</${node.name}>`;
}
function draw(text) {
  const root = new Element('root');
  renderMarkdown(root, text, doc);
  return root.children.map(html).join('');
}
function all(node, visit) {
  visit(node);
  for (const child of node.children ?? []) all(child, visit);
}

// ---- What Markdown becomes

const EXAMPLES = [
  ['', ''],
  ['Hello\nworld', '<p>Hello\nworld</p>'],
  ['a\n\nb\r\n\r\n\n\nc', '<p>a</p><p>b</p><p>c</p>'],
  ['# One\n###### Six ##\ntext\n####### Seven\n#tag', '<h1>One</h1><h6>Six ##</h6><p>text\n####### Seven\n#tag</p>'],
  ['**b** *i* ***bi*** __b__ _i_ ~~d~~ `c`',
    '<p><strong>b</strong> <em>i</em> <strong><em>bi</em></strong> <strong>b</strong> <em>i</em> <del>d</del> <code>c</code></p>'],
  ['**a *b* c** and *a **b** c*', '<p><strong>a <em>b</em> c</strong> and <em>a <strong>b</strong> c</em></p>'],
  ['**a *b***', '<p><strong>a <em>b</em></strong></p>'],
  ['2 * 3 * 4, snake_case_name, **open, a ** b', '<p>2 * 3 * 4, snake_case_name, **open, a ** b</p>'],
  ['\\*no\\* \\a', '<p>*no* \\a</p>'],
  ['`` a`b `` and `*x*` and `open', '<p><code>a`b</code> and <code>*x*</code> and `open</p>'],
  ['- a\n- b\n  - c\n    - d\n- e', '<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p><ul><li><p>d</p></li></ul></li></ul></li><li><p>e</p></li></ul>'],
  ['3. a\n4) b\n\n   more\n\nafter', '<ol start=3><li><p>a</p></li><li><p>b</p><p>more</p></li></ol><p>after</p>'],
  ['1. **A**:\n  - x\n  - y\n2. B', '<ol><li><p><strong>A</strong>:</p><ul><li><p>x</p></li><li><p>y</p></li></ul></li><li><p>B</p></li></ol>'],
  ['text\n- a\nlazy\n\ntext\n1984. was a year\n', '<p>text</p><ul><li><p>a\nlazy</p></li></ul><p>text\n1984. was a year</p>'],
  ['> a\n> b\n>\n> - c\n\nout', '<blockquote><p>a\nb</p><ul><li><p>c</p></li></ul></blockquote><p>out</p>'],
  ['a\n\n---\n***\nb', '<p>a</p><hr></hr><hr></hr><p>b</p>'],
  ['```python\nx = 1\n\n  if **x**:\n```\nafter', '<div class=code>[python]<pre><code>x = 1\n\n  if **x**:</code></pre></div><p>after</p>'],
  ['~~~\n```\n~~~', '<div class=code>[]<pre><code>```</code></pre></div>'],
  ['```\nnever closed\n``', '<div class=code>[]<pre><code>never closed\n``</code></pre></div>'],
  ['- a\n  ```\n  code\n    more\n  ```\n- b', '<ul><li><p>a</p><div class=code>[]<pre><code>code\n  more</code></pre></div></li><li><p>b</p></li></ul>'],
  ['```inline``` is no fence', '<p><code>inline</code> is no fence</p>'],
  ['| a | b \\| c |\n|:-:|--:|\n| `1` | **2** |\n| 3 |\n\nend',
    '<div class=table><table><thead><tr><th class=center>a</th><th class=end>b | c</th></tr></thead><tbody><tr><td class=center><code>1</code></td><td class=end><strong>2</strong></td></tr><tr><td class=center>3</td><td class=end></td></tr></tbody></table></div><p>end</p>'],
  ['a | b\nnot a table', '<p>a | b\nnot a table</p>'],
  ['[x](https://a.b/c_(d)) <http://e.f> https://g.h/i?j=k&l. ![pic](https://m.n/o.png "t")',
    '<p><a href=https://a.b/c_(d)>x</a> <a href=http://e.f/>http://e.f</a> <a href=https://g.h/i?j=k&l>https://g.h/i?j=k&amp;l</a>. <a href=https://m.n/o.png>pic</a></p>'],
  ['xhttps://a.b [**b** https://c.d](https://e.f)', '<p>xhttps://a.b <a href=https://e.f/><strong>b</strong> https://c.d</a></p>'],
];
for (const [text, expected] of EXAMPLES) assert.equal(draw(text), expected, JSON.stringify(text));

// ---- Nothing that a model writes runs, or leads anywhere but to http and https

const HOSTILE = [
  '<img src=x onerror=alert(1)>',
  '<script>alert(1)</script>',
  '[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](\tjavascript:alert(1)) [d](java\nscript:alert(1))',
  '[a](data:text/html,<script>alert(1)</script>) [b](vbscript:x) [c](file:///etc/passwd) [d](//evil.example) [e](/v1/models)',
  '<javascript:alert(1)> <a href="javascript:alert(1)">x</a> ![x](data:image/svg+xml,<svg/onload=alert(1)>)',
  '[x](https://a.b" onclick="alert(1)) [&#106;avascript](&#106;avascript:alert(1)) [x](https:javascript:alert(1)//)',
  '```html onload=alert(1) "><script>\n</code></pre><script>alert(1)</script>\n```',
  '| <b onclick=x> |\n|---|\n| <svg onload=alert(1)> |',
  '# <iframe srcdoc="<script>alert(1)</script>">',
  '- <details open ontoggle=alert(1)>\n> <math><a xlink:href=javascript:alert(1)>',
];
const NAMES = 'root p h1 h2 h3 h4 h5 h6 strong em del code pre a ul ol li blockquote hr div span button table thead tbody tr th td';
const ATTRIBUTES = ['class', 'href', 'rel', 'target', 'type', 'aria-label', 'tabindex', 'start'];
for (const text of [...HOSTILE, HOSTILE.join('\n\n')]) {
  const root = new Element('root');
  renderMarkdown(root, text, doc);
  let shown = '';
  all(root, (node) => {
    if (node instanceof TextNode) shown += node.data;
    if (!(node instanceof Element)) return;
    assert.ok(NAMES.split(' ').includes(node.name), `${text} made a <${node.name}>`);
    for (const [name, value] of Object.entries(node.attributes)) {
      assert.ok(ATTRIBUTES.includes(name), `${text} made the attribute ${name}`);
      if (name === 'class') assert.ok(['code', 'code-bar', 'copy-code quiet', 'table', 'end', 'center'].includes(value), value);
      if (name === 'href') assert.match(value, /^https?:\/\/[^/]/);
    }
    if (node.name === 'a') assert.match(node.attributes.rel, /\bnoopener\b/);
  });
  assert.ok(shown.length > text.length / 4, `${text} is still shown`);
}
assert.equal(safeAddress('javascript:alert(1)'), null);
assert.equal(safeAddress(' \u0001javascript:alert(1)'), null);
assert.equal(safeAddress('ftp://a.b'), null);

// ---- However a text is cut, the nodes are the same

let seed = 42;
function random(below) {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  return Math.floor((seed / 2 ** 32) * below);
}
function drawInPieces(text, most) {
  const root = new Element('root');
  const stream = new MarkdownStream(root, doc);
  for (let at = 0; at < text.length; ) {
    const length = 1 + random(most);
    stream.push(text.slice(at, at + length));
    at += length;
    if (random(2)) stream.flush();
  }
  stream.end();
  return root.children.map(html).join('');
}
const PARTS = ['*', '**', '***', '_', '`', '``', '```', '~~', '\n', '\n\n', '\n  ', '    ', '\t', '- ', '1. ', '2) ', '> ', '# ',
  '---', '|', '|-|\n', '[', '](', ')', 'https://a.b', '<', '>', '\\', '!', ' ', 'a', 'word ', 'é🌍', '~~~', '+ ', ':-'];
const texts = [...EXAMPLES.map(([text]) => text), ...HOSTILE];
for (let i = 0; i < 1200; i += 1) {
  texts.push(Array.from({ length: 1 + random(40) }, () => PARTS[random(PARTS.length)]).join(''));
}
// Past every bound: long spans, long runs, long lines whose kind is never clear.
texts.push(`**${'a '.repeat(700)}** *b*`, '*'.repeat(3000), `\`${'x'.repeat(2500)}\``, `\`\`\`${'i'.repeat(3000)}\nx\n\`\`\``,
  `|${'c'.repeat(3000)}|\n|-|\n`, `| a |\n|-|\n|${'c'.repeat(3000)}|\n`, ' '.repeat(5000), '- '.repeat(1500), '> '.repeat(1500),
  `[${'l'.repeat(990)}](https://a.b) `.repeat(5), `**${'x '.repeat(490)}end** and [${'l'.repeat(900)}](https://a.b/${'p'.repeat(60)}) `.repeat(4), 'word **bold** `code` https://a.b/c '.repeat(300));
for (const text of texts) {
  const whole = draw(text);
  for (const most of [1, 3, 17, 400]) assert.equal(drawInPieces(text, most), whole, JSON.stringify(text.slice(0, 300)));
}

// ---- A long answer costs what its length is

/** Nodes that were made or changed for a text that comes four characters at a time, each shown. */
function cost(text) {
  work.nodes = 0;
  const root = new Element('root');
  const stream = new MarkdownStream(root, doc);
  for (let at = 0; at < text.length; at += 4) {
    stream.push(text.slice(at, at + 4));
    stream.flush();
  }
  stream.end();
  return work.nodes;
}
for (const [what, unit] of [
  ['a paragraph', 'some *words* in `one` paragraph that never ends, '],
  ['code', 'let x = 1; // code\n'],
  ['a list', '- an **item** of a list\n'],
  ['a table', '| a | b |\n'],
]) {
  const text = (repeats) => (what === 'code' ? '```\n' : what === 'a table' ? '| h | i |\n|---|---|\n' : '') + unit.repeat(repeats);
  // Long enough that what a growing text draws again has come to its bound.
  const [once, twice] = [cost(text(400)), cost(text(800))];
  assert.ok(twice < 2.3 * once, `${what}: ${once} nodes, and ${twice} for twice the length`);
}

// ---- Streams of events

const body = (...pieces) => new ReadableStream({
  start(controller) {
    pieces.forEach((piece) => controller.enqueue(typeof piece === 'string' ? new TextEncoder().encode(piece) : piece));
    controller.close();
  },
});
async function collect(iterable) {
  const found = [];
  for await (const item of iterable) found.push(item);
  return found;
}
const earth = new TextEncoder().encode('data: 🌍\n\n');
assert.deepEqual(
  await collect(payloads(body('da', 'ta: {"a"', ':1}\r\n\r\n: ping\n\n', earth.slice(0, 8), earth.slice(8), 'data: [DONE]\n\n'))),
  ['{"a":1}', '🌍', '[DONE]'],
);

let requests = [];
let responses = [];
globalThis.fetch = async (path, options) => {
  requests.push({ path, ...options });
  const next = responses.shift();
  if (next instanceof Error) throw next;
  return next;
};
const chunk = (fields) => `data: ${JSON.stringify(fields)}\n\n`;
const text = (content) => chunk({ choices: [{ delta: { content }, finish_reason: null }], usage: null });
const end = 'data: {"choices":[{"delta":{},"finish_reason":"length"}],"timings":{"predicted_per_second":9.5},"seed":18446744073709551615}\n\n';
const usage = chunk({ choices: [], usage: { prompt_tokens: 7, completion_tokens: 2 } });
const refused = (status, error, headers = {}) => new Response(JSON.stringify({ error }), { status, headers });
async function stream(first, { more = {}, abort } = {}) {
  [requests, responses] = [[], Array.isArray(first) ? first : [first]];
  const controller = new AbortController();
  const heard = { text: '', loading: [] };
  const promise = streamAnswer({ model: 'm', messages: [], ...more }, {
    key: 'secret',
    signal: controller.signal,
    onText(piece) {
      heard.text += piece;
      if (abort) controller.abort();
    },
    onLoading: (why) => heard.loading.push(why),
  });
  const result = await promise.catch((error) => error);
  return { result, ...heard };
}
{
  const { result, text: said } = await stream(new Response(body(text('Hel'), text('lo'), end, usage, 'data: [DONE]\n\n')), {
    more: { seed: '18446744073709551615', temperature: 0 },
  });
  assert.equal(said, 'Hello');
  // All 64 bits of the seed, both ways.
  assert.equal(result.seed, '18446744073709551615');
  assert.ok(requests[0].body.endsWith(',"seed":18446744073709551615}'), requests[0].body);
  const { seed: _, ...sent } = JSON.parse(requests[0].body);
  assert.deepEqual(sent, { model: 'm', messages: [], temperature: 0, stream: true, stream_options: { include_usage: true } });
  assert.equal(requests[0].headers.authorization, 'Bearer secret');
  assert.equal(result.finish, 'length');
  assert.deepEqual(result.usage, { prompt_tokens: 7, completion_tokens: 2 });
  assert.deepEqual(result.timings, { predicted_per_second: 9.5 });
}
for (const [response, kind, message, retryAfter = null] of [
  [refused(401, { message: 'no key' }), 'key', 'no key'],
  [refused(404, { message: 'no model', code: 'model_not_found' }), 'model', 'no model'],
  [refused(400, { message: 'too long', code: 'context_length_exceeded' }), 'context', 'too long'],
  [refused(400, { message: 'bad' }), 'request', 'bad'],
  [refused(429, { message: 'full' }, { 'retry-after': '7' }), 'busy', 'full', 7],
  [refused(503, { message: 'shutting down', code: 'shutting_down' }), 'busy', 'shutting down'],
  [new Response('<html>Bad Gateway', { status: 502 }), 'server', '502  <html>Bad Gateway'],
  [new TypeError('refused'), 'unreachable', 'the server could not be reached (refused)'],
  [new Response(body(text('x'))), 'lost', 'the stream broke off before its end'],
  [new Response(body(text('x'), chunk({ error: { message: 'broken' } }))), 'server', 'broken'],
  [new Response(body('data: {nonsense\n\n')), 'server', 'the stream holds something that is not JSON'],
]) {
  const { result } = await stream(response);
  assert.ok(result instanceof Failure, String(result));
  assert.deepEqual([result.kind, result.message, result.retryAfter], [kind, message, retryAfter]);
}
{
  const loading = () => refused(503, { message: 'loading', code: 'model_loading' }, { 'retry-after': '0' });
  const slow = await stream([loading(), new Response(body(text('ok'), end, 'data: [DONE]\n\n'))]);
  assert.deepEqual([slow.text, slow.loading, requests.length], ['ok', ['loading'], 2]);
  const stopped = await stream(new Response(body(text('x'), text('y'))), { abort: true });
  assert.equal(stopped.result.kind, 'stopped');
}
responses = [new Response('{"data":[{"id":"a","loaded":true},{"id":"b"}]}'), new Response('[]')];
assert.deepEqual(await fetchModels(''), [{ id: 'a', loaded: true }, { id: 'b', loaded: false }]);
await assert.rejects(fetchModels(''), (error) => error.kind === 'server');

// ---- What is kept, imported and typed

class FakeStorage {
  constructor(room = Infinity) {
    Object.defineProperty(this, 'room', { value: room });
  }
  getItem(key) {
    return Object.hasOwn(this, key) ? this[key] : null;
  }
  setItem(key, value) {
    if (value.length > this.room) throw new Error('QuotaExceededError');
    this[key] = value;
  }
  removeItem(key) {
    delete this[key];
  }
}
const storage = new FakeStorage();
const store = new Store(storage);
const chat = newConversation({ model: 'm', system: 's' });
chat.messages.push({ role: 'user', content: 'What  is\nthis? '.repeat(9) },
  { role: 'assistant', content: 'That.', model: 'm', finish: 'stop', seed: '5', stats: { perSecond: 3.5 } });
chat.title = titleOf(chat);
assert.equal(chat.title.length, 60);
store.save(chat);
assert.deepEqual(new Store(storage).list(), [chat]);
const exported = store.exportText();
const other = new Store(new FakeStorage());
assert.deepEqual(other.importText(exported), { added: 1, kept: 0 });
assert.deepEqual(other.importText(exported), { added: 0, kept: 1 });
assert.deepEqual(other.list(), [chat]);
store.remove(chat.id);
assert.deepEqual([store.list(), Object.keys(storage)], [[], []]);
assert.throws(() => new Store(new FakeStorage(10)).save(chat), StorageFailure);
const full = new Store(null);
for (let i = 0; i < LIMITS.conversations; i += 1) full.save(newConversation());
assert.throws(() => full.save(newConversation()), StorageFailure);
for (const file of ['', '[]', '{"format":"shimmy-conversations","version":2,"conversations":[]}',
  '{"format":"shimmy-conversations","version":1,"conversations":[{}]}', ' '.repeat(LIMITS.file + 1)]) {
  assert.throws(() => other.importText(file), ImportFailure, file.slice(0, 80));
}
for (const wrong of [null, 5, {}, { id: 'a/b', messages: [] }, { id: 'a', messages: [{ role: 'system', content: 'x' }] },
  { id: 'a', messages: [{ role: 'user', content: 5 }] }, { id: 'a', messages: Array(LIMITS.messages + 1).fill({ role: 'user', content: '' }) }]) {
  assert.equal(readConversation(wrong), null, JSON.stringify(wrong)?.slice(0, 80));
}
const odd = readConversation({ id: 'a', messages: [{ role: 'assistant', content: 'x', seed: '1<b>', stats: { a: '<b>', b: 1 }, finish: 'x', evil: 1 }], evil: 1 });
assert.deepEqual(odd.messages, [{ role: 'assistant', content: 'x', model: '', stats: { b: 1 } }]);
storage.setItem('shimmy.chat.zzz', '{broken');
assert.deepEqual(new Store(storage).list(), []);

assert.deepEqual(
  samplingFields({ temperature: ' 0.5 ', top_p: '2', top_k: '1.5', min_p: '', repeat_penalty: '0', max_tokens: '12', seed: '-01' }),
  { temperature: 0.5, max_tokens: 12, seed: '-1' },
);
assert.deepEqual(samplingFields({ seed: '18446744073709551616' }), {});
assert.deepEqual(samplingFields(undefined), {});
console.log('all good');
