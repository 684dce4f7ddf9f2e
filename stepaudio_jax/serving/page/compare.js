// Comparing: two replies, two dialogues, or prepared pairs; shown side by side, and judged.

import { getBlob, getJson, postJson, streamReply } from "/page/api.js";
import { announce, byId, element, show } from "/page/dom.js";
import { keep, load, setSetting, setting, tabName } from "/page/keeping.js";
import { messagesOf } from "/page/messages.js";
import { modelName, modelNames, sampling, systemPrompt } from "/page/settings.js";
import { replyView, userTurnView } from "/page/views.js";
import { verdictForm } from "/page/verdict.js";
import { word } from "/page/words.js";

const KINDS = ["two_replies", "two_dialogues", "prepared"];
const SIDES = ["a", "b"];

export class Compare {
  constructor(composer) {
    this.composer = composer;
    this.study = null;
    this.kind = "two_replies";
    this.history = []; // turns before the one that is compared
    this.dialogues = null; // {a: turns, b: turns, first: "a" or "b"}
    this.comparison = null; // as the server shows it
    this.views = [];
    this.fields = {};
    this.abort = null;
    this.agreed = false;
  }

  async open() {
    this.root = byId("compare");
    if (!this.study) {
      try {
        this.study = await getJson("/preferences/study");
        await this.restore();
      } catch (error) {
        announce(error.message, true);
        return;
      }
    }
    this.show();
  }

  // What was said and written, and a comparison that is not judged yet, survive a reload.
  async restore() {
    const kept = await load(this.name);
    if (!kept || !KINDS.includes(kept.kind)) return;
    Object.assign(this, { kind: kept.kind, history: kept.history, dialogues: kept.dialogues, comparison: kept.comparison, fields: kept.fields });
    this.agreed = true; // the server asks again where it must
  }

  async keep() {
    const { kind, history, dialogues, comparison, fields } = this;
    await keep(this.name, { kind, history, dialogues, comparison, fields });
  }

  get name() {
    return tabName("compare");
  }

  setComparison(comparison) {
    this.comparison = comparison;
    return this.keep();
  }

  get annotator() {
    this.written ??= setting("annotator", "");
    return this.written;
  }

  set annotator(name) {
    this.written = name;
    setSetting("annotator", name);
  }

  // The next person at this browser says who they are; nothing of the last one's is shown to them.
  async changeAnnotator() {
    if (this.composer.busy) return;
    this.agreed = false;
    this.asksName = true;
    await this.clear();
    announce("");
  }

  async clear() {
    this.stop();
    this.history = [];
    this.dialogues = null;
    await this.setComparison(null);
    this.show();
  }

  stop() {
    this.abort?.abort();
  }

  show() {
    if (!this.root || this.root.hidden || !this.study) return;
    this.views.forEach((view) => view.release());
    this.views = [];
    const begun = this.annotator && !this.asksName && (this.agreed || !this.study.consent);
    const writes = begun && this.kind !== "prepared" && !this.comparison;
    this.composer.show(writes);
    if (!begun) this.root.replaceChildren(this.welcome());
    else if (this.comparison) this.root.replaceChildren(this.kinds(), ...this.judged());
    else this.root.replaceChildren(this.kinds(), ...this.unjudged());
  }

  welcome() {
    const name = element("input", { type: "text", value: this.annotator, maxLength: 64, autocomplete: "nickname", required: true });
    const begin = async (event) => {
      event.preventDefault();
      if (!name.value.trim()) return name.focus();
      try {
        if (this.study.consent) await postJson("/preferences/consent", { annotator: name.value, consent: this.study.consent_hash });
        this.annotator = name.value.trim();
        this.agreed = true;
        this.asksName = false;
        announce("");
        this.show();
        if (this.kind === "prepared") await this.next();
      } catch (error) {
        announce(error.message, true);
      }
      return undefined;
    };
    return element(
      "form",
      { onsubmit: begin },
      element("h2", { text: word("consent_title") }),
      this.study.consent ? element("pre", { class: "consent", text: this.study.consent, tabIndex: 0 }) : null,
      element("label", { class: "wide" }, element("span", { text: word("your_name") }), name),
      element("p", {}, element("button", { class: "primary", text: word(this.study.consent ? "agree" : "begin") })),
    );
  }

  kinds() {
    const buttons = KINDS.filter((kind) => kind !== "prepared" || this.study.pairs).map((kind) => {
      const button = element("button", { type: "button", text: word(kind), onclick: () => this.setKind(kind) });
      button.setAttribute("aria-pressed", String(kind === this.kind));
      return button;
    });
    const person = element("button", { type: "button", id: "change-name", text: word("change_name", this.annotator), onclick: () => this.changeAnnotator() });
    return element("div", { class: "row", role: "group", "aria-label": word("compare") }, ...buttons, element("div", { class: "grow" }), person);
  }

  async setKind(kind) {
    if (this.composer.busy) return;
    this.kind = kind;
    await this.clear();
    if (kind === "prepared") await this.next();
  }

  unjudged() {
    if (this.kind === "prepared") return [];
    const nodes = [element("p", { class: "hint", text: word(this.kind === "two_replies" ? "compare_help" : "dialogues_help") })];
    if (!this.dialogues) nodes.push(this.settingsFields());
    nodes.push(this.list(this.history));
    if (this.dialogues) {
      const order = this.dialogues.first === "a" ? SIDES : [...SIDES].reverse();
      nodes.push(this.sides(order.map((name) => this.dialogues[name])));
      const ready = SIDES.every((name) => this.dialogues[name].length && this.dialogues[name].at(-1).role === "assistant");
      if (ready) {
        nodes.push(element("p", {}, element("button", { type: "button", class: "primary", id: "judge-dialogues", text: word("judge_dialogues"), onclick: () => this.register() })));
      }
    }
    return nodes;
  }

  settingsFields() {
    const names = modelNames();
    const side = (name) => {
      const kept = this.fields[name] ?? { model: modelName(), temperature: "" };
      const model = element("select", {}, ...names.map((item) => element("option", { value: item, text: item })));
      model.value = names.includes(kept.model) ? kept.model : (names[0] ?? "");
      const temperature = element("input", { type: "number", min: 0, max: 2, step: "any", value: kept.temperature });
      const keep = () => {
        if (!temperature.validity.valid) announce(word("setting_wrong", word("temperature")), true);
        this.fields[name] = { model: model.value, temperature: temperature.value };
      };
      model.addEventListener("change", keep);
      temperature.addEventListener("change", keep);
      keep();
      return element(
        "fieldset",
        {},
        element("legend", { text: word(`side_${name}`) }),
        element("label", {}, element("span", { text: word("model") }), model),
        element("label", {}, element("span", { text: word("temperature") }), temperature),
      );
    };
    const rubric = element("textarea", { rows: 2, value: this.fields.rubric ?? this.study.rubric.map(rubricLine).join("\n") });
    rubric.addEventListener("change", () => {
      this.fields.rubric = rubric.value;
    });
    return element(
      "details",
      {},
      element("summary", { text: word("settings") }),
      element("div", { class: "sides" }, side("a"), side("b")),
      element("label", { class: "wide" }, element("span", { text: word("rubric") }), rubric),
    );
  }

  list(turns) {
    const views = turns.map((turn) => (turn.role === "user" ? userTurnView(turn) : replyView(turn)));
    this.views.push(...views);
    return element("ol", { class: "turns" }, ...views);
  }

  sides(turnsOfSides) {
    return element(
      "div",
      { class: "sides" },
      ...turnsOfSides.map((turns, index) => {
        const title = word(index ? "second" : "first");
        return element("section", { class: "side", "aria-label": title }, element("h3", { text: title }), this.list(turns));
      }),
    );
  }

  async send(turn) {
    if (this.kind === "two_dialogues") {
      // Drawn before anything is shown, so that a side stays where it is.
      this.dialogues ??= { a: [], b: [], first: crypto.getRandomValues(new Uint8Array(1))[0] & 1 ? "a" : "b" };
      await this.answerDialogues(turn);
    } else {
      this.history.push(turn);
      this.show();
      const replies = await this.writeBoth({ a: this.history, b: this.history });
      if (!replies) {
        this.history.pop();
        this.composer.setClips(turn.clips);
        byId("text").value = turn.text;
        this.show();
        return;
      }
      this.replies = replies;
      await this.register();
    }
  }

  async answerDialogues(turn) {
    for (const name of SIDES) this.dialogues[name].push({ ...turn });
    this.show();
    const replies = await this.writeBoth(this.dialogues);
    if (!this.dialogues) return; // a new dialogue was begun meanwhile
    for (const name of SIDES) {
      if (replies) this.dialogues[name].push(replies[name]);
      else this.dialogues[name].pop();
    }
    if (!replies && !this.dialogues.a.length) this.dialogues = null;
    await this.keep();
    if (!replies) {
      this.composer.setClips(turn.clips);
      byId("text").value = turn.text;
    }
    this.show();
  }

  settingsOf(name) {
    const kept = this.fields[name] ?? {};
    const values = sampling();
    if (kept.temperature) values.temperature = Number(kept.temperature);
    // With one seed two equal settings would write the same reply twice.
    if (values.seed !== undefined && name === "b") values.seed += 1;
    return { model: kept.model || modelName(), sampling: values };
  }

  // Shows neither reply before both are there: which came first would say something.
  async writeBoth(turnsOf) {
    const abort = new AbortController();
    this.abort = abort;
    this.composer.setBusy(true);
    announce(word("writing_two"));
    const write = async (name) => {
      const { model, sampling: values } = this.settingsOf(name);
      const body = { model, messages: await messagesOf(turnsOf[name], systemPrompt()), ...values };
      const reply = { role: "assistant", text: "", reasoning: "", finish: null };
      const stream = streamReply(body, abort.signal);
      for (;;) {
        const { done, value } = await stream.next();
        if (done) break;
        reply.reasoning += value.reasoning;
        reply.text += value.content;
      }
      reply.text = reply.text.trim();
      if (!reply.text) throw new Error(word("empty_reply"));
      reply.finish = "stop";
      return reply;
    };
    try {
      const [a, b] = await Promise.all(SIDES.map(write));
      announce("");
      return { a, b };
    } catch (error) {
      abort.abort();
      announce(error.name === "AbortError" ? word("stopped") : error.message, error.name !== "AbortError");
      return null;
    } finally {
      this.abort = null;
      this.composer.setBusy(false);
    }
  }

  async register() {
    try {
      await this.setComparison(await postJson("/preferences/comparisons", await this.registration()));
      this.show();
    } catch (error) {
      this.refused(error, () => this.register());
    }
  }

  // A line of the study's rubric keeps its weight; a new one has 1, or -1.
  rubric() {
    if (this.fields.rubric === undefined) return this.study.rubric;
    const known = new Map(this.study.rubric.map((item) => [rubricLine(item), item]));
    return this.fields.rubric
      .split("\n")
      .map((line) => line.trim())
      .filter((line) => line && line !== "-")
      .map((line) => known.get(line) ?? (line.startsWith("-") ? { criterion: line.slice(1).trim(), weight: -1 } : { criterion: line, weight: 1 }));
  }

  async registration() {
    const options = { withTranscripts: true, withReasoning: true };
    const system = systemPrompt();
    const body = { annotator: this.annotator, rubric: this.rubric() };
    if (this.dialogues) {
      const { a, b, first } = this.dialogues;
      body.messages = await messagesOf([a[0]], system, options);
      body.shown_first = first;
      for (const [name, turns] of [["a", a], ["b", b]]) {
        body[name] = { turns: await messagesOf(turns.slice(1), "", options), ...this.settingsOf(name) };
      }
    } else {
      body.messages = await messagesOf(this.history, system, options);
      for (const name of SIDES) body[name] = { turns: await messagesOf([this.replies[name]], "", options), ...this.settingsOf(name) };
    }
    for (const name of SIDES) delete body[name].sampling.chat_template_kwargs;
    return body;
  }

  async next() {
    try {
      const answer = await postJson("/preferences/next", { annotator: this.annotator });
      await this.setComparison(answer.comparison);
      announce(this.comparison ? word("pairs_left", answer.progress.pairs_left) : word("none_left"));
      this.show();
    } catch (error) {
      this.refused(error, () => this.next());
    }
  }

  // What was written stays on the page, and can be sent again.
  refused(error, again) {
    announce(error.message, true);
    if (error.code === "consent_needed") {
      this.agreed = false;
      this.show();
      return;
    }
    const button = element("button", { type: "button", text: word("try_again"), onclick: () => { button.remove(); again(); } });
    this.root.append(button);
  }

  judged() {
    const shown = this.comparison;
    const players = new Map(); // clip -> players of it
    const turnsOf = (turns) => turns.map((turn) => this.shownTurn(shown.assignment, turn, players));
    const before = element("ol", { class: "turns" }, ...turnsOf(shown.messages));
    const sides = element(
      "div",
      { class: "sides" },
      ...["first", "second"].map((name) =>
        element("section", { class: "side", "aria-label": word(name) }, element("h3", { text: word(name) }), element("ol", { class: "turns" }, ...turnsOf(shown[name]))),
      ),
    );
    const form = verdictForm({
      study: this.study,
      comparison: shown,
      annotator: this.annotator,
      players,
      onKept: (answer, node) => this.kept(answer, node),
      onConflict: (node) => {
        const next = this.nextButton();
        node.replaceWith(next);
        next.focus();
      },
      onConsent: () => { this.agreed = false; this.show(); },
    });
    return [before, sides, form];
  }

  shownTurn(assignment, turn, players) {
    const text = turn.parts.filter((part) => part.type === "text").map((part) => part.text).join("");
    if (turn.role === "assistant") {
      const view = replyView({ text, reasoning: turn.reasoning ?? "" });
      this.views.push(view);
      return view;
    }
    const view = element("li", { class: `turn ${turn.role}` }, element("p", { class: "who", text: turn.role === "user" ? word("you") : turn.role }));
    for (const part of turn.parts.filter((item) => item.type === "audio")) {
      const player = element("audio", { controls: true, "aria-label": word("play_clip") });
      if (!players.has(part.clip)) players.set(part.clip, []);
      players.get(part.clip).push(player);
      view.append(element("div", { class: "clip" }, player, part.transcript ? element("span", { text: part.transcript }) : null));
      let url = null;
      this.views.push({ release: () => url && URL.revokeObjectURL(url) });
      getBlob(`/preferences/clips/${assignment}/${part.clip}`).then(
        (blob) => {
          url = URL.createObjectURL(blob);
          player.src = url;
        },
        (error) => announce(error.message, true),
      );
    }
    if (text) view.append(element("p", { class: "words", text }));
    return view;
  }

  nextButton() {
    const text = word(this.kind === "prepared" ? "next" : "new_dialogue");
    return element("button", { type: "button", class: "primary", id: "next", text, onclick: async () => {
      await this.clear();
      if (this.kind === "prepared") await this.next();
    } });
  }

  kept(answer, form) {
    const shown = this.comparison;
    this.comparison = null;
    this.keep();
    this.comparison = shown; // it stays on the page until somebody goes on
    const name = (origin) => [origin.model, ...Object.entries(origin.sampling).map(([key, value]) => `${key} ${value}`)].filter(Boolean).join(", ");
    const buttons = [];
    const goOn = (side) => element("button", { type: "button", text: word(`go_on_${side === "first" ? "left" : "right"}`), onclick: () => {
      const turn = shown[side][0];
      this.history.push({ role: "assistant", text: turn.parts.map((part) => part.text).join(""), reasoning: turn.reasoning ?? "", finish: "stop" });
      this.setComparison(null);
      this.show();
      byId("text").focus();
    } });
    if (this.kind === "two_replies") buttons.push(goOn("first"), goOn("second"));
    const next = this.nextButton();
    buttons.push(next);
    const origins = name(answer.origins.first) || name(answer.origins.second)
      ? element("p", { class: "hint", text: word("written_by", name(answer.origins.first) || "?", name(answer.origins.second) || "?") })
      : null;
    form.replaceWith(element("div", {}, origins, element("div", { class: "row" }, ...buttons)));
    announce(word("kept", answer.progress.verdicts));
    next.focus();
  }
}

const rubricLine = (item) => `${item.weight < 0 ? "- " : ""}${item.criterion}`;
