// Starts the page: two modes share the composer and the settings.

import { announce, byId, show } from "/page/dom.js";
import { Compare } from "/page/compare.js";
import { Composer } from "/page/composer.js";
import { initSettings, loadServer } from "/page/settings.js";
import { Talk } from "/page/talk.js";

let mode = "talk";
const composer = new Composer((turn) => (mode === "talk" ? talk.send(turn) : compare.send(turn)));
const talk = new Talk(composer);
const compare = new Compare(composer);

function setMode(name) {
  if (composer.busy) return;
  mode = name;
  show(byId("talk"), name === "talk");
  show(byId("compare"), name === "compare");
  byId("mode-talk").setAttribute("aria-pressed", String(name === "talk"));
  byId("mode-compare").setAttribute("aria-pressed", String(name === "compare"));
  announce("");
  if (name === "compare") compare.open();
  else composer.show(true);
}

byId("mode-talk").addEventListener("click", () => setMode("talk"));
byId("mode-compare").addEventListener("click", () => setMode("compare"));
byId("new-dialogue").addEventListener("click", () => (mode === "talk" ? talk.clear() : compare.clear()));
byId("stop").addEventListener("click", () => (mode === "talk" ? talk.stop() : compare.stop()));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && composer.busy) byId("stop").click();
  if (event.altKey && event.code === "KeyR") {
    event.preventDefault();
    byId("record").click();
  }
});

async function askServer() {
  try {
    const about = await loadServer();
    show(byId("mode-compare"), about.preferences);
    announce("");
  } catch (error) {
    announce(error.message, true);
  }
}

function changeLanguage() {
  composer.setClips(composer.clips);
  talk.show();
  compare.show();
}

initSettings(changeLanguage, askServer);
await talk.restore();
await askServer();
document.documentElement.dataset.ready = "true";
