// System texts under names, which this browser stores: one is chosen into the box for the system text, or saved from it.

import { addOptions, copy, type } from "./dom.js";
import { t } from "./language.js";
import { read, write } from "./memory.js";

const STORED = "qlora-chat.systems";
const MOST = 100;

export function mount(element) {
  const { root, choice, remove, name, keep, problem } = copy("systems");
  const texts = new Map(Object.entries(read(STORED) ?? {}).filter(([, text]) => typeof text === "string"));
  const box = () => document.querySelector("#system textarea");

  const draw = (chosen) => {
    const names = [...texts.keys()].sort((one, other) => one.localeCompare(other));
    choice.replaceChildren();
    addOptions(choice, [["", names.length ? t("Choose one") : t("None yet")], ...names.map((each) => [each, each])]);
    choice.value = chosen;
    choice.disabled = !names.length;
    remove.disabled = !chosen;
  };
  const store = (chosen) => {
    if (!write(STORED, Object.fromEntries(texts))) problem.textContent = t("This browser lets the page store nothing.");
    draw(chosen);
  };
  const refusal = (chosen, text) => {
    if (!chosen) return t("Enter a name first.");
    if (!text.trim()) return t("There is no system text above to save.");
    return !texts.has(chosen) && texts.size >= MOST ? t("{most} system texts are saved; delete one first.", { most: MOST }) : "";
  };

  choice.onchange = () => {
    name.value = choice.value;
    remove.disabled = !choice.value;
    problem.textContent = "";
    if (choice.value) type(box(), texts.get(choice.value));
  };
  keep.onclick = () => {
    const chosen = name.value.trim();
    problem.textContent = refusal(chosen, box().value);
    if (problem.textContent) return;
    texts.set(chosen, box().value);
    store(chosen);
  };
  remove.onclick = () => {
    texts.delete(choice.value);
    name.value = "";
    store("");
    choice.focus();
  };
  name.addEventListener("keydown", ({ key }) => key === "Enter" && keep.click());
  draw("");
  element.replaceChildren(root);
}
