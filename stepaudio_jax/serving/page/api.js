// Talks to the server: JSON, and streams of replies.

import { word } from "/page/words.js";

let key = "";

export function setKey(value) {
  key = value.trim();
}

export class ServerError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function request(path, options = {}) {
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, word("offline"), "offline");
  }
  if (response.ok) return response;
  if (response.status === 401) throw new ServerError(401, word("needs_key"), "invalid_api_key");
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Something between the page and the server answered, and not in JSON.
  }
  throw new ServerError(response.status, error.message ?? `${response.status} ${response.statusText}`, error.code);
}

export async function getJson(path) {
  return (await request(path)).json();
}

export async function postJson(path, body, signal) {
  return (await request(path, { method: "POST", body: JSON.stringify(body), signal })).json();
}

export async function getBlob(path) {
  return (await request(path)).blob();
}

// Yields {reasoning, content} as they come; returns {finish, usage}. Aborted, it throws AbortError.
export async function* streamReply(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const result = { finish: null, usage: null };
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    pending += done ? "\n\n" : value;
    const lines = pending.split(/\r?\n/);
    pending = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return result;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(500, event.error.message ?? "", event.error.code);
      if (event.usage) result.usage = event.usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      if (choice.finish_reason) result.finish = choice.finish_reason;
      const delta = choice.delta ?? {};
      const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
      if (reasoning || delta.content) yield { reasoning, content: delta.content ?? "" };
    }
    if (done) throw new ServerError(0, word("offline"), "offline");
  }
}
