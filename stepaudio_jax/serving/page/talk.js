// Talking: a dialogue whose replies stream in; turns can be stopped, changed and written anew.

import { streamReply } from "/page/api.js";
import { announce, byId, element, show } from "/page/dom.js";
import { drop, dropOld, forgetTabName, keep, load, tabName } from "/page/keeping.js";
import { asCurl, asPython, asRecord, download, messagesOf } from "/page/messages.js";
import { modelName, sampling, systemPrompt } from "/page/settings.js";
import { replyView, userTurnView } from "/page/views.js";
import { word } from "/page/words.js";

const SAVE_EVERY_MS = 1000;
const NOTES = { stopped: "stopped", length: "truncated" };

export class Talk {
  constructor(composer) {
    this.composer = composer;
    this.turns = [];
    this.views = [];
    this.abort = null;
    this.editing = null;
    byId("regenerate").addEventListener("click", () => this.regenerate());
    byId("copy-curl").addEventListener("click", () => this.copy(asCurl));
    byId("copy-python").addEventListener("click", () => this.copy(asPython));
    byId("export").addEventListener("click", async () => download("dialogue.jsonl", await asRecord(this.turns, systemPrompt()), "application/jsonl"));
  }

  // Each tab has a dialogue of its own, which a reload brings back.
  async restore() {
    await dropOld();
    this.name = tabName("dialogue");
    const kept = await load(this.name);
    if (Array.isArray(kept)) this.turns = kept;
    for (const turn of this.turns) if (turn.role === "assistant" && !turn.finish) turn.finish = "stopped";
    this.show();
  }

  show() {
    this.views.forEach((view) => view.release());
    this.views = this.turns.map((turn, index) => this.view(turn, index));
    byId("turns").replaceChildren(...this.views);
    show(byId("empty"), !this.turns.length);
    show(byId("dialogue-actions"), this.turns.length > 0);
    byId("regenerate").disabled = Boolean(this.abort) || !this.turns.length;
  }

  view(turn, index) {
    if (turn.role === "assistant") return replyView(turn, this.note(turn));
    const edit = element("button", { type: "button", text: word("edit"), onclick: () => this.edit(index) });
    edit.disabled = Boolean(this.abort);
    return userTurnView(turn, [edit]);
  }

  note(turn) {
    if (turn.error) return turn.error;
    return NOTES[turn.finish] ? word(NOTES[turn.finish]) : "";
  }

  edit(index) {
    if (this.abort) return;
    this.editing = index;
    this.composer.edit(this.turns[index], () => {
      this.editing = null;
    });
  }

  async send(turn) {
    if (this.editing !== null) this.turns.length = this.editing;
    this.editing = null;
    this.turns.push(turn);
    await this.reply();
  }

  async regenerate() {
    if (this.abort || !this.turns.length) return;
    if (this.turns.at(-1).role === "assistant") this.turns.pop();
    await this.reply();
  }

  async body() {
    const before = this.turns.filter((turn, index) => turn.role === "user" || index < this.turns.length - 1);
    return { model: modelName(), messages: await messagesOf(before, systemPrompt()), ...sampling() };
  }

  async reply() {
    const turn = { role: "assistant", text: "", reasoning: "", finish: null };
    const abort = new AbortController();
    this.abort = abort;
    this.composer.setBusy(true);
    try {
      const body = await this.body();
      this.turns.push(turn);
      this.show();
      const view = this.views.at(-1);
      view.scrollIntoView({ block: "nearest" });
      announce(word("thinking_now"));
      await keep(this.name, this.turns);
      let saved = performance.now();
      const stream = streamReply(body, abort.signal);
      for (;;) {
        const { done, value } = await stream.next();
        if (done) {
          turn.finish = value.finish ?? "stop";
          break;
        }
        turn.reasoning += value.reasoning;
        turn.text += value.content;
        if (value.content) announce(word("writing"));
        view.update(turn);
        if (performance.now() - saved > SAVE_EVERY_MS) {
          saved = performance.now();
          keep(this.name, this.turns);
        }
      }
      turn.text = turn.text.replace(/^\n+/, "");
      announce(word("finished"));
    } catch (error) {
      turn.finish = "stopped";
      if (error.name === "AbortError") announce(word("stopped"));
      else {
        turn.error = error.message;
        announce(error.message, true);
      }
    } finally {
      this.abort = null;
      this.composer.setBusy(false);
      this.show();
      await keep(this.name, this.turns);
    }
  }

  stop() {
    this.abort?.abort();
  }

  async clear() {
    this.stop();
    this.composer.endEdit(true);
    await drop(this.name);
    this.turns = [];
    forgetTabName("dialogue");
    this.name = tabName("dialogue");
    this.show();
    announce("");
  }

  async copy(write) {
    let text;
    try {
      text = write(await this.body(), byId("api_key").value !== "");
    } catch (error) {
      announce(error.message, true);
      return;
    }
    try {
      await navigator.clipboard.writeText(text);
      announce(word("copied"));
    } catch {
      announce(word("copy_failed"), true);
    }
  }
}
