// A dialogue as the server reads it, and as people take it away: curl, Python, training data.
// A turn is {role: "user", text, clips} or {role: "assistant", text, reasoning, finish}.

import { base64 } from "/page/sound.js";

export async function messagesOf(turns, system, { withTranscripts = false, withReasoning = false } = {}) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.role === "assistant") {
      // A reply that was stopped before its first word is no turn.
      if (!turn.text.trim()) continue;
      const reasoning = withReasoning && turn.reasoning ? { reasoning_content: turn.reasoning } : {};
      messages.push({ role: "assistant", ...reasoning, content: turn.text });
    } else if (!turn.clips.length) {
      messages.push({ role: "user", content: turn.text });
    } else {
      const parts = [];
      for (const clip of turn.clips) {
        const transcript = withTranscripts && clip.transcript ? { transcript: clip.transcript } : {};
        parts.push({ type: "input_audio", input_audio: { data: await base64(clip.blob), format: clip.format }, ...transcript });
      }
      if (turn.text) parts.push({ type: "text", text: turn.text });
      messages.push({ role: "user", content: parts });
    }
  }
  return messages;
}

// JSON has one line, so that no text in it can end the here-document.
export function asCurl(body, hasKey) {
  const key = hasKey ? " \\\n  -H \"Authorization: Bearer $API_KEY\"" : "";
  return `curl ${location.origin}/v1/chat/completions -H 'Content-Type: application/json'${key} -d @- <<'END_OF_BODY'\n${JSON.stringify(body)}\nEND_OF_BODY\n`;
}

export function asPython(body, hasKey) {
  const { model, messages, chat_template_kwargs, top_k, ...rest } = body;
  const extra = { ...(chat_template_kwargs ? { chat_template_kwargs } : {}), ...(top_k === undefined ? {} : { top_k }) };
  const lines = [
    "import json",
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${location.origin}/v1`)}, api_key=${hasKey ? 'os.environ["API_KEY"]' : '"none"'})`,
    // JSON within a string of JSON is a string of Python too.
    `messages = json.loads(${JSON.stringify(JSON.stringify(messages))})`,
    "completion = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    "    messages=messages,",
    ...Object.entries(rest).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`),
    ...(Object.keys(extra).length ? [`    extra_body=json.loads(${JSON.stringify(JSON.stringify(extra))}),`] : []),
    ")",
    "print(completion.choices[0].message.content)",
  ];
  return `${(hasKey ? lines : lines.filter((line) => line !== "import os")).join("\n")}\n`;
}

// One line of training data; the clips are within it, so that it can be moved about.
export async function asRecord(turns, system) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.role === "assistant") {
      if (!turn.text.trim()) continue;
      messages.push({ role: "assistant", reasoning_content: turn.reasoning, content: turn.text });
    } else {
      const parts = [];
      for (const clip of turn.clips) {
        const transcript = clip.transcript ? { transcript: clip.transcript } : {};
        parts.push({ type: "audio", audio: `data:audio/${clip.format};base64,${await base64(clip.blob)}`, ...transcript });
      }
      if (turn.text) parts.push({ type: "text", text: turn.text });
      messages.push({ role: "user", content: parts });
    }
  }
  return `${JSON.stringify({ source: "talk", messages })}\n`;
}

export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
