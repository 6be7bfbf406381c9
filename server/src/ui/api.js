// Talks to the server: which models there are, and answers that stream. Knows nothing of the page.
//
// Addresses are relative to the page's, so that it also works below a path of a proxy.

/** How long to wait for a server that is still starting, where it doesn't say. */
const LOADING_WAIT_MS = 1000;
/** A line of a stream that is longer isn't from this server. */
const MAX_LINE = 8 << 20;

/**
 * What went wrong. `kind` is one of:
 * `stopped` (the user did it), `key` (none or a wrong one), `busy`, `loading`, `unreachable`, `lost` (broke off in the
 * middle), `model` (there is no such model), `context` (the conversation is too long), `request`, `server`.
 */
export class Failure extends Error {
  constructor(kind, message, { retryAfter = null } = {}) {
    super(message);
    this.kind = kind;
    /** Seconds, where the server said so. */
    this.retryAfter = retryAfter;
  }
}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** `fetch` whose failures are ours. */
async function request(path, options) {
  try {
    return await fetch(path, { cache: 'no-store', credentials: 'same-origin', redirect: 'error', ...options });
  } catch (error) {
    if (options.signal?.aborted) throw new Failure('stopped', 'stopped');
    throw new Failure('unreachable', `the server could not be reached (${error.message})`);
  }
}

function kindOf(status, code) {
  if (status === 401 || status === 403) return 'key';
  if (status === 429) return 'busy';
  if (status === 503) return code === 'model_loading' ? 'loading' : 'busy';
  if (code === 'model_not_found') return 'model';
  if (code === 'context_length_exceeded') return 'context';
  return status >= 500 ? 'server' : 'request';
}

/** The failure that a response with an error status tells of. */
async function refusal(response) {
  let text = '';
  try {
    text = await response.text();
  } catch {
    // The status alone has to do.
  }
  let error = null;
  try {
    error = JSON.parse(text).error;
  } catch {
    // Not from the server itself: a proxy's page, for example.
  }
  const message = error?.message ?? `${response.status} ${response.statusText} ${text.slice(0, 200)}`.trim();
  const seconds = Number(response.headers.get('retry-after') ?? NaN);
  const retryAfter = Number.isFinite(seconds) && seconds >= 0 ? seconds : null;
  return new Failure(kindOf(response.status, error?.code), message, { retryAfter });
}

/** All models: [{id, loaded}]. */
export async function fetchModels(key) {
  const response = await request('v1/models', { headers: headers(key) });
  if (!response.ok) throw await refusal(response);
  try {
    const { data } = await response.json();
    return data.map(({ id, loaded }) => ({ id: String(id), loaded: loaded === true }));
  } catch {
    throw new Failure('server', 'the list of models could not be read');
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new Failure('stopped', 'stopped'));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', stop);
      resolve();
    }, ms);
    if (signal.aborted) stop();
    else signal.addEventListener('abort', stop, { once: true });
  });
}

/** The payloads of an event stream. Every event of this server is one `data:` line. */
export async function* payloads(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split('\n');
      rest = lines.pop();
      if (rest.length > MAX_LINE) throw new Failure('server', 'a line of the stream is too long');
      for (const line of lines) {
        if (line.startsWith('data:')) yield line.slice(5).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** JSON numbers lose digits in JavaScript, and a seed has 64 bits: it stays a string, in both directions. */
function seedIn(payload) {
  return /"seed":(-?\d+)/.exec(payload)?.[1] ?? null;
}

function bodyOf({ seed, ...fields }) {
  const json = JSON.stringify({ ...fields, stream: true, stream_options: { include_usage: true } });
  return seed ? `${json.slice(0, -1)},"seed":${seed}}` : json;
}

async function open(body, { key, signal, onLoading }) {
  for (;;) {
    const response = await request('v1/chat/completions', {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers(key) },
      body,
      signal,
    });
    if (response.ok) return response;
    const failure = await refusal(response);
    if (failure.kind !== 'loading') throw failure;
    onLoading(failure.message);
    await pause(failure.retryAfter ? failure.retryAfter * 1000 : LOADING_WAIT_MS, signal);
  }
}

/**
 * Asks for an answer to `fields` (of a chat completion; `seed` a string of digits) and calls `onText` with each piece.
 * A server that is still loading is waited for, which `onLoading` hears of.
 *
 * Returns {finish, usage, timings, seed, ignored}; throws a `Failure`. Aborting `signal` closes the connection,
 * by which the server knows to stop.
 */
export async function streamAnswer(fields, { key, signal, onText, onLoading }) {
  const result = { finish: null, usage: null, timings: null, seed: null, ignored: null };
  const response = await open(bodyOf(fields), { key, signal, onLoading });
  result.ignored = response.headers.get('x-shimmy-ignored');
  try {
    for await (const payload of payloads(response.body)) {
      if (payload === '[DONE]') return result;
      const chunk = JSON.parse(payload);
      if (chunk.error) {
        throw new Failure(kindOf(500, chunk.error.code), chunk.error.message ?? 'the answer failed');
      }
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) onText(choice.delta.content);
      if (choice?.finish_reason) {
        result.finish = choice.finish_reason;
        result.timings = chunk.timings ?? null;
        result.seed = seedIn(payload);
      }
      result.usage = chunk.usage ?? result.usage;
    }
  } catch (error) {
    if (signal.aborted) throw new Failure('stopped', 'stopped');
    if (error instanceof Failure) throw error;
    if (error instanceof SyntaxError) throw new Failure('server', 'the stream holds something that is not JSON');
    throw new Failure('lost', 'the connection to the server was lost in the middle of the answer');
  }
  if (signal.aborted) throw new Failure('stopped', 'stopped');
  throw new Failure('lost', 'the stream broke off before its end');
}
