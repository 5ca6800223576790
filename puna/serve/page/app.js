// The page's state and its wiring: conversations, settings, what is being answered, keys.

import { ApiError, getConfig } from "./api.js";
import { announce, el, icon, iconButton } from "./dom.js";
import { installTip } from "./odds.js";
import { installSettings } from "./settings.js";
import { deleteConversation, loadConversations, loadPreferences, newConversation, saveConversation, savePreferences } from "./store.js";
import { messagesBefore, talk } from "./talk.js";
import { ReplyView, fit, userMessage, welcome } from "./view.js";

const $ = (id) => document.getElementById(id);
const TOUCH = matchMedia("(hover: none)");
const NEAR = 80; // pixels from the end within which the page follows a growing reply

const preferences = loadPreferences();
const conversations = loadConversations();
const running = new Map(); // conversation id -> AbortController
const views = new Map(); // reply -> its ReplyView, of the conversation on show
const deleted = new WeakSet();
let config = { models: [], tools: [], max_len: 0 };
let current = newConversation();
let following = true;

// Conversations

function open(conversation) {
  current = conversation;
  following = true;
  showPanel("chats", false);
  draw();
  drawList();
  if (!TOUCH.matches) $("message").focus();
}

function draw() {
  views.clear();
  const names = chosenModels();
  const turns = current.turns.map((turn, index) => drawTurn(turn, index));
  $("log").replaceChildren(...(turns.length ? turns : [welcome(names, usedTools(), { start: say })]));
  document.title = current.title ? `${current.title} – puna` : "puna";
  showBusy();
  follow();
}

function drawTurn(turn, index) {
  const named = turn.replies.length > 1 || config.models.length > 1;
  const replies = turn.replies.map((reply) => {
    const view = new ReplyView(reply, { named, odds: preferences.odds, on: { again: () => answer(index, [reply.model]) } });
    views.set(reply, view);
    view.busy = Boolean(reply.busy);
    return view.element;
  });
  const columns = el("div.replies", {}, ...replies);
  columns.classList.toggle("several", replies.length > 1);
  return el("section.turn", {}, userMessage(turn.user, { edit: (text) => say(text, index) }), columns);
}

function drawList() {
  $("list").replaceChildren(
    ...conversations.map((conversation) => {
      const shown = conversation === current;
      const name = el("button.chat", { type: "button", "aria-current": shown ? "true" : null, onclick: () => open(conversation) }, conversation.title);
      return el("li", {}, name, iconButton("trash", `Delete ${conversation.title}`, () => remove(conversation)));
    }),
  );
}

function remove(conversation) {
  if (!confirm(`Delete “${conversation.title}”?`)) return;
  running.get(conversation.id)?.abort();
  deleted.add(conversation); // a reply that ends now must not store it again
  deleteConversation(conversation);
  conversations.splice(conversations.indexOf(conversation), 1);
  if (conversation === current) open(newConversation());
  else drawList();
  announce("Deleted");
}

function store(conversation) {
  if (deleted.has(conversation)) return;
  conversation.updated = Date.now();
  if (!conversations.includes(conversation)) conversations.unshift(conversation);
  if (!saveConversation(conversation)) announce("The browser's storage is full; delete a conversation to keep this one.");
}

// Answers

function chosenModels() {
  const known = preferences.models.filter((name) => config.models.includes(name));
  return known.length ? known : config.models.slice(0, 1);
}

const usedTools = () => (preferences.tools ? config.tools : []);

// Says something at the end, or in place of turn `index`, whose followers then go.
function say(text, index = current.turns.length) {
  if (running.has(current.id) || !chosenModels().length) return;
  current.turns.splice(index, Infinity, { user: text, replies: [] });
  if (!index) current.title = text.trim().split("\n")[0].slice(0, 80);
  answer(index, chosenModels());
}

// Lets models answer a turn (again); the turns after it go.
async function answer(index, models) {
  const conversation = current;
  if (running.has(conversation.id)) return;
  const { turns } = conversation;
  turns.splice(index + 1);
  const fresh = models.map((model) => ({ model, steps: [], busy: true }));
  const { replies } = turns[index];
  for (const reply of fresh) {
    const place = replies.findIndex((other) => other.model === reply.model);
    replies.splice(place < 0 ? replies.length : place, place < 0 ? 0 : 1, reply);
  }
  const controller = new AbortController();
  running.set(conversation.id, controller);
  store(conversation);
  following = true;
  draw();
  drawList();
  await Promise.all(fresh.map((reply) => answerOne(conversation, index, reply, controller.signal)));
  running.delete(conversation.id);
  store(conversation);
  drawList();
  if (conversation === current) showBusy();
  announce("The reply is finished.");
}

async function answerOne(conversation, index, reply, signal) {
  let drawn = false; // a frame may bring many changes
  const onchange = () => {
    if (drawn) return;
    drawn = true;
    requestAnimationFrame(() => {
      drawn = false;
      views.get(reply)?.update();
      follow();
    });
  };
  const messages = messagesBefore(conversation.turns, index, reply.model, preferences.system);
  await talk({ reply, messages, settings: { ...preferences }, tools: usedTools(), conversation: conversation.id, signal, onchange });
  delete reply.busy;
  const view = views.get(reply);
  if (view) view.busy = false;
  follow();
}

function showBusy() {
  const busy = running.has(current.id);
  const button = $("send");
  button.replaceChildren(icon(busy ? "stop" : "send"));
  button.setAttribute("aria-label", busy ? "Stop" : "Send");
  button.title = busy ? "Stop (Esc)" : "Send (Enter)";
  button.disabled = !busy && !config.models.length;
}

// The end of the conversation

function follow() {
  const scroller = $("scroller");
  if (following) scroller.scrollTop = scroller.scrollHeight;
  $("latest").hidden = following;
}

$("scroller").addEventListener("scroll", () => {
  const scroller = $("scroller");
  following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
  $("latest").hidden = following;
});
new ResizeObserver(follow).observe($("scroller"));
$("latest").addEventListener("click", () => ((following = true), follow()));

// The message box

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running.has(current.id)) return running.get(current.id).abort();
  const text = $("message").value;
  if (!text.trim()) return;
  $("message").value = "";
  fit($("message"));
  say(text);
});
$("message").addEventListener("input", () => fit($("message")));
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running.has(current.id)) $("form").requestSubmit();
  }
  if (event.key === "ArrowUp" && !$("message").value) (event.preventDefault(), editLast());
});

const last = (selector) => [...$("log").querySelectorAll(selector)].at(-1);
const editLast = () => last(".user")?.edit();

// Panels

function showPanel(id, shown) {
  const panel = $(id);
  if (id === "settings") panel.hidden = !shown;
  else panel.classList.toggle("shown", shown);
  $(`open-${id}`).setAttribute("aria-expanded", shown);
  $("shade").hidden = !document.querySelector("#chats.shown, #settings:not([hidden])");
  // On a phone the focus would bring up the keyboard.
  if (shown) panel.querySelector(TOUCH.matches ? "button" : "textarea, button:not(.icon)").focus();
  else if (panel.contains(document.activeElement)) $(`open-${id}`).focus();
}

function closePanels() {
  for (const id of ["chats", "settings"]) showPanel(id, false);
  $("models").open = false;
}

for (const id of ["chats", "settings"]) {
  $(`open-${id}`).addEventListener("click", () => showPanel(id, id === "chats" || $(id).hidden));
  $(`close-${id}`).addEventListener("click", () => showPanel(id, false));
}
$("shade").addEventListener("click", closePanels);
$("new").addEventListener("click", () => open(newConversation()));
document.addEventListener("click", (event) => {
  if (!$("models").contains(event.target)) $("models").open = false;
});

$("save").addEventListener("click", () => {
  const file = new Blob([JSON.stringify(current, null, 1)], { type: "application/json" });
  const address = URL.createObjectURL(file);
  el("a", { href: address, download: `${current.title.slice(0, 40) || "conversation"}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
});

// Keys: single letters, where nothing is being written

const KEYS = {
  "/": () => $("message").focus(),
  "?": () => $("keys").showModal(),
  n: () => open(newConversation()),
  j: () => move(1),
  k: () => move(-1),
  e: editLast,
  r: () => current.turns.length && answer(current.turns.length - 1, chosenModels()),
  c: () => last('.reply [aria-label="Copy the reply"]')?.click(),
  p: () => last(".reply [aria-pressed]:not([hidden])")?.click(),
  s: () => showPanel("settings", $("settings").hidden),
};

function move(by) {
  const next = conversations[conversations.indexOf(current) + by];
  if (next) open(next);
  document.activeElement.blur?.();
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (document.querySelector("#chats.shown, #settings:not([hidden]), #models[open]")) closePanels();
    else if (running.has(current.id)) running.get(current.id).abort();
    else document.activeElement.blur?.();
    return;
  }
  const writing = event.target.matches?.("textarea, select, input:not([type=checkbox], [type=range])");
  if (writing || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});

// Start

async function start() {
  try {
    config = await getConfig();
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return askForKey();
    $("log").replaceChildren(el("p.error", { role: "alert" }, error.message));
    return;
  }
  settings.offer(config, chosenModels());
  draw();
}

function askForKey() {
  $("key-note").textContent = localStorage.getItem("puna.key") ? "That key is not the server's." : "It stays in this browser.";
  $("key-dialog").showModal();
}

$("key-form").addEventListener("submit", () => {
  localStorage.setItem("puna.key", $("key").value);
  start();
});

const settings = installSettings(preferences, (name) => {
  savePreferences(preferences);
  if (name === "models") settings.offer(config, chosenModels());
  if (name === "odds" || !current.turns.length) draw();
});
installTip($("log"), $("tip"));
addEventListener("pagehide", () => running.forEach((controller) => controller.abort()));
open(current);
start();
