// Shows turns: a user's with its clips, a reply with its reasoning beside it in a pane that folds.

import { element } from "/page/dom.js";
import { clipView } from "/page/sound.js";
import { word } from "/page/words.js";

export function userTurnView(turn, actions = []) {
  const clips = turn.clips.map((clip) => clipView(clip, saveLink(clip)));
  const view = element(
    "li",
    { class: "turn user" },
    element("p", { class: "who", text: word("you") }),
    ...clips,
    turn.text ? element("p", { class: "words", text: turn.text }) : null,
    actions.length ? element("div", { class: "row" }, ...actions) : null,
  );
  view.release = () => clips.forEach((clip) => clip.release());
  view.players = clips.map((clip) => clip.player);
  return view;
}

export function replyView(turn, note = "", name = "li") {
  const words = element("p", { class: "words", text: turn.text });
  const thoughts = element("div", { class: "words", text: turn.reasoning, tabIndex: 0, role: "region" });
  thoughts.setAttribute("aria-label", word("reasoning"));
  const pane = element("details", { class: "reasoning", open: true }, element("summary", { text: word("reasoning") }), thoughts);
  const grid = element("div", { class: "reply" }, pane, element("div", { class: "answer" }, words));
  const noteLine = element("p", { class: "hint", text: note });
  const view = element(name, { class: "turn assistant" }, element("p", { class: "who", text: word("assistant") }), grid, noteLine);
  pane.addEventListener("toggle", () => grid.classList.toggle("folded", !pane.open));
  view.update = (current, currentNote = "") => {
    words.textContent = current.text;
    if (thoughts.textContent !== current.reasoning) {
      const atEnd = thoughts.scrollHeight - thoughts.scrollTop - thoughts.clientHeight < 40;
      thoughts.textContent = current.reasoning;
      if (atEnd) thoughts.scrollTop = thoughts.scrollHeight;
    }
    pane.hidden = !current.reasoning.trim();
    grid.classList.toggle("folded", pane.hidden || !pane.open);
    noteLine.textContent = currentNote;
    noteLine.hidden = !currentNote;
  };
  view.update(turn, note);
  view.release = () => {};
  return view;
}

function saveLink(clip) {
  return element("button", {
    type: "button",
    text: word("save_clip"),
    onclick: () => {
      const url = URL.createObjectURL(clip.blob);
      const link = element("a", { href: url, download: `clip.${clip.format}` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    },
  });
}
