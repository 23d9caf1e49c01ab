// System texts under names, which this browser stores: one is chosen into the box for the system text, or saved from it.

import { copy, type } from "./dom.js";
import { t } from "./language.js";
import { read, write } from "./memory.js";

const STORED = "qlora-chat.systems";

export function mount(element) {
  const { root: form, choice, remove, name, problem } = copy("systems");
  const texts = new Map(Object.entries(read(STORED) ?? {}).filter(([, text]) => typeof text === "string"));
  const box = () => document.querySelector("#system textarea");

  const draw = (chosen) => {
    const names = [...texts.keys()].sort();
    choice.replaceChildren(new Option(names.length ? t("Choose one") : t("None yet"), ""), ...names.map((each) => new Option(each)));
    name.value = choice.value = chosen;
    choice.disabled = !names.length;
    remove.disabled = !chosen;
  };
  const store = (chosen) => {
    problem.textContent = write(STORED, Object.fromEntries(texts)) ? "" : t("This browser lets the page store nothing.");
    draw(chosen);
  };
  const refusal = (chosen) => {
    if (!chosen) return t("Enter a name first.");
    return box().value.trim() ? "" : t("There is no system text above to save.");
  };

  choice.onchange = () => {
    draw(choice.value);
    problem.textContent = "";
    if (choice.value) type(box(), texts.get(choice.value));
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    const chosen = name.value.trim();
    problem.textContent = refusal(chosen);
    if (problem.textContent) return;
    texts.set(chosen, box().value);
    store(chosen);
  };
  remove.onclick = () => {
    texts.delete(choice.value);
    store("");
    choice.focus();
  };
  draw("");
  element.replaceChildren(form);
}
