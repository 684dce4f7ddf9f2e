// The form of a verdict: the scale, criteria, reasons, critique, a better reply; sent until kept.

import { postJson } from "/page/api.js";
import { announce, element, randomId } from "/page/dom.js";
import { word } from "/page/words.js";

const REASON_WORDS = ["did_not_hear", "wrong", "tone", "length"];
// Players end a little before a clip does.
const UNHEARD_SECONDS = 0.3;

export function verdictForm({ study, comparison, annotator, players, onKept, onConflict, onConsent }) {
  const id = idOf(comparison.assignment);
  const highest = Math.floor(study.levels / 2);
  const levels = [];
  for (let level = highest; level >= -highest; level--) levels.push(level);
  const words = scaleWords(highest);
  const scale = element(
    "fieldset",
    {},
    element("legend", { text: word("verdict") }),
    comparison.is_same ? element("p", { class: "hint", text: word("same_replies") }) : null,
    element(
      "div",
      { class: "scale" },
      ...levels.map((level) => {
        const radio = element("input", { type: "radio", name: "verdict", value: String(level) });
        radio.disabled = comparison.is_same && level !== 0;
        return element("label", {}, radio, element("span", { text: word(`level${words[level]}`) }));
      }),
    ),
  );
  const criteria = comparison.rubric.length ? criteriaTable(comparison.rubric) : null;
  const reasons = element(
    "fieldset",
    {},
    element("legend", { text: word("reasons") }),
    element("div", { class: "row" }, ...study.reasons.map((reason) =>
      element("label", { class: "check" }, element("input", { type: "checkbox", name: "reason", value: reason }), element("span", { text: REASON_WORDS.includes(reason) ? word(reason) : reason })))),
  );
  const critique = element("textarea", { rows: 2, maxLength: 20000 });
  const better = element("textarea", { rows: 2, maxLength: 20000 });
  const heard = element("p", { class: "hint", id: "heard" });
  const keep = element("button", { type: "submit", class: "primary", id: "keep", text: word("keep") });
  const skip = element("button", { type: "button", id: "skip", text: word("skip"), onclick: () => send(null) });
  const form = element(
    "form",
    { id: "verdict-form" },
    heard,
    scale,
    criteria,
    reasons,
    element("label", { class: "wide" }, element("span", { text: word("critique") }), critique),
    element("label", { class: "wide" }, element("span", { text: word("better_reply") }), better),
    element("p", { class: "row" }, keep, skip),
  );

  const secondsHeard = () => [...players.values()].reduce((sum, group) => sum + Math.max(0, ...group.map(playedSeconds)), 0);
  const hasHeard = () => secondsHeard() >= comparison.seconds - UNHEARD_SECONDS;
  const showHeard = () => {
    heard.textContent = comparison.seconds ? word("heard", secondsHeard().toFixed(1), comparison.seconds.toFixed(1)) : "";
    keep.disabled = !hasHeard();
    if (keep.disabled) heard.textContent += ` ${word("listen_first")}`;
  };
  for (const group of players.values()) {
    for (const player of group) for (const event of ["timeupdate", "pause", "ended"]) player.addEventListener(event, showHeard);
  }
  showHeard();

  function marks() {
    return comparison.rubric.map((_, number) =>
      Object.fromEntries(["first", "second"].map((side) => [side, form.querySelector(`input[name="criterion-${number}-${side}"]:checked`)?.value])));
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = form.querySelector('input[name="verdict"]:checked');
    const complete = marks().every((mark) => mark.first !== undefined && mark.second !== undefined);
    if (!chosen || !complete) {
      announce(word("choose_first"), true);
      return;
    }
    send(Number(chosen.value));
  });

  async function send(verdict) {
    if (keep.dataset.sending) return;
    keep.dataset.sending = "true";
    skip.disabled = true;
    announce(word("keeping"));
    const mark = verdict === null ? [] : marks().map((item) => ({ first: item.first === "met", second: item.second === "met" }));
    try {
      const answer = await postJson("/preferences/verdicts", {
        id,
        assignment: comparison.assignment,
        annotator,
        verdict,
        criteria: mark,
        reasons: [...form.querySelectorAll('input[name="reason"]:checked')].map((box) => box.value),
        critique: critique.value,
        better_reply: better.value,
        seconds_listened: Math.round(secondsHeard() * 100) / 100,
      });
      onKept(answer, form);
    } catch (error) {
      // The same id is sent again: it is kept once, even if only the answer was lost.
      announce(word("not_kept", error.message), true);
      keep.textContent = word("try_again");
      if (error.code === "consent_needed") onConsent();
      if (error.code === "conflict") onConflict(form);
    } finally {
      delete keep.dataset.sending;
      skip.disabled = false;
    }
  }

  return form;
}

// A reload, and a second attempt, send the same verdict's id.
function idOf(assignment) {
  const name = `stepaudio_jax.verdict.${assignment}`;
  try {
    const kept = sessionStorage.getItem(name) ?? randomId();
    sessionStorage.setItem(name, kept);
    return kept;
  } catch {
    return randomId();
  }
}

// Scales of fewer levels leave words out, as the judge's do.
function scaleWords(highest) {
  const above = { 1: [2], 2: [2, 3], 3: [1, 2, 3] }[highest];
  const words = { 0: 0 };
  above.forEach((value, index) => {
    words[index + 1] = value;
    words[-index - 1] = -value;
  });
  return words;
}

function criteriaTable(rubric) {
  const cell = (number, side) =>
    element(
      "td",
      {},
      ...["met", "not_met"].map((value) => {
        const radio = element("input", { type: "radio", name: `criterion-${number}-${side}`, value });
        radio.setAttribute("aria-label", `${rubric[number].criterion}, ${word(side)}: ${word(value)}`);
        return element("label", {}, radio, element("span", { text: word(value) }));
      }),
    );
  return element(
    "fieldset",
    {},
    element("legend", { text: word("criteria") }),
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, element("th", { scope: "col", text: word("rubric").split(/[:：]/)[0] }), element("th", { scope: "col", text: word("first") }), element("th", { scope: "col", text: word("second") }))),
      element("tbody", {}, ...rubric.map((item, number) => element("tr", {}, element("th", { scope: "row", text: item.criterion }), cell(number, "first"), cell(number, "second")))),
    ),
  );
}

function playedSeconds(player) {
  let seconds = 0;
  for (let index = 0; index < player.played.length; index++) seconds += player.played.end(index) - player.played.start(index);
  return seconds;
}
