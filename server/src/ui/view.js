// A conversation on the page: its messages, the one that is being written, failures, and editing in place.

import { MarkdownStream, renderMarkdown } from './markdown.js';

function element(name, className = '', ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function button(text, action, label) {
  const node = element('button', 'quiet', text);
  node.type = 'button';
  node.dataset.action = action;
  if (label) node.setAttribute('aria-label', label);
  return node;
}

function seconds(ms) {
  return ms < 995 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 9950 ? 2 : 1)} s`;
}

function tokens(count) {
  return `${count} ${count === 1 ? 'token' : 'tokens'}`;
}

/** What an answer took, as texts. */
export function statistics({ stats, seed }) {
  if (!stats) return [];
  const parts = [];
  if (stats.perSecond) parts.push(`${stats.perSecond.toFixed(1)} tokens/s`);
  if (stats.firstMs !== undefined) parts.push(`first token after ${seconds(stats.firstMs)}`);
  if (stats.prompt !== undefined) {
    parts.push(`prompt ${tokens(stats.prompt)}${stats.cached ? `, ${stats.cached} cached` : ''}`);
  }
  if (stats.completion !== undefined) parts.push(`answer ${tokens(stats.completion)}`);
  if (seed) parts.push(`seed ${seed}`);
  return parts;
}

/** What a reader should know of how an answer ended; empty if it just ended. */
function ending(message) {
  switch (message.finish) {
    case 'stop':
      return '';
    case 'length':
      return 'Cut off: it reached the limit of tokens, which is “Max tokens” in the settings or else the model’s context.';
    case 'stopped':
      return 'Stopped.';
    default:
      return message.failure ? '' : 'The page was closed before the answer was complete.';
  }
}

/** What to do about a failure. */
function advice({ kind, retryAfter }) {
  switch (kind) {
    case 'key':
      return 'Enter an API key that this server knows.';
    case 'busy':
      return retryAfter ? `Try again in ${retryAfter} s.` : 'Try again in a moment.';
    case 'unreachable':
      return 'See whether the server is running, then try again.';
    case 'lost':
      return 'What had come is kept. See whether the server is running, then try again.';
    case 'model':
      return 'Pick another model above, then try again.';
    case 'context':
      return 'Start a new chat, delete earlier messages or lower “Max tokens”.';
    case 'request':
      return 'Change the request (settings, or the question), then try again.';
    default:
      return 'Try again; the server’s log says more.';
  }
}

/** Shows one conversation. `actions` are called with a message: copy, edit, remove, regenerate, enterKey. */
export class Transcript {
  #root;
  #actions;
  #entries = new Map();
  #frame = 0;
  #writing = new Set();

  constructor(root, actions, onGrow) {
    this.#root = root;
    this.#actions = actions;
    this.onGrow = onGrow;
    root.addEventListener('click', (event) => this.#click(event));
  }

  /** Shows these messages instead; `isWriting` tells of each whether more of it will come. */
  show(messages, isWriting) {
    this.#root.replaceChildren();
    this.#entries.clear();
    this.#writing.clear();
    messages.forEach((message) => this.add(message, isWriting(message)));
  }

  has(message) {
    return this.#entries.has(message);
  }

  /** Appends a message. */
  add(message, isWriting = false) {
    const isUser = message.role === 'user';
    const article = element('article', `message ${message.role}`);
    const who = element('h3', isUser ? 'hidden' : 'who', isUser ? 'You' : message.model || 'Answer');
    const body = element('div', isUser ? 'body plain' : 'body markdown');
    const foot = element('div', 'foot');
    article.append(who, body, foot);
    const entry = { message, article, body, foot, stream: null };
    this.#entries.set(message, entry);
    this.#root.append(article);
    if (isUser) {
      body.textContent = message.content;
      foot.append(button('Copy', 'copy'), button('Edit', 'edit'), button('Delete', 'remove', 'Delete question and answer'));
    } else if (isWriting) {
      article.setAttribute('aria-busy', 'true');
      entry.stream = new MarkdownStream(body);
      entry.wait = element('p', 'wait', 'Waiting for the model…');
      article.insertBefore(entry.wait, foot);
      this.grow(message, message.content);
    } else {
      renderMarkdown(body, message.content);
      this.#finish(entry);
    }
  }

  /** More text of a message that is being written. */
  grow(message, text) {
    const entry = this.#entries.get(message);
    if (!entry?.stream || !text) return;
    entry.wait?.remove();
    entry.stream.push(text);
    this.#writing.add(entry);
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#writing.forEach((writing) => writing.stream?.flush());
      this.#writing.clear();
      this.onGrow();
    });
  }

  /** Says what a message that has no text yet waits for. */
  waiting(message, text) {
    const wait = this.#entries.get(message)?.wait;
    if (wait) wait.textContent = text;
  }

  /** The message is complete, or never will be. */
  done(message) {
    const entry = this.#entries.get(message);
    if (!entry?.stream) return;
    entry.wait?.remove();
    entry.stream.end();
    entry.stream = null;
    this.#writing.delete(entry);
    entry.article.removeAttribute('aria-busy');
    this.#finish(entry);
    this.onGrow();
  }

  #finish({ message, article, foot }) {
    const note = ending(message);
    if (note) article.insertBefore(element('p', 'note', note), foot);
    if (message.failure) article.insertBefore(this.#failure(message), foot);
    const parts = statistics(message);
    if (message.content) foot.append(button('Copy', 'copy'));
    if (!message.failure) foot.append(button('Regenerate', 'regenerate'));
    if (parts.length) {
      const stats = element('ul', 'stats', ...parts.map((part) => element('li', '', part)));
      stats.setAttribute('aria-label', 'Statistics');
      foot.append(stats);
    }
  }

  #failure(message) {
    const { failure } = message;
    const box = element('div', 'failure');
    box.setAttribute('role', 'group');
    box.setAttribute('aria-label', 'Error');
    const what = failure.message.charAt(0).toUpperCase() + failure.message.slice(1);
    box.append(element('p', '', `${what}${/[.!?]$/.test(what) ? '' : '.'}`), element('p', 'help', advice(failure)));
    const row = element('div', 'row');
    if (failure.kind === 'key') row.append(button('Enter a key…', 'enterKey'));
    row.append(button('Try again', 'regenerate'));
    box.append(row);
    return box;
  }

  /** Lets the user change a question in place. `onSave` gets the new text. */
  edit(message, onSave) {
    const entry = this.#entries.get(message);
    if (!entry || entry.article.querySelector('textarea')) return;
    const { article, body, foot } = entry;
    const area = element('textarea', 'edit');
    area.value = message.content;
    area.setAttribute('aria-label', 'Edit the question');
    const save = button('Send', 'saveEdit');
    save.className = 'primary';
    const row = element('div', 'row', save, button('Cancel', 'cancelEdit'));
    const close = () => {
      area.remove();
      row.remove();
      article.classList.remove('editing');
      body.hidden = foot.hidden = false;
    };
    const finish = () => {
      const text = area.value.trim();
      if (!text) return;
      close();
      onSave(text);
    };
    const cancel = () => {
      close();
      foot.querySelector('[data-action=edit]').focus();
    };
    row.addEventListener('click', ({ target }) => {
      if (target.dataset.action === 'saveEdit') finish();
      if (target.dataset.action === 'cancelEdit') cancel();
    });
    area.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') {
        // Not also: stop the answer.
        event.stopPropagation();
        cancel();
      } else if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        finish();
      }
    });
    article.classList.add('editing');
    body.hidden = foot.hidden = true;
    article.append(area, row);
    area.style.height = `${Math.min(area.scrollHeight + 2, 320)}px`;
    area.focus();
  }

  #click(event) {
    const target = event.target.closest('button');
    if (!target) return;
    if (target.classList.contains('copy-code')) {
      const code = target.closest('.code').querySelector('code').textContent;
      this.#actions.copyText(code, target);
      return;
    }
    const article = target.closest('.message');
    const entry = [...this.#entries.values()].find((candidate) => candidate.article === article);
    this.#actions[target.dataset.action]?.(entry.message, target);
  }
}

/** Puts a text into the clipboard, also where the browser's own interface is for secure origins only. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // The other way may still work.
    }
  }
  const area = element('textarea', 'hidden');
  area.value = text;
  const parent = document.querySelector('dialog[open]') ?? document.body;
  const focused = document.activeElement;
  parent.append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  focused?.focus();
  return done;
}
