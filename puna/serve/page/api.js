// The server: OpenAI's chat completions, and what only this page asks (/page/...).

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, body, signal) {
  const key = localStorage.getItem("puna.key");
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?", 0);
  }
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new ApiError(told?.error?.message ?? `The server answered ${response.status}.`, response.status);
  }
  return response;
}

// { models: [name], tools: [schema or { type }], max_len }
export async function getConfig() {
  return (await request("/page/config")).json();
}

// Results { text, images, seconds, error } of calls { name, arguments }, in their order.
export async function runTools(calls, conversation, signal) {
  const response = await request("/page/tools", { calls, conversation }, signal);
  return (await response.json()).results;
}

// The chunks of a streamed chat completion.
export async function* streamChat(body, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await request("/v1/chat/completions", { ...body, ...options }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ApiError("The reply broke off.", 0);
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, 500);
      yield chunk;
    }
  }
}
