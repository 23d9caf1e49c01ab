// Light, dark, or as the system is; the language; and the page as an app of its own.

import { addOptions, copy, h } from "./dom.js";
import { choose, chosen, LANGUAGES } from "./language.js";
import { read, write } from "./memory.js";

const KEY = "qlora-chat.theme";
const DARK = matchMedia("(prefers-color-scheme: dark)");

const theme = () => (["light", "dark"].includes(read(KEY)) ? read(KEY) : "system");

export function mount(element) {
  const { root, ...selects } = copy("appearance");
  const apply = () => {
    const dark = selects.theme.value === "dark" || (selects.theme.value === "system" && DARK.matches);
    document.body.classList.toggle("dark", dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
  };
  selects.theme.value = theme();
  selects.theme.onchange = () => (write(KEY, selects.theme.value), apply());
  addOptions(selects.languages, Object.entries(LANGUAGES));
  selects.languages.value = chosen;
  selects.languages.onchange = () => choose(selects.languages.value);
  element.replaceChildren(root);
  apply();
  // Gradio follows the system by itself, after this listener.
  DARK.addEventListener("change", () => setTimeout(apply));
  addEventListener("storage", ({ key }) => key === KEY && ((selects.theme.value = theme()), apply()));
  const manifest = new URL("manifest.json", import.meta.url);
  document.querySelectorAll("link[rel=manifest]").forEach((each) => each.remove()); // Gradio's, which is not served
  document.head.append(h("link", { rel: "manifest", href: manifest.href, crossorigin: "use-credentials" }));
}
