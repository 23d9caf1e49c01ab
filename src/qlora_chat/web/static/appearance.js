// Light, dark, or as the system is; and the page as an app of its own.

import { h } from "./dom.js";

const KEY = "qlora-chat.theme";
const DARK = matchMedia("(prefers-color-scheme: dark)");
const LANGUAGE = "en";
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
  const select = h("select", { "aria-label": "Theme", id: "theme", onchange: () => choose(select.value) },
    ...Object.entries(THEMES).map(([value, name]) => h("option", { value }, name)));
  select.value = chosen();
  element.replaceChildren(h("label", { class: "appearance" }, "Theme", select));
  apply();
  speakEnglish();
  // Gradio follows the system by itself, after this listener.
  DARK.addEventListener("change", () => setTimeout(apply));
  addEventListener("storage", ({ key }) => key === KEY && (apply(), (select.value = chosen())));
  const manifest = new URL("page/static/manifest.json", document.baseURI);
  document.querySelectorAll("link[rel=manifest]").forEach((each) => each.remove()); // Gradio's, which is not served
  document.head.append(h("link", { rel: "manifest", href: manifest.href, crossorigin: "use-credentials" }));
}

// Gradio names the browser's language, in which nothing on the page is.
function speakEnglish() {
  const root = document.documentElement;
  const set = () => root.lang !== LANGUAGE && (root.lang = LANGUAGE);
  set();
  new MutationObserver(set).observe(root, { attributeFilter: ["lang"] });
}

function choose(theme) {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // it holds for this page only
  }
  apply();
}
