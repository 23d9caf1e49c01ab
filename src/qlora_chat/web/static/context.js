// The bar under the message box: how much of the model's window the next message would take, which turns would go, and the
// line in the conversation where the model's memory begins. Counted by the server at each pause in typing.

import { copy, h, present } from "./dom.js";
import { number, t } from "./language.js";

const PAUSE_MS = 350;
const LONG_DRAFT = 20000; // characters; counting these takes the server longer
const LONG_PAUSE_MS = 900;

export function mount(element, trigger, props, watch) {
  const bar = new ContextBar(trigger);
  element.replaceChildren(bar.root);
  const show = () => bar.show(props.value);
  watch("value", show);
  show();
}

class ContextBar {
  constructor(trigger) {
    this.trigger = trigger;
    Object.assign(this, copy("context-bar"));
    this.button.onclick = () => this.toggle();
    this.root.onkeydown = (event) => {
      if (event.key !== "Escape" || this.panel.hidden) return;
      event.stopPropagation();
      this.toggle();
      this.button.focus();
    };
    document.addEventListener("input", ({ target }) => target.closest("#box, #system") && this.typed(target.value.length));
    document.addEventListener("pin", ({ detail }) => this.trigger("select", detail));
    this.watchMessages();
  }

  typed(length) {
    clearTimeout(this.pause);
    this.pause = setTimeout(() => this.trigger("input"), length > LONG_DRAFT ? LONG_PAUSE_MS : PAUSE_MS);
  }

  toggle() {
    this.panel.hidden = !this.panel.hidden;
    this.button.ariaExpanded = String(!this.panel.hidden);
  }

  show(value) {
    if (!value?.window) return;
    this.value = value;
    const { history, draft, window: all, problem } = value;
    for (const name of ["history", "draft", "answer"]) this[name].style.width = `${Math.min(100, (100 * value[name]) / all)}%`;
    this.use.textContent = t("{used} of {all}", { used: draft ? `${number(history)} + ${number(draft)}` : history, all });
    this.button.classList.toggle("over", Boolean(problem));
    this.drawPanel(value);
    this.drawMemory();
  }

  drawPanel({ history, draft, answer, window, problem, unseen, going, pinned }) {
    const focused = this.panel.contains(document.activeElement) && document.activeElement.dataset.id;
    const { root, ...cells } = copy("context-use");
    const use = { history, draft, answer, window, free: Math.max(0, window - history - draft - answer) };
    for (const [name, tokens] of Object.entries(use)) cells[name].textContent = number(tokens);
    this.panel.replaceChildren(root);
    if (problem) this.panel.append(h("p", { class: "form-problem", role: "alert" }, t(problem)));
    else if (unseen) this.list(t(unseen === 1 ? "{count} exchange is not seen by the model" : "{count} exchanges are not seen by the model", { count: unseen }), going, t("Keep"), true, unseen - going.length);
    if (pinned.length) this.list(t("Always seen"), pinned, t("Let go"), false, 0);
    if (focused) (this.panel.querySelector(`[data-id="${CSS.escape(focused)}"]`) ?? this.button).focus();
  }

  list(title, entries, label, pinned, more) {
    const items = entries.map(({ id, text }) => h("li", {}, h("span", { dir: "auto" }, text),
      h("button", { class: "plain", "data-id": id, "aria-label": `${label}: ${text}`, onclick: () => this.trigger("select", { id, pinned }) }, label)));
    if (more > 0) items.unshift(h("li", { class: "more" }, t("and {count} before these", { count: more })));
    this.panel.append(h("h3", {}, title), h("ul", {}, ...items));
  }

  // Messages are drawn, and drawn again, by messages.js: the line is an attribute, which page.css shows.
  drawMemory() {
    const { begins, unseen, pinned = [] } = this.value ?? {};
    const kept = new Set(pinned.map(({ id }) => id));
    const text = unseen && t(unseen === 1 ? "the model's memory begins here: {count} exchange is not seen" : "the model's memory begins here: {count} exchanges are not seen", { count: unseen });
    for (const each of this.messages?.children ?? []) {
      const pin = each.querySelector("[data-action=pin]");
      if (pin) pin.ariaPressed = String(kept.has(each.dataset.id));
      const line = unseen && each.dataset.id === begins ? text : undefined;
      if (each.dataset.memory !== line) line ? (each.dataset.memory = line) : delete each.dataset.memory;
    }
  }

  // An answer that has ended is part of the next prompt.
  async watchMessages() {
    let answering = false;
    new MutationObserver(() => {
      const before = answering;
      answering = document.body.classList.contains("answering");
      if (before && !answering) this.typed(0);
    }).observe(document.body, { attributeFilter: ["class"] });
    await present("message-items");
    this.messages = document.getElementById("message-items");
    new MutationObserver(() => this.drawMemory()).observe(this.messages, { childList: true });
    this.drawMemory();
  }
}
