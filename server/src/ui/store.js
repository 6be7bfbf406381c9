// Conversations and preferences in the browser's storage, and as files. Nothing leaves the browser.
//
// A conversation is {id, title, created, updated, model, system, messages}, each message {role, content, …}; times are
// milliseconds since 1970. Each has a key of its own, so that saving one doesn't write the others. What is read, from the
// storage or from a file, is checked field by field: others may have written it.

const CHAT = 'shimmy.chat.';
const PREFERENCES = 'shimmy.preferences';
const FORMAT = 'shimmy-conversations';

/** Bounds of what is kept and imported. */
export const LIMITS = { conversations: 500, messages: 2000, text: 1_000_000, file: 20 << 20 };

/** The storage is full, or there is none. */
export class StorageFailure extends Error {}

/** A file isn't what was hoped for. */
export class ImportFailure extends Error {}

/** A name that no other conversation has. `crypto.randomUUID` exists on secure origins only, and a LAN isn't one. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export function newConversation({ model = '', system = '' } = {}) {
  const now = Date.now();
  return { id: newId(), title: '', created: now, updated: now, model, system, messages: [] };
}

/** The beginning of its first question. */
export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === 'user');
  const text = (first?.content ?? '').trim().split(/\s+/).join(' ');
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
}

function text(value, most = LIMITS.text) {
  return typeof value === 'string' ? value.slice(0, most) : '';
}

function time(value) {
  return Number.isFinite(value) && value >= 0 && value < 8.64e15 ? value : Date.now();
}

function counts(value) {
  if (value === null || typeof value !== 'object') return undefined;
  const numbers = Object.entries(value).filter(([, number]) => Number.isFinite(number));
  return Object.fromEntries(numbers.slice(0, 20));
}

function readMessage(value) {
  if (value === null || typeof value !== 'object' || !['user', 'assistant'].includes(value.role)) return null;
  if (typeof value.content !== 'string' || value.content.length > LIMITS.text) return null;
  const message = { role: value.role, content: value.content };
  if (message.role === 'user') return message;
  message.model = text(value.model, 300);
  if (['stop', 'length', 'stopped'].includes(value.finish)) message.finish = value.finish;
  if (typeof value.seed === 'string' && /^-?\d{1,20}$/.test(value.seed)) message.seed = value.seed;
  if (value.stats) message.stats = counts(value.stats);
  if (value.failure && typeof value.failure === 'object') {
    message.failure = { kind: text(value.failure.kind, 20), message: text(value.failure.message, 2000) };
  }
  return message;
}

/** A conversation of unknown origin; null if it isn't one. */
export function readConversation(value) {
  if (value === null || typeof value !== 'object' || !Array.isArray(value.messages)) return null;
  if (typeof value.id !== 'string' || !/^[\w-]{1,64}$/.test(value.id)) return null;
  if (value.messages.length > LIMITS.messages) return null;
  const messages = value.messages.map(readMessage);
  if (messages.includes(null)) return null;
  return {
    id: value.id,
    title: text(value.title, 100),
    created: time(value.created),
    updated: time(value.updated),
    model: text(value.model, 300),
    system: text(value.system),
    messages,
  };
}

function parse(json) {
  try {
    return JSON.parse(json);
  } catch {
    return null;
  }
}

export class Store {
  /** `storage` is a `Storage`, or null where the browser gives none: then all lasts as long as the page. */
  constructor(storage) {
    this.storage = storage;
    this.conversations = new Map();
    for (const key of storage ? Object.keys(storage) : []) {
      if (key.startsWith(CHAT)) this.reload(key);
    }
  }

  /** Takes over what another tab has written under this key. True if that was a conversation. */
  reload(key) {
    if (!key?.startsWith(CHAT)) return false;
    const conversation = readConversation(parse(this.storage.getItem(key)));
    if (conversation) this.conversations.set(conversation.id, conversation);
    else this.conversations.delete(key.slice(CHAT.length));
    return true;
  }

  /** The latest first. */
  list() {
    return [...this.conversations.values()].sort((a, b) => b.updated - a.updated);
  }

  #write(key, value) {
    if (!this.storage) return;
    try {
      this.storage.setItem(key, JSON.stringify(value));
    } catch {
      throw new StorageFailure(
        'The browser has no room left, so this is not saved. Export conversations and delete some of them.',
      );
    }
  }

  /** Keeps a conversation. It stays in the page even where it can't be saved. */
  save(conversation) {
    const isNew = !this.conversations.has(conversation.id);
    this.conversations.set(conversation.id, conversation);
    if (isNew && this.conversations.size > LIMITS.conversations) {
      throw new StorageFailure(
        `There are ${LIMITS.conversations} conversations already, so this one is not saved. Delete some first.`,
      );
    }
    this.#write(CHAT + conversation.id, conversation);
  }

  remove(id) {
    this.conversations.delete(id);
    this.storage?.removeItem(CHAT + id);
  }

  preferences() {
    const value = parse(this.storage?.getItem(PREFERENCES) ?? '');
    return value && typeof value === 'object' ? value : {};
  }

  savePreferences(preferences) {
    this.#write(PREFERENCES, preferences);
  }

  /** All conversations as the text of a file. */
  exportText() {
    return JSON.stringify({ format: FORMAT, version: 1, conversations: this.list() }, null, 1);
  }

  /**
   * Adds the conversations of an exported file. One that is here already is replaced by a newer one only.
   * Returns {added, kept: how many were left as they are}.
   */
  importText(json) {
    if (json.length > LIMITS.file) throw new ImportFailure('The file is larger than 20 MiB.');
    const value = parse(json);
    if (value?.format !== FORMAT || !Array.isArray(value.conversations)) {
      throw new ImportFailure('This is not a file that was exported here.');
    }
    if (value.version !== 1) throw new ImportFailure('The file is of a newer version of this page.');
    const conversations = value.conversations.map(readConversation);
    if (conversations.includes(null)) throw new ImportFailure('A conversation in the file is damaged; nothing was imported.');
    let [added, kept] = [0, 0];
    for (const conversation of conversations) {
      const here = this.conversations.get(conversation.id);
      if (here && here.updated >= conversation.updated) {
        kept += 1;
      } else {
        this.save(conversation);
        added += 1;
      }
    }
    return { added, kept };
  }
}
