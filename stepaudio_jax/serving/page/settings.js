// The settings panel: model, sampling, system prompt, language, theme, key.

import { getJson, setKey } from "/page/api.js";
import { byId, element, show } from "/page/dom.js";
import { setSetting, setting } from "/page/keeping.js";
import { setLanguage, word } from "/page/words.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const KEPT = [...NUMBERS, "system"];
const TINY_PARAMETERS = 100e6;

let about = { models: {}, preferences: false };

// Throws an error that names the setting, where one has a value that is not allowed.
export function sampling() {
  const values = {};
  for (const name of NUMBERS) {
    const field = byId(name);
    if (!field.validity.valid) throw new Error(word("setting_wrong", word(name)));
    if (field.value !== "") values[name] = Number(field.value);
  }
  if (!byId("thinking").checked) values.chat_template_kwargs = { enable_thinking: false };
  return values;
}

export const systemPrompt = () => byId("system").value.trim();
export const modelName = () => byId("model").value;
export const modelNames = () => [...byId("model").options].map((option) => option.value);

export function initSettings(onLanguage, onServer) {
  for (const name of KEPT) {
    byId(name).value = setting(name, "");
    byId(name).addEventListener("change", () => setSetting(name, byId(name).value));
  }
  const key = byId("api_key");
  try {
    key.value = sessionStorage.getItem("stepaudio_jax.key") ?? "";
  } catch {
    // The key must be written again in each tab.
  }
  setKey(key.value);
  key.addEventListener("change", () => {
    setKey(key.value);
    try {
      sessionStorage.setItem("stepaudio_jax.key", key.value);
    } catch {
      // As above.
    }
    onServer();
  });
  byId("model").addEventListener("change", showBanner);
  const language = byId("language");
  language.value = setting("language", navigator.language.startsWith("zh") ? "zh" : "en");
  const changeLanguage = () => {
    setSetting("language", language.value);
    setLanguage(language.value);
    showBanner();
    onLanguage();
  };
  language.addEventListener("change", changeLanguage);
  setLanguage(language.value);
  const theme = byId("theme");
  theme.value = setting("theme", "auto");
  const changeTheme = () => {
    setSetting("theme", theme.value);
    if (theme.value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme.value;
  };
  theme.addEventListener("change", changeTheme);
  changeTheme();
  const toggle = byId("toggle-settings");
  toggle.addEventListener("click", () => {
    const open = byId("settings").hidden;
    show(byId("settings"), open);
    toggle.setAttribute("aria-expanded", String(open));
  });
}

// Asks the server what it has; returns {models, preferences}.
export async function loadServer() {
  about = await getJson("/about");
  const models = (await getJson("/v1/models")).data ?? [];
  const select = byId("model");
  const chosen = select.value;
  select.replaceChildren(...models.map((model) => element("option", { value: model.id, text: model.id })));
  if (models.some((model) => model.id === chosen)) select.value = chosen;
  showBanner();
  return about;
}

function showBanner() {
  const banner = byId("banner");
  const model = about.models[modelName()] ?? {};
  let text = "";
  if (model.is_random) text = word("random_weights");
  else if (model.num_parameters < TINY_PARAMETERS) text = word("tiny_model", model.num_parameters.toLocaleString());
  banner.textContent = text;
  show(banner, Boolean(text));
}
