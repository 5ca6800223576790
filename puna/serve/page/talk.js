// One reply of one model: streamed, its tool calls run, their results told back, until it has no more to say.

import { ApiError, runTools, streamChat } from "./api.js";

const MOST_ROUNDS = 8;
const ALTERNATIVES = 5;

// The messages of OpenAI's API before the reply of `model` to turns[index]. Of earlier turns it reads its own replies,
// or, where it gave none, those of the first model.
export function messagesBefore(turns, index, model, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  turns.slice(0, index + 1).forEach((turn, place) => {
    messages.push({ role: "user", content: turn.user });
    if (place === index) return;
    const reply = turn.replies.find((reply) => reply.model === model) ?? turn.replies[0];
    for (const step of reply?.steps ?? []) messages.push(...messagesOf(step));
  });
  return messages;
}

function messagesOf(step) {
  const done = step.calls.filter((call) => call.result);
  if (!done.length) return step.text ? [{ role: "assistant", content: step.text }] : [];
  const calls = done.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } }));
  const results = done.map((call) => ({ role: "tool", tool_call_id: call.id, content: call.result.text }));
  return [{ role: "assistant", content: step.text || null, tool_calls: calls }, ...results];
}

// Fills `reply`; onchange(step) after every change. Errors and stops are written into the reply, none is thrown.
export async function talk({ reply, messages, settings, tools, conversation, signal, onchange }) {
  try {
    for (let round = 0; round < MOST_ROUNDS; round += 1) {
      const step = { text: "", tokens: [], calls: [], finish: null, usage: null, seconds: 0 };
      reply.steps.push(step);
      await stream(step, bodyOf(reply.model, messages, settings, tools), signal, onchange);
      if (!step.calls.length || step.finish === "length" || !tools.length) return;
      await runCalls(step, conversation, signal);
      onchange(step);
      messages = [...messages, ...messagesOf(step)];
    }
    reply.error = `Stopped after ${MOST_ROUNDS} rounds of calls.`;
  } catch (error) {
    if (signal.aborted) reply.stopped = true;
    else {
      reply.error = error instanceof ApiError ? error.message : `The page failed: ${error.message}`;
      if (!(error instanceof ApiError)) console.error(error);
    }
  } finally {
    onchange(null);
  }
}

function bodyOf(model, messages, settings, tools) {
  const body = { model, messages, temperature: settings.temperature, top_p: settings.top_p };
  if (settings.min_p) body.min_p = settings.min_p;
  for (const name of ["top_k", "max_tokens", "seed"]) if (settings[name] !== "") body[name] = settings[name];
  const stop = settings.stop.split(",").map((text) => text.trim()).filter(Boolean);
  if (stop.length) body.stop = stop;
  if (settings.odds) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
  if (tools.length) body.tools = tools;
  return body;
}

async function stream(step, body, signal, onchange) {
  let begun = 0; // at the first token: the speed is that of writing, without the wait for it
  const decoder = new TextDecoder();
  for await (const chunk of streamChat(body, signal)) {
    if (chunk.usage) step.usage = { prompt: chunk.usage.prompt_tokens, completion: chunk.usage.completion_tokens };
    const choice = chunk.choices[0];
    if (!choice) continue;
    if (choice.delta?.content || choice.delta?.tool_calls) begun ||= performance.now();
    step.text += choice.delta?.content ?? "";
    for (const delta of choice.delta?.tool_calls ?? []) grow(step.calls, delta);
    for (const entry of choice.logprobs?.content ?? []) step.tokens.push(tokenOf(entry, decoder));
    step.finish = choice.finish_reason ?? step.finish;
    step.seconds = begun && (performance.now() - begun) / 1000;
    onchange(step);
  }
}

function grow(calls, delta) {
  const call = (calls[delta.index] ??= { id: delta.id, name: "", arguments: "", result: null });
  call.id = delta.id ?? call.id;
  call.name += delta.function?.name ?? "";
  call.arguments += delta.function?.arguments ?? "";
}

// A token that ends within a character has no text yet; the one that completes the character has all of it.
function tokenOf(entry, decoder) {
  const text = entry.bytes ? decoder.decode(new Uint8Array(entry.bytes), { stream: true }) : entry.token;
  const top = entry.top_logprobs.map(({ token, logprob }) => ({ text: token, logprob }));
  return { text, name: entry.token, logprob: entry.logprob, top };
}

async function runCalls(step, conversation, signal) {
  const asked = [];
  for (const call of step.calls) {
    try {
      const given = JSON.parse(call.arguments || "{}");
      if (typeof given !== "object" || given === null || Array.isArray(given)) throw new SyntaxError("not an object");
      asked.push({ call, arguments: given });
    } catch (error) {
      call.result = { text: `error: the arguments are not a JSON object (${error.message})`, images: [], seconds: 0, error: true };
    }
  }
  if (!asked.length) return;
  const results = await runTools(asked.map(({ call, arguments: given }) => ({ name: call.name, arguments: given })), conversation, signal);
  asked.forEach(({ call }, i) => (call.result = results[i]));
}
