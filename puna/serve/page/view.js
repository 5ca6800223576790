// What a conversation looks like: turns, replies side by side, calls of tools as steps.

import { copyButton, el, icon, iconButton } from "./dom.js";
import { Markdown, code } from "./markdown.js";
import { Tokens } from "./odds.js";

// One user's message; on.edit(text) sends another in its place.
export function userMessage(text, on) {
  const body = el("div.bubble", {}, text);
  const actions = el("div.actions", {}, copyButton(() => text, "Copy the message"), iconButton("edit", "Edit the message", () => edit()));
  const article = el("article.user", { "aria-label": "You" }, body, actions);

  function edit() {
    const area = el("textarea", { value: text, "aria-label": "Edit the message" });
    const form = el(
      "form.editor",
      { onsubmit: (event) => (event.preventDefault(), area.value.trim() && on.edit(area.value)) },
      area,
      el("div.buttons", {}, el("button", { type: "button", onclick: close }, "Cancel"), el("button.primary", {}, "Send")),
    );
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") (event.stopPropagation(), close());
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) (event.preventDefault(), form.requestSubmit());
    });
    area.addEventListener("input", () => fit(area));
    article.replaceChildren(form);
    fit(area);
    area.focus();
    area.setSelectionRange(text.length, text.length);
  }

  function close() {
    article.replaceChildren(body, actions);
    actions.lastChild.focus();
  }

  article.edit = edit;
  return article;
}

// A text box as high as its text.
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

// A reply as it grows: update() after every change of `reply`, finish() at its end.
export class ReplyView {
  constructor(reply, { named, odds, on }) {
    this.reply = reply;
    this.on = on;
    this.odds = odds;
    this.steps = [];
    this.body = el("div.steps");
    this.foot = el("div.actions");
    const name = el("header", {}, reply.model);
    this.element = el("article.reply", { "aria-label": `Reply of ${reply.model}` }, named ? name : null, this.body, this.foot);
    this.update();
  }

  set busy(busy) {
    this.element.classList.toggle("busy", busy);
    this.element.setAttribute("aria-busy", busy);
    this.update();
    if (!busy) this.finish();
  }

  update() {
    const { steps } = this.reply;
    while (this.steps.length < steps.length) {
      this.steps.push(new StepView(steps[this.steps.length], this.odds));
      this.body.append(this.steps.at(-1).element);
    }
    for (const step of this.steps) step.update(this.element.classList.contains("busy"));
  }

  finish() {
    const { reply } = this;
    const texts = reply.steps.map((step) => step.text);
    const odds = iconButton("odds", "Token probabilities", () => this.toggleOdds());
    odds.setAttribute("aria-pressed", this.odds);
    odds.hidden = !reply.steps.some((step) => step.tokens.length);
    const cut = reply.steps.at(-1)?.finish === "length" ? "cut off at the most tokens" : reply.stopped ? "stopped" : "";
    const parts = [
      copyButton(() => texts.filter(Boolean).join("\n\n"), "Copy the reply"),
      iconButton("again", "Answer again", () => this.on.again()),
      odds,
      el("span.figures", {}, [cut, figures(reply.steps)].filter(Boolean).join(" · ")),
    ];
    this.foot.replaceChildren(...parts);
    if (reply.error) this.body.append(el("p.error", { role: "alert" }, reply.error));
  }

  toggleOdds() {
    this.odds = !this.odds;
    this.foot.querySelector("[aria-pressed]")?.setAttribute("aria-pressed", this.odds);
    for (const step of this.steps) step.odds = this.odds;
    this.update();
  }
}

function figures(steps) {
  const tokens = steps.reduce((sum, step) => sum + (step.usage?.completion ?? 0), 0);
  const seconds = steps.reduce((sum, step) => sum + step.seconds, 0);
  if (!tokens) return "";
  return `${tokens} tokens${seconds > 0 ? ` · ${(tokens / seconds).toFixed(tokens / seconds < 10 ? 1 : 0)}/s` : ""}`;
}

class StepView {
  constructor(step, odds) {
    this.step = step;
    this.odds = odds;
    this.text = el("div.prose");
    this.calls = el("ol.calls", { "aria-label": "Calls of tools" });
    this.element = el("div.step", {}, this.text, this.calls);
  }

  update(busy) {
    const { step } = this;
    const kind = this.odds && step.tokens.length ? Tokens : Markdown;
    if (!(this.shown instanceof kind)) {
      this.text.className = "prose";
      this.text.replaceChildren();
      this.shown = new kind(this.text);
    }
    this.shown.show(kind === Tokens ? step.tokens : step.text);
    this.text.hidden = !this.text.childNodes.length;
    step.calls.forEach((call, i) => this.showCall(call, i, busy));
    this.calls.hidden = !step.calls.length;
  }

  showCall(call, place, busy) {
    const state = call.result ? (call.result.error ? "failed" : "done") : busy ? "running" : "not run";
    const before = this.calls.children[place];
    if (before?.dataset.shown === `${state} ${call.arguments.length}`) return;
    const open = before?.querySelector("details").open ?? false;
    const item = el("li", { dataset: { shown: `${state} ${call.arguments.length}` } }, callNode(call, state, open));
    if (before) before.replaceWith(item);
    else this.calls.append(item);
  }
}

function callNode(call, state, open) {
  const given = parsed(call.arguments);
  const brief = given ? Object.values(given).map(String).join(", ") : call.arguments;
  const took = call.result?.seconds >= 0.1 ? ` ${call.result.seconds.toFixed(1)} s` : "";
  const label = { done: "", failed: "failed", running: "running …", "not run": "not run" }[state];
  const summary = el(
    "summary",
    {},
    icon("tool"),
    el("b", {}, call.name),
    el("span.brief", {}, brief),
    state === "done" ? el("span.result", {}, `→ ${call.result.text.split("\n")[0] || "nothing"}`) : null,
    el("span.state", {}, label + took),
    icon("chevron"),
  );
  const parts = asked(call, given);
  if (call.result) {
    parts.push(code(call.result.text, state === "failed" ? "failed" : "result"));
    for (const image of call.result.images ?? []) {
      parts.push(el("img", { src: `data:image/png;base64,${image}`, alt: `Picture made by ${call.name}` }));
    }
  }
  return el(`details.call.${state.replace(" ", "-")}`, { open }, summary, el("div.inside", {}, ...parts));
}

function asked(call, given) {
  if (!given) return [code(call.arguments, "json")];
  const names = Object.keys(given);
  if (names.length === 1 && typeof given[names[0]] === "string") return [code(given[names[0]], names[0])];
  return [code(JSON.stringify(given, null, 2), "json")];
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

// What stands where there is no message yet.
export function welcome(models, tools, on) {
  const names = tools.map((tool) => tool.function?.name ?? tool.type);
  const starts = ["What is 17 plus 25?", "Write a short story about a llama.", "Explain how rain forms."];
  return el(
    "div.welcome",
    {},
    el("img", { src: "icon.svg", alt: "", width: 56, height: 56 }),
    el("h1", {}, models.length > 1 ? "Ask them side by side" : "What shall we talk about?"),
    el("p", {}, names.length ? `Tools: ${names.join(", ")}.` : "It runs on your own machine; nothing leaves it."),
    el("div.starts", {}, ...starts.map((text) => el("button", { type: "button", onclick: () => on.start(text) }, text))),
  );
}
