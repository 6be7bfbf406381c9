// The inside of a paragraph: code, emphasis, links. Text becomes DOM nodes one by one, never HTML, so whatever a model
// writes can be shown and can't run.
//
// A span ends at most MAX_SPAN characters after it began. Therefore everything further than that from the end of a text
// that still grows is decided, and only the rest is drawn again: a long answer costs what its length is, not its square.

/** Longest span: from the first character of `**bold**` to its end. */
const MAX_SPAN = 1000;
/** Longest run of one marker. */
const MAX_RUN = 64;
/** A closing marker and the character after it end within so many more. */
const LOOKAHEAD = MAX_RUN + 16;
/** Spans in spans. */
const MAX_DEPTH = 5;

const SPECIAL = /[\\`*_~[<!h]/g;
const ESCAPED = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}_]/u;
const ADDRESS = /https?:\/\/[^\s<>"`\]]{1,900}/y;
const BRACKETED_ADDRESS = /<(https?:\/\/[^\s<>]{1,900})>/y;
const TARGET = /\(\s*<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:\s+"[^"\n]*")?\s*\)/y;

/** The address if a browser may follow it from here: nothing but http and https; else null. */
export function safeAddress(text) {
  try {
    const url = new URL(text);
    return url.protocol === 'https:' || url.protocol === 'http:' ? url.href : null;
  } catch {
    return null;
  }
}

function runLength(text, at) {
  const limit = Math.min(text.length, at + MAX_RUN);
  let end = at;
  while (end < limit && text[end] === text[at]) end += 1;
  return end - at;
}

function isSpace(char) {
  return char === undefined || char.trim() === '';
}

/** Where a run of exactly `length` backticks starts, or -1. */
function findBackticks(text, from, length, limit) {
  for (let at = text.indexOf('`', from); at >= 0 && at < limit; at = text.indexOf('`', at)) {
    const run = runLength(text, at);
    if (run === length) return at;
    at += run;
  }
  return -1;
}

/** Where the marker that closes an emphasis starts, or -1. Skips code and what is escaped. */
function findEmphasisEnd(text, from, marker, length, limit) {
  for (let at = from; at < limit; at += 1) {
    const char = text[at];
    if (char === '\\') {
      at += 1;
    } else if (char === '`') {
      const run = runLength(text, at);
      const end = findBackticks(text, at + run, run, limit);
      at = end < 0 ? at + run - 1 : end + run - 1;
    } else if (char === marker) {
      const run = runLength(text, at);
      // Three close two spans: the inner one's marker comes first.
      const closes = run === length || (run === 3 && length < 3 && marker !== '~');
      const isWord = marker === '_' && WORD.test(text[at + run] ?? ' ');
      if (closes && !isSpace(text[at - 1]) && !isWord) return at + run - length;
      at += run - 1;
    }
  }
  return -1;
}

/** Draws text into nodes. */
class Pen {
  constructor(doc) {
    this.doc = doc;
  }

  element(name, ...children) {
    const element = this.doc.createElement(name);
    element.append(...children);
    return element;
  }

  link(href, ...children) {
    const link = this.element('a', ...children);
    link.setAttribute('href', href);
    link.setAttribute('rel', 'noopener noreferrer');
    link.setAttribute('target', '_blank');
    return link;
  }

  /**
   * Appends the nodes of `text` to `parent`, as far as they are decided when more text may follow (`isOpen`).
   * `context` is {before: the character before it, depth, inLink, isGuess: close at the end what isn't closed}.
   * Returns the number of characters that were drawn.
   */
  draw(parent, text, isOpen, context) {
    const end = isOpen ? text.length - MAX_SPAN - LOOKAHEAD : text.length;
    let [at, plain] = [0, 0];
    const flush = (to) => {
      if (to > plain) parent.append(this.doc.createTextNode(text.slice(plain, to)));
    };
    while (at < end) {
      SPECIAL.lastIndex = at;
      const found = SPECIAL.exec(text)?.index ?? end;
      if (found >= end) {
        at = end;
        break;
      }
      at = found;
      const before = at > 0 ? text[at - 1] : context.before;
      const span = this.span(text, at, { ...context, before });
      if (span?.node) {
        flush(at);
        parent.append(span.node);
        plain = at + span.length;
      }
      at += span?.length ?? 1;
    }
    at = Math.max(at, 0);
    flush(at);
    return at;
  }

  /** The span that begins here: its length and, unless it is plain text, its node. */
  span(text, at, context) {
    switch (text[at]) {
      case '\\': {
        const next = text[at + 1];
        return next && ESCAPED.test(next) ? { length: 2, node: this.doc.createTextNode(next) } : null;
      }
      case '`':
        return this.code(text, at, context);
      case '*':
      case '_':
      case '~':
        return this.emphasis(text, at, context);
      case '[':
        return context.inLink ? null : this.labelled(text, at, context);
      case '!': {
        // Nothing is fetched from elsewhere: a picture is a link to it.
        const link = text[at + 1] === '[' && !context.inLink ? this.labelled(text, at + 1, context) : null;
        return link && { length: link.length + 1, node: link.node };
      }
      case '<':
        return context.inLink ? null : this.bracketed(text, at);
      default:
        return context.inLink || WORD.test(context.before ?? ' ') ? null : this.bare(text, at);
    }
  }

  code(text, at, { isGuess }) {
    const length = runLength(text, at);
    if (length > 8) return { length };
    const limit = Math.min(text.length, at + MAX_SPAN);
    let end = findBackticks(text, at + length, length, limit);
    let whole = end + length - at;
    if (end < 0) {
      if (!isGuess || at + length === text.length || limit < text.length) return { length };
      [end, whole] = [text.length, text.length - at];
    }
    let code = text.slice(at + length, end).replaceAll('\n', ' ');
    if (code.startsWith(' ') && code.endsWith(' ') && code.trim()) code = code.slice(1, -1);
    return { length: whole, node: this.element('code', code) };
  }

  emphasis(text, at, context) {
    const marker = text[at];
    const length = runLength(text, at);
    const isKnown = marker === '~' ? length === 2 : length <= 3;
    const start = at + length;
    const insideWord = marker === '_' && WORD.test(context.before ?? ' ');
    if (!isKnown || isSpace(text[start]) || insideWord || context.depth >= MAX_DEPTH) return { length };
    const limit = Math.min(text.length, at + MAX_SPAN);
    let end = findEmphasisEnd(text, start, marker, length, limit);
    let whole = end + length - at;
    const isUnclosed = end < 0;
    if (isUnclosed) {
      if (!context.isGuess || limit < text.length) return { length };
      [end, whole] = [text.length, text.length - at];
    }
    if (end === start) return { length };
    const names = marker === '~' ? ['del'] : [['em'], ['strong'], ['strong', 'em']][length - 1];
    const inner = this.element(names.at(-1));
    const isGuess = context.isGuess && isUnclosed;
    const within = { ...context, before: marker, depth: context.depth + 1, isGuess };
    this.draw(inner, text.slice(start, end), false, within);
    return { length: whole, node: names.length === 2 ? this.element(names[0], inner) : inner };
  }

  labelled(text, at, context) {
    const limit = Math.min(text.length, at + MAX_SPAN);
    let [end, open] = [at, 0];
    for (; end < limit; end += 1) {
      if (text[end] === '\\') end += 1;
      else if (text[end] === '[') open += 1;
      else if (text[end] === ']' && (open -= 1) === 0) break;
    }
    if (end >= limit || text[end + 1] !== '(') return null;
    const part = text.slice(end + 1, limit);
    TARGET.lastIndex = 0;
    const target = TARGET.exec(part);
    const href = target && safeAddress(target[1]);
    if (!href) return null;
    const link = this.link(href);
    const label = text.slice(at + 1, end) || href;
    this.draw(link, label, false, { before: ' ', depth: context.depth + 1, inLink: true });
    return { length: end + 1 - at + target[0].length, node: link };
  }

  bracketed(text, at) {
    BRACKETED_ADDRESS.lastIndex = at;
    const found = BRACKETED_ADDRESS.exec(text);
    const href = found && safeAddress(found[1]);
    return href ? { length: found[0].length, node: this.link(href, found[1]) } : null;
  }

  bare(text, at) {
    ADDRESS.lastIndex = at;
    let address = ADDRESS.exec(text)?.[0];
    if (!address) return null;
    // What ends a sentence isn't part of an address, nor is a bracket that was opened before it.
    const hasBracket = address.includes('(');
    address = address.replace(hasBracket ? /[.,;:!?'*_~]+$/ : /[.,;:!?'*_~)]+$/, '');
    const href = safeAddress(address);
    return href ? { length: address.length, node: this.link(href, address) } : null;
  }
}

/** The text of one element, which may still grow. */
export class GrowingText {
  #pen;
  #text = '';
  #before = ' ';
  /** Holds what isn't decided yet; drawn again with every flush. */
  #tail;

  constructor(doc, parent) {
    this.#pen = new Pen(doc);
    this.parent = parent;
  }

  append(text) {
    this.#text += text;
  }

  /** Shows what was appended. */
  flush(isEnd = false) {
    this.#tail?.remove();
    const drawn = this.#pen.draw(this.parent, this.#text, !isEnd, { before: this.#before, depth: 0 });
    if (drawn > 0) this.#before = this.#text[drawn - 1];
    this.#text = this.#text.slice(drawn);
    if (this.#text) {
      this.#tail = this.#pen.element('span');
      this.#pen.draw(this.#tail, this.#text, false, { before: this.#before, depth: 0, isGuess: true });
      this.parent.append(this.#tail);
    }
  }
}
