// The bar under the message box, and its panel: how much of the model's window the next message would take, which turns would
// go, and which are pinned. The server counts at each pause in typing and after each answer, and draws both.

import { copy, fragment } from "./dom.js";
import { showMemory } from "./messages.js";

const PAUSE_MS = 350;

export function mount(element, trigger, props, watch) {
  const { root, bar, panel } = copy("context-bar");
  let pause;
  const count = () => {
    clearTimeout(pause);
    pause = setTimeout(() => trigger("input"), PAUSE_MS);
  };
  document.addEventListener("input", ({ target }) => target.closest("#box, #system") && count());
  document.addEventListener("answered", count); // the answer is part of the next prompt
  document.addEventListener("click", ({ target }) => {
    const pin = target.closest("[data-action=pin]");
    if (pin) trigger("select", { id: pin.closest("article").dataset.id, pinned: pin.ariaPressed !== "true" });
  });
  panel.onclick = ({ target: { value, dataset } }) => value && trigger("select", { id: value, pinned: !("pinned" in dataset) });
  root.onkeydown = (event) => {
    if (event.key !== "Escape" || !root.open) return;
    event.stopPropagation();
    root.open = false;
    bar.focus();
  };
  const show = () => props.value?.bar && draw(bar, panel, props.value);
  element.replaceChildren(root);
  watch("value", show);
  show();
}

function draw(bar, panel, value) {
  const focused = panel.contains(document.activeElement) && document.activeElement.id;
  bar.replaceChildren(fragment(value.bar));
  panel.replaceChildren(fragment(value.panel));
  if (focused) (document.getElementById(focused) ?? bar).focus();
  showMemory(value);
}
