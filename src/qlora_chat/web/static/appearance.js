// Light, dark, or as the system is; the language; and the page as an app of its own.

import { copy } from "./dom.js";
import { choose, chosen } from "./language.js";
import { read, write } from "./memory.js";

const KEY = "qlora-chat.theme";
const DARK = matchMedia("(prefers-color-scheme: dark)");

export function mount(element) {
  const { root, theme, languages } = copy("appearance");
  const apply = () => {
    const dark = theme.value === "dark" || (theme.value === "system" && DARK.matches);
    document.body.classList.toggle("dark", dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
  };
  const recall = () => {
    theme.value = read(KEY) ?? "system";
    apply();
  };
  theme.onchange = () => (write(KEY, theme.value), apply());
  languages.value = chosen;
  languages.onchange = () => choose(languages.value);
  element.replaceChildren(root);
  recall();
  DARK.addEventListener("change", () => setTimeout(apply)); // Gradio follows the system by itself, after this listener
  addEventListener("storage", ({ key }) => key === KEY && recall());
  const manifest = document.querySelector("link[rel=manifest]"); // Gradio's, which is not served
  Object.assign(manifest, { crossOrigin: "use-credentials", href: new URL("manifest.json", import.meta.url) });
}
