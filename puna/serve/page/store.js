// Conversations and preferences in localStorage: one entry for each conversation.
//
//   conversation  { id, title, updated, turns }
//   turn          { user, replies }                   one reply for each model that answered
//   reply         { model, steps, busy, stopped, error }    stopped: cut off by the user
//   step          { text, tokens, calls, finish, usage, seconds }
//   token         { text, logprob, top: [{ text, logprob }] }
//   call          { id, name, arguments, result: { text, images, seconds, error } }

const PREFIX = "puna.chat.";
const PREFERENCES = "puna.preferences";
// Temperature and top-p are those of Llama 3.1's generation_config.json.
export const DEFAULTS = {
  models: [], system: "", temperature: 0.6, top_p: 0.9, min_p: 0, top_k: "", max_tokens: "", seed: "", stop: "",
  odds: false, tools: true,
};

export function newConversation() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()).slice(2), title: "", updated: Date.now(), turns: [] };
}

// All conversations, latest first; what cannot be read is left alone.
export function loadConversations() {
  const found = [];
  for (const key of Object.keys(localStorage).filter((key) => key.startsWith(PREFIX))) {
    const conversation = read(key);
    if (!conversation?.id || !Array.isArray(conversation.turns)) continue;
    for (const reply of conversation.turns.flatMap((turn) => turn.replies)) {
      if (reply.busy) reply.stopped = delete reply.busy; // the page was closed while it was written
    }
    found.push(conversation);
  }
  return found.sort((a, b) => b.updated - a.updated);
}

// False when the browser's storage is full even without the bulky parts (images, probabilities).
export function saveConversation(conversation) {
  return write(conversation) || write(conversation, (key, value) => (BULKY.has(key) ? [] : value));
}

const BULKY = new Set(["tokens", "images"]);

function write(conversation, replacer) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation, replacer));
    return true;
  } catch {
    return false;
  }
}

export function deleteConversation(conversation) {
  localStorage.removeItem(PREFIX + conversation.id);
}

export function loadPreferences() {
  return { ...DEFAULTS, ...read(PREFERENCES) };
}

export function savePreferences(preferences) {
  localStorage.setItem(PREFERENCES, JSON.stringify(preferences));
}

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}
