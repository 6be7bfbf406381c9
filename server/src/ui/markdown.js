// Markdown of a growing text as DOM nodes: paragraphs, headings, lists, quotes, tables, rules and fenced code.
//
// It reads each character once. The beginning of a line is held back until it is clear what the line is; the rest flows
// into the block that it belongs to. Blocks that are finished are never touched again. What isn't Markdown here, HTML
// above all, is text. The nodes are the same however the text was cut into pieces.

import { GrowingText } from './inline.js';

/** A line whose kind isn't clear after so many characters is text. */
const MAX_UNDECIDED = 2000;
/** Lists and quotes within each other. */
const MAX_NESTING = 12;

const FENCE = /^(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^(#{1,6})(?:[ \t]+|$)/;
const RULE = /^([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const ITEM = /^(?:[-*+]|(\d{1,9})[.)])([ \t]+|$)/;
const DELIMITER_ROW = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
/** What may become one of the above when more comes. */
const MAYBE_MARKER = /^(?:`{1,2}$|~{1,2}$|`{3}|~{3}|#{1,6}[ \t]*$|([-*_])(?:[ \t]*\1)*[ \t]*$|[-*+][ \t]*$|\d{1,9}(?:[.)][ \t]*)?$|>$)/;

function cells(row) {
  const inner = row.trim().replace(/^\|/, '').replace(/(?<!\\)\|$/, '');
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));
}

/** A paragraph or a heading. */
class Text {
  kind = 'text';

  constructor(doc, node, isOneLine) {
    this.node = node;
    this.isOneLine = isOneLine;
    this.text = new GrowingText(doc, node);
    /** The only line so far, which may turn out to be the head of a table. */
    this.onlyLine = '';
  }

  append(text) {
    this.text.append(text);
    if (this.onlyLine === null) return;
    this.onlyLine += text;
    if (this.onlyLine.length > MAX_UNDECIDED) this.onlyLine = null;
  }

  addLine(text) {
    this.text.append('\n' + text);
    this.onlyLine = null;
  }

  flush(isEnd) {
    this.text.flush(isEnd);
  }
}

/** Fenced code. */
class Code {
  kind = 'code';

  constructor(doc, parent, fence, info) {
    this.fence = fence;
    this.isEmpty = true;
    this.pending = '';
    this.node = doc.createElement('div');
    this.node.className = 'code';
    const bar = doc.createElement('div');
    bar.className = 'code-bar';
    const name = doc.createElement('span');
    name.append(/^[\w+#.-]{1,30}/.exec(info.trim())?.[0] ?? '');
    const copy = doc.createElement('button');
    copy.className = 'copy-code quiet';
    copy.setAttribute('type', 'button');
    copy.setAttribute('aria-label', 'Copy code');
    copy.append('Copy');
    bar.append(name, copy);
    const [pre, code] = [doc.createElement('pre'), doc.createElement('code')];
    // It scrolls sideways, also with the keyboard.
    pre.setAttribute('tabindex', '0');
    this.content = doc.createTextNode('');
    code.append(this.content);
    pre.append(code);
    this.node.append(bar, pre);
    parent.append(this.node);
  }

  addLine(text) {
    this.pending += (this.isEmpty ? '' : '\n') + text;
    this.isEmpty = false;
  }

  append(text) {
    this.pending += text;
  }

  flush() {
    if (this.pending) this.content.appendData(this.pending);
    this.pending = '';
  }

  /** Whether this line ends it; null while that isn't clear. */
  isClosedBy(line, isWhole) {
    const run = /^ {0,3}(`*|~*)[ \t]*$/.exec(line)?.[1];
    if (run === undefined || (run && run[0] !== this.fence[0])) return false;
    return isWhole ? run.length >= this.fence.length : null;
  }
}

/** A table, a whole row at a time. */
class Table {
  kind = 'table';

  constructor(doc, parent, head, delimiters) {
    this.doc = doc;
    this.aligned = cells(delimiters).map((cell) => {
      if (!cell.endsWith(':')) return null;
      return cell.startsWith(':') ? 'center' : 'end';
    });
    this.node = doc.createElement('div');
    this.node.className = 'table';
    this.node.setAttribute('tabindex', '0');
    const [table, top] = [doc.createElement('table'), doc.createElement('thead')];
    this.body = doc.createElement('tbody');
    top.append(this.row(head, 'th'));
    table.append(top, this.body);
    this.node.append(table);
    parent.append(this.node);
  }

  row(line, name) {
    const row = this.doc.createElement('tr');
    const texts = cells(line);
    this.aligned.forEach((align, index) => {
      const cell = this.doc.createElement(name);
      if (align) cell.className = align;
      const text = new GrowingText(this.doc, cell);
      text.append(texts[index] ?? '');
      text.flush(true);
      row.append(cell);
    });
    return row;
  }

  addRow(line) {
    this.body.append(this.row(line, 'td'));
  }

  flush() {}
}

/** Draws a text that comes in pieces: `push` them, `flush` to see them (once a frame is enough), `end` after the last. */
export class MarkdownStream {
  #doc;
  #root;
  /** Open lists and quotes, the outermost first: {kind, node, indent, list, isOrdered}. */
  #stack = [];
  /** The open block, if it can take more. */
  #leaf = null;
  /** The beginning of a line whose kind isn't clear. */
  #line = '';
  /** It is clear, and the rest of the line goes to the open block. */
  #isFlowing = false;

  constructor(root, doc = root.ownerDocument) {
    this.#root = root;
    this.#doc = doc;
  }

  push(text) {
    text = text.replaceAll('\r', '');
    for (let at = 0; at < text.length; ) {
      const newline = text.indexOf('\n', at);
      const end = newline < 0 ? text.length : newline;
      if (this.#isFlowing) {
        this.#leaf.append(text.slice(at, end));
        at = end;
      } else {
        // No more than that many at once, so that the decision doesn't depend on the pieces.
        const part = text.slice(at, Math.min(end, at + MAX_UNDECIDED + 1 - this.#line.length));
        this.#line += part;
        at += part.length;
        const isTooLong = this.#line.length > MAX_UNDECIDED;
        this.#isFlowing = this.#begin(at === newline && !isTooLong);
        if (isTooLong && !this.#isFlowing) this.#isFlowing = this.#text(this.#line, 0, true);
      }
      if (at === newline) {
        this.#endLine();
        at += 1;
      }
    }
  }

  flush() {
    this.#leaf?.flush(false);
  }

  end() {
    if (!this.#isFlowing && this.#line) this.#begin(true);
    this.#close();
    this.#stack = [];
  }

  #endLine() {
    this.#isFlowing = false;
    this.#line = '';
    if (this.#leaf?.isOneLine) this.#close();
  }

  #close() {
    this.#leaf?.flush(true);
    this.#leaf = null;
  }

  #parent(depth = this.#stack.length) {
    return this.#stack[depth - 1]?.node ?? this.#root;
  }

  /** Leaves all but the outer `depth` lists and quotes. */
  #leave(depth) {
    this.#close();
    this.#stack.length = depth;
  }

  /** Finds out what the line is, and does it. True when it is clear and the rest may flow. */
  #begin(isWhole) {
    let rest = this.#line;
    let depth = 0;
    for (; depth < this.#stack.length; depth += 1) {
      const container = this.#stack[depth];
      const wide = rest.replace(/^[ \t]+/, (indent) => indent.replaceAll('\t', '    '));
      const spaces = /^ */.exec(wide)[0].length;
      const isBlank = rest.trim() === '';
      if (isBlank && !isWhole) return false;
      if (container.kind === 'quote') {
        const mark = /^ {0,3}>[ \t]?/.exec(rest);
        if (!mark) break;
        rest = rest.slice(mark[0].length);
        if (!rest && !isWhole) return false;
      } else if (isBlank) {
        rest = '';
      } else if (spaces >= Math.min(container.indent, 2)) {
        // Models often indent by two what is below `1. `.
        rest = wide.slice(Math.min(spaces, container.indent));
      } else {
        break;
      }
    }
    return this.#block(rest, depth, isWhole);
  }

  #block(rest, depth, isWhole) {
    const leaf = this.#leaf;
    const isInside = depth === this.#stack.length;
    if (leaf?.kind === 'code' && isInside) return this.#codeLine(rest, isWhole);
    const line = rest.trimStart();
    if (line === '') {
      if (!isWhole) return false;
      // A blank line ends a quote, but a list goes on after it.
      this.#close();
      if (this.#stack[depth]?.kind === 'quote') this.#stack.length = depth;
      return false;
    }
    if (leaf?.kind === 'table' && isInside) {
      if (!isWhole) return false;
      if (line.includes('|')) {
        leaf.addRow(line);
        return false;
      }
      this.#close();
    }
    if (leaf?.kind === 'text' && isInside && leaf.onlyLine?.includes('|') && /^[-|: \t]+$/.test(line)) {
      if (!isWhole) return false;
      if (DELIMITER_ROW.test(line) && cells(line).length === cells(leaf.onlyLine).length) {
        leaf.node.remove();
        this.#leaf = new Table(this.#doc, this.#parent(), leaf.onlyLine, line);
        return false;
      }
    }
    if (!isWhole && MAYBE_MARKER.test(line)) return false;
    return this.#marked(line, rest.length - line.length, depth, isWhole) ?? this.#text(line, depth, false);
  }

  #codeLine(rest, isWhole) {
    const closed = this.#leaf.isClosedBy(rest, isWhole);
    if (closed === null) return false;
    if (closed) {
      this.#close();
      return false;
    }
    this.#leaf.addLine(rest);
    return true;
  }

  /** A line that begins with a marker; null for any other. */
  #marked(line, indent, depth, isWhole) {
    const fence = isWhole && FENCE.exec(line);
    if (fence) {
      this.#leave(depth);
      this.#leaf = new Code(this.#doc, this.#parent(), fence[1], fence[2]);
      return false;
    }
    const heading = HEADING.exec(line);
    if (heading) {
      this.#leave(depth);
      this.#open(`h${heading[1].length}`, true, line.slice(heading[0].length));
      return true;
    }
    if (isWhole && RULE.test(line)) {
      this.#leave(depth);
      this.#parent().append(this.#doc.createElement('hr'));
      return false;
    }
    if (depth >= MAX_NESTING) return null;
    if (line[0] === '>') {
      this.#leave(depth);
      const node = this.#doc.createElement('blockquote');
      this.#parent().append(node);
      this.#stack.push({ kind: 'quote', node });
      return this.#inner(line.replace(/^>[ \t]?/, ''), isWhole);
    }
    const item = ITEM.exec(line);
    // A number in the middle of a sentence, at the start of a line, isn't a list.
    const interrupts = this.#leaf?.kind === 'text' && depth === this.#stack.length && !this.#stack[depth];
    if (!item || (interrupts && (item[1] ?? '1') !== '1')) return null;
    this.#item(item, indent, depth);
    return this.#inner(line.slice(item[0].length), isWhole);
  }

  #inner(rest, isWhole) {
    if (rest.trim() === '' && isWhole) return false;
    // The markers are done with: what follows is looked at as if the line began here.
    this.#line = '';
    const indent = this.#stack.map((c) => (c.kind === 'quote' ? '> ' : ' '.repeat(c.indent))).join('');
    this.#line = indent + rest;
    return this.#block(rest, this.#stack.length, isWhole);
  }

  #item(item, indent, depth) {
    const isOrdered = item[1] !== undefined;
    const sibling = this.#stack[depth];
    let list = sibling?.kind === 'item' && sibling.isOrdered === isOrdered ? sibling.list : null;
    this.#leave(depth);
    if (!list) {
      list = this.#doc.createElement(isOrdered ? 'ol' : 'ul');
      if (isOrdered && Number(item[1]) !== 1) list.setAttribute('start', String(Number(item[1])));
      this.#parent().append(list);
    }
    const node = this.#doc.createElement('li');
    list.append(node);
    const width = item[0].trimEnd().length + (item[2].length > 4 ? 1 : Math.max(item[2].length, 1));
    this.#stack.push({ kind: 'item', node, list, isOrdered, indent: indent + width });
  }

  #text(line, depth, isForced) {
    // A line of text goes on with a paragraph even where its list or quote isn't marked again.
    const goesOn = this.#leaf?.kind === 'text' && !this.#leaf.isOneLine;
    if (goesOn) {
      this.#leaf.addLine(line);
      return true;
    }
    if (this.#leaf?.kind === 'code' && isForced && depth === 0 && this.#stack.length === 0) {
      this.#leaf.addLine(line);
      return true;
    }
    this.#leave(depth);
    this.#open('p', false, line);
    return true;
  }

  #open(name, isOneLine, text) {
    const node = this.#doc.createElement(name);
    this.#parent().append(node);
    this.#leaf = new Text(this.#doc, node, isOneLine);
    this.#leaf.append(text);
  }
}

/** Draws a whole text. */
export function renderMarkdown(root, text, doc = root.ownerDocument) {
  const stream = new MarkdownStream(root, doc);
  stream.push(text);
  stream.end();
}
