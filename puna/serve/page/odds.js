// A text token by token, tinted by how likely each was; pointing at one, or going through them with the arrow keys,
// shows what else might have stood there.

import { el } from "./dom.js";

const LEVELS = [0.9, 0.6, 0.3, 0.1];

export class Tokens {
  constructor(element) {
    this.element = element;
    element.classList.add("tokens");
    element.replaceChildren();
  }

  show(tokens) {
    for (const token of tokens.slice(this.element.childNodes.length)) {
      const chance = Math.exp(token.logprob);
      const level = LEVELS.filter((limit) => chance < limit).length;
      const first = !this.element.childNodes.length;
      const said = `${visible(token.name)}, ${percent(chance)}`;
      const node = el(`span.token.level${level}`, { tabIndex: first ? 0 : -1, role: "button", "aria-label": said }, token.text);
      if (!token.text) node.classList.add("partial");
      NODES.set(node, token);
      this.element.append(node);
    }
  }
}

const NODES = new WeakMap();
const percent = (chance) =>
  chance < 5e-5 ? "< 0.01 %" : `${(100 * chance).toFixed(chance > 0.0995 ? 0 : chance > 0.00995 ? 1 : 2)} %`;
const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";

export function installTip(log, tip) {
  const hide = () => (tip.hidden = true);
  const show = (event) => {
    const token = NODES.get(event.target);
    if (!token) return hide();
    fill(tip, token);
    place(tip, event.target.getClientRects()[0] ?? event.target.getBoundingClientRect());
  };
  log.addEventListener("pointerover", show);
  log.addEventListener("pointerleave", hide);
  log.addEventListener("focusin", show);
  log.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, { capture: true, passive: true });
  log.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: "previousSibling", ArrowRight: "nextSibling" }[event.key];
    const target = step && NODES.has(event.target) && event.target[step];
    if (!target) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  });
}

function fill(tip, token) {
  const others = token.top.some((other) => other.text === token.name) ? token.top : [token.top, { text: token.name, logprob: token.logprob }].flat();
  const rows = others.map(({ text, logprob }) => {
    const chance = Math.exp(logprob);
    const bar = el("i");
    bar.style.setProperty("--share", chance);
    const row = el("tr", {}, el("td", {}, visible(text)), el("td", {}, bar), el("td", {}, percent(chance)));
    row.classList.toggle("chosen", text === token.name);
    return row;
  });
  tip.replaceChildren(el("table", {}, el("tbody", {}, ...rows)));
}

function place(tip, box) {
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left + box.width / 2 - width / 2, innerWidth - width - 8));
  const above = box.top - height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
}
