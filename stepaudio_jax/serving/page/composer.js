// The composer: text, recordings and files become one turn.

import { announce, byId, element, show } from "/page/dom.js";
import { clipOfFile, clipView, Recording } from "/page/sound.js";
import { word } from "/page/words.js";

export class Composer {
  constructor(onSend) {
    this.onSend = onSend;
    this.clips = [];
    this.views = [];
    this.recording = null;
    this.busy = false;
    this.onCancelEdit = () => {};
    byId("send").addEventListener("click", () => this.send());
    byId("record").addEventListener("click", () => this.toggleRecording());
    byId("file").addEventListener("change", () => this.addFiles());
    byId("cancel-edit").addEventListener("click", () => this.endEdit(true));
    const text = byId("text");
    text.addEventListener("input", () => {
      text.rows = Math.min(8, Math.max(1, text.value.split("\n").length));
    });
    text.addEventListener("keydown", (event) => {
      // While an input method composes a word, Enter chooses it.
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
  }

  show(visible) {
    show(byId("compose"), visible);
    show(byId("clips"), visible);
  }

  setBusy(busy) {
    this.busy = busy;
    show(byId("send"), !busy);
    show(byId("stop"), busy);
  }

  edit(turn, onCancel) {
    byId("text").value = turn.text;
    this.setClips(turn.clips);
    this.onCancelEdit = onCancel;
    show(byId("editing"), true);
    byId("text").focus();
  }

  endEdit(cancelled) {
    show(byId("editing"), false);
    if (cancelled) {
      this.clear();
      this.onCancelEdit();
    }
    this.onCancelEdit = () => {};
  }

  clear() {
    byId("text").value = "";
    byId("text").rows = 1;
    this.setClips([]);
  }

  setClips(clips) {
    this.views.forEach((view) => view.release());
    this.clips = [...clips];
    this.views = this.clips.map((clip) => {
      const transcript = element("input", { type: "text", value: clip.transcript, placeholder: word("transcript") });
      transcript.setAttribute("aria-label", word("transcript"));
      transcript.addEventListener("input", () => {
        clip.transcript = transcript.value;
      });
      const remove = element("button", { type: "button", text: word("remove"), onclick: () => this.setClips(this.clips.filter((other) => other !== clip)) });
      return clipView(clip, transcript, remove);
    });
    byId("clips").replaceChildren(...this.views.map((view) => element("li", {}, view)));
  }

  async addFiles() {
    const field = byId("file");
    const files = [...field.files];
    field.value = "";
    for (const file of files) {
      try {
        this.setClips([...this.clips, await clipOfFile(file)]);
        announce("");
      } catch (error) {
        announce(error.message, true);
      }
    }
  }

  async toggleRecording() {
    if (this.starting) return;
    if (this.recording) {
      await this.endRecording();
      return;
    }
    this.starting = true;
    try {
      this.recording = await Recording.start(
        (seconds) => {
          byId("record-word").textContent = word("recording", seconds.toFixed(1));
        },
        () => this.endRecording(),
      );
      this.showRecording(true);
    } catch (error) {
      announce(word("microphone_refused", error.message), true);
    } finally {
      this.starting = false;
    }
  }

  async endRecording() {
    const recording = this.recording;
    if (!recording) return;
    this.recording = null;
    this.showRecording(false);
    try {
      this.setClips([...this.clips, await recording.stop()]);
      announce("");
    } catch (error) {
      announce(error.message, true);
    }
  }

  showRecording(running) {
    const button = byId("record");
    button.setAttribute("aria-pressed", String(running));
    button.classList.toggle("recording", running);
    byId("record-word").textContent = running ? word("recording", "0.0") : word("record");
  }

  async send() {
    if (this.busy) {
      announce(word("busy"));
      return;
    }
    await this.endRecording();
    const turn = { role: "user", text: byId("text").value.trim(), clips: this.clips };
    if (!turn.text && !turn.clips.length) {
      announce(word("nothing_to_send"), true);
      return;
    }
    this.clear();
    this.endEdit(false);
    await this.onSend(turn);
  }
}
