// Markdown to DOM nodes: what chat models write, no more. Every text becomes a text node, so that nothing a model
// writes can become an element; HTML is shown as it is written and images as links.

import { copyButton, el } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEPEST = 12;

// Shows growing text in an element: blocks that have not changed keep their nodes.
export class Markdown {
  constructor(element) {
    this.element = element;
    this.shown = [];
  }

  show(text) {
    const blocks = splitBlocks(text.split("\n"));
    let same = 0;
    while (same < blocks.length && same < this.shown.length && blocks[same] === this.shown[same]) same += 1;
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    this.element.append(...blocks.slice(same).map((block) => renderBlock(block, 0)));
    this.shown = blocks;
  }
}

function render(lines, depth) {
  if (depth > DEEPEST) return [el("p", {}, lines.join("\n"))];
  return splitBlocks(lines).map((block) => renderBlock(block, depth));
}

// The source of each top-level block.
function splitBlocks(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const end = blockEnd(lines, at);
    blocks.push(lines.slice(at, end).join("\n"));
    at = end;
  }
  return blocks;
}

function blockEnd(lines, start) {
  const first = lines[start];
  let end = start + 1;
  const fence = FENCE.exec(first);
  if (fence) {
    while (end < lines.length && !closes(lines[end], fence[1])) end += 1;
    return Math.min(end + 1, lines.length);
  }
  if (HEADING.test(first) || RULE.test(first)) return end;
  if (QUOTE.test(first)) {
    while (end < lines.length && QUOTE.test(lines[end])) end += 1;
    return end;
  }
  if (ITEM.test(first)) return listEnd(lines, start);
  if (isTable(lines, start)) {
    while (end < lines.length && lines[end].includes("|")) end += 1;
    return end;
  }
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end)) end += 1;
  return end;
}

const closes = (line, mark) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
const isTable = (lines, at) => lines[at].includes("|") && DIVIDER.test(lines[at + 1] ?? "") && lines[at + 1].includes("-");
const interrupts = (lines, at) =>
  [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(lines[at])) || isTable(lines, at);

// A list goes on over items of its kind, indented lines, and single blank lines before either.
function listEnd(lines, start) {
  const [, indent, mark] = ITEM.exec(lines[start]);
  const ordered = /\d/.test(mark);
  let end = start + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end].trim() ? lines[end] : (lines[end + 1] ?? "");
    const item = ITEM.exec(line);
    const inside = leading(line) > indent.length;
    const next = item && item[1].length === indent.length && /\d/.test(item[2]) === ordered && !RULE.test(line);
    const lazy = lines[end].trim() && lines[end - 1].trim() && !interrupts(lines, end);
    if (!line.trim() || !(inside || next || lazy)) break;
  }
  return end;
}

const leading = (line) => line.length - line.trimStart().length;

function renderBlock(source, depth) {
  const lines = source.split("\n");
  const fence = FENCE.exec(lines[0]);
  if (fence) {
    const closed = lines.length > 1 && closes(lines.at(-1), fence[1]);
    return code(lines.slice(1, closed ? -1 : undefined).join("\n"), fence[2]);
  }
  const heading = HEADING.exec(lines[0]);
  if (heading) return el(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2].trim().replace(/(^|\s)#+$/, "")));
  if (RULE.test(lines[0])) return el("hr");
  if (QUOTE.test(lines[0])) {
    return el("blockquote", {}, ...render(lines.map((line) => line.replace(QUOTE, "")), depth + 1));
  }
  if (ITEM.test(lines[0])) return list(lines, depth);
  if (isTable(lines, 0)) return table(lines);
  return el("p", {}, ...inline(lines.map((line) => line.trimStart()).join("\n")));
}

export function code(text, language) {
  const head = el("figcaption", {}, el("span", {}, language || "text"), copyButton(() => text, "Copy the code"));
  return el("figure.code", {}, head, el("pre", { tabIndex: 0 }, el("code", {}, text)));
}

function list(lines, depth) {
  const [, indent, mark] = ITEM.exec(lines[0]);
  const items = [];
  let width = 0;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length === indent.length) {
      width = indent.length + item[2].length + Math.max(1, Math.min(item[3].length, 4));
      items.push([line.slice(width)]);
    } else {
      items.at(-1).push(line.slice(Math.min(leading(line), width)));
    }
  }
  const ordered = /\d/.test(mark);
  const loose = lines.some((line) => !line.trim());
  const made = items.map((item) => {
    const children = render(item, depth + 1);
    const tight = !loose && children[0]?.localName === "p";
    return el("li", {}, ...(tight ? [...children[0].childNodes, ...children.slice(1)] : children));
  });
  return el(ordered ? "ol" : "ul", ordered ? { start: Number.parseInt(mark, 10) } : {}, ...made);
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const sides = cells(lines[1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left"));
  const row = (line, tag) =>
    el("tr", {}, ...cells(line).map((cell, i) => el(`${tag}.${sides[i] ?? "left"}`, {}, ...inline(cell))));
  const body = lines.slice(2).map((line) => row(line, "td"));
  return el("div.table", { tabIndex: 0 }, el("table", {}, el("thead", {}, row(lines[0], "th")), el("tbody", {}, ...body)));
}

// Inline: the first of these that fits at the earliest place; what is within emphasis is inline again. How far each
// looks for its end is bounded, so that no text can make the page slow.
const INLINE = [
  [/\\([\\`*_{}[\]()#+\-.!|~>])/, (found) => found[1]],
  [/(`+)([^`]|[^`][\s\S]{0,2000}?[^`])\1(?!`)/, (found) => el("code", {}, found[2].replace(/^ (.*[^ ].*) $/, "$1"))],
  [/!?\[([^\]\n]{0,500})\]\(\s*<?((?:https?:\/\/|mailto:)[^\s)>]+)>?(?:\s+"[^"\n]*")?\s*\)/, (found, d) => link(found[2], found[1], d)],
  [/\bhttps?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]]/, (found) => link(found[0], "", 0)],
  [/\*\*(?=\S)([\s\S]{0,2000}?\S)\*\*(?!\*)/, (found, depth) => el("strong", {}, ...inline(found[1], depth + 1))],
  [/(?<![\p{L}\p{N}_])__(?=\S)([\s\S]{0,2000}?\S)__(?![\p{L}\p{N}_])/u, (found, depth) => el("strong", {}, ...inline(found[1], depth + 1))],
  [/\*(?=[^\s*])([^*]{0,2000}[^\s*])\*(?!\*)/, (found, depth) => el("em", {}, ...inline(found[1], depth + 1))],
  [/(?<![\p{L}\p{N}_])_(?=[^\s_])([^_]{0,2000}[^\s_])_(?![\p{L}\p{N}_])/u, (found, depth) => el("em", {}, ...inline(found[1], depth + 1))],
  [/~~(?=\S)([\s\S]{0,2000}?\S)~~/, (found, depth) => el("del", {}, ...inline(found[1], depth + 1))],
  [/(?<! ) {2,}\n|\\\n/, () => el("br")],
];

function inline(text, depth = 0) {
  const nodes = [];
  // What a pattern finds stays found until the text before it has been passed, so that each looks through it once.
  const next = INLINE.map(() => undefined);
  const patterns = INLINE.map(([pattern]) => new RegExp(pattern.source, `g${pattern.flags}`));
  for (let at = 0; at < text.length; ) {
    let best = -1;
    for (let i = 0; i < INLINE.length && depth <= DEEPEST; i += 1) {
      if (next[i] === undefined || (next[i] && next[i].index < at)) {
        patterns[i].lastIndex = at;
        next[i] = patterns[i].exec(text);
      }
      if (next[i] && (best < 0 || next[i].index < next[best].index)) best = i;
    }
    if (best < 0) {
      nodes.push(text.slice(at));
      break;
    }
    const found = next[best];
    if (found.index > at) nodes.push(text.slice(at, found.index));
    nodes.push(INLINE[best][1](found, depth));
    at = found.index + found[0].length;
  }
  return nodes;
}

function link(address, text, depth) {
  const shown = text ? inline(text.replace(/https?:\/\//g, ""), depth + 1) : [address];
  return el("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow", title: address }, ...shown);
}
