// Light, dark, or as the system is; the language; and the page as an app of its own.

import { h } from "./dom.js";
import { choose as chooseLanguage, chosen as chosenLanguage, LANGUAGES, t } from "./language.js";

const KEY = "qlora-chat.theme";
const DARK = matchMedia("(prefers-color-scheme: dark)");
const THEMES = { system: "As the system is", light: "Light", dark: "Dark" };

function chosen() {
  try {
    const theme = localStorage.getItem(KEY);
    return theme in THEMES ? theme : "system";
  } catch {
    return "system"; // storage is forbidden
  }
}

function apply() {
  const theme = chosen();
  const dark = theme === "dark" || (theme === "system" && DARK.matches);
  document.body.classList.toggle("dark", dark);
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
}

export function mount(element) {
  const select = choice("theme", Object.entries(THEMES).map(([value, name]) => [value, t(name)]), chosen(), choose);
  const languages = [["", t("The browser's")], ...Object.entries(LANGUAGES)];
  element.replaceChildren(
    h("label", { class: "appearance" }, t("Theme"), select),
    h("label", { class: "appearance" }, t("Language"), choice("language", languages, chosenLanguage, chooseLanguage)));
  apply();
  // Gradio follows the system by itself, after this listener.
  DARK.addEventListener("change", () => setTimeout(apply));
  addEventListener("storage", ({ key }) => key === KEY && (apply(), (select.value = chosen())));
  const manifest = new URL("page/static/manifest.json", document.baseURI);
  document.querySelectorAll("link[rel=manifest]").forEach((each) => each.remove()); // Gradio's, which is not served
  document.head.append(h("link", { rel: "manifest", href: manifest.href, crossorigin: "use-credentials" }));
}

function choice(id, options, value, act) {
  const select = h("select", { id, onchange: () => act(select.value) }, ...options.map(([each, name]) => h("option", { value: each }, name)));
  select.value = value;
  return select;
}

function choose(theme) {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // it holds for this page only
  }
  apply();
}
