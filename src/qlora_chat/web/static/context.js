// The bar under the message box: how much of the model's window the next message would take, which turns would go, and the
// line in the conversation where the model's memory begins. Counted by the server at each pause in typing.

import { h } from "./dom.js";
import { number, t } from "./language.js";

const PAUSE_MS = 350;
const LONG_DRAFT = 20000; // characters; counting these takes the server longer
const LONG_PAUSE_MS = 900;

export function mount(element, trigger, props, watch) {
  const bar = new ContextBar(trigger);
  element.replaceChildren(bar.root);
  watch("value", () => bar.show(props.value));
  bar.show(props.value);
}

class ContextBar {
  constructor(trigger) {
    this.trigger = trigger;
    this.value = null;
    this.parts = ["history", "draft", "answer"].map((name) => h("i", { class: `part ${name}` }));
    this.text = h("span", { class: "use" });
    this.button = h("button", { type: "button", class: "context-bar", "aria-expanded": "false", "aria-controls": "context-panel", onclick: () => this.toggle() },
      h("span", { class: "gauge", "aria-hidden": "true" }, ...this.parts), this.text);
    this.panel = h("div", { class: "context-panel", id: "context-panel", hidden: true });
    this.root = h("div", { class: "context" }, this.panel, this.button);
    this.root.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || this.panel.hidden) return;
      event.stopPropagation();
      this.toggle();
      this.button.focus();
    });
    document.addEventListener("input", ({ target }) => target.closest("#box, #system") && this.typed(target.value.length));
    this.watchMessages();
    this.watchAnswers();
  }

  typed(length) {
    clearTimeout(this.pause);
    this.pause = setTimeout(() => this.trigger("input"), length > LONG_DRAFT ? LONG_PAUSE_MS : PAUSE_MS);
  }

  toggle() {
    this.panel.hidden = !this.panel.hidden;
    this.button.setAttribute("aria-expanded", String(!this.panel.hidden));
  }

  show(value) {
    if (!value?.window) return;
    this.value = value;
    const { history, draft, answer, window: all, problem } = value;
    [history, draft, answer].forEach((tokens, index) => (this.parts[index].style.width = `${Math.min(100, (100 * tokens) / all)}%`));
    this.text.textContent = t("{used} of {all}", { used: draft ? `${number(history)} + ${number(draft)}` : history, all });
    this.button.title = t("Tokens of the conversation, of your message, and of the model's window");
    this.button.classList.toggle("over", Boolean(problem));
    this.drawPanel(value);
    this.drawMemory();
  }

  drawPanel({ history, draft, answer, window: all, problem, unseen, going, pinned }) {
    const focused = this.panel.contains(document.activeElement) && document.activeElement.dataset.id;
    const free = Math.max(0, all - history - draft - answer);
    const rows = [[t("Conversation"), history], [t("Your message"), draft], [t("Kept free for the answer"), answer], [t("Still free"), free], [t("Window"), all]];
    this.panel.replaceChildren(
      h("dl", {}, ...rows.flatMap(([name, tokens]) => [h("dt", {}, name), h("dd", {}, number(tokens))])),
      ...(problem ? [h("p", { class: "form-problem", role: "alert" }, t(problem))] : []),
      ...(unseen && !problem ? this.list(t(unseen === 1 ? "{count} exchange is not seen by the model" : "{count} exchanges are not seen by the model", { count: unseen }), going, t("Keep"), true, unseen - going.length) : []),
      ...(pinned.length ? this.list(t("Always seen"), pinned, t("Let go"), false, 0) : []));
    if (focused) (this.panel.querySelector(`[data-id="${CSS.escape(focused)}"]`) ?? this.button).focus();
  }

  list(title, entries, label, pinned, more) {
    const items = entries.map(({ id, text }) => h("li", {}, h("span", { dir: "auto" }, text),
      h("button", { type: "button", class: "plain", "data-id": id, "aria-label": `${label}: ${text}`, onclick: () => this.trigger("select", { id, pinned }) }, label)));
    return [h("h3", {}, title), h("ul", {}, ...(more > 0 ? [h("li", { class: "more" }, t("and {count} before these", { count: more }))] : []), ...items)];
  }

  // Messages are drawn, and drawn again, by messages.js: the line is an attribute, which page.css shows.
  drawMemory() {
    const list = document.querySelector("#messages .list");
    if (!list || !this.value) return;
    const { begins, unseen } = this.value;
    const text = t(unseen === 1 ? "the model's memory begins here: {count} exchange is not seen" : "the model's memory begins here: {count} exchanges are not seen", { count: unseen });
    for (const each of list.children) {
      const line = unseen && each.dataset.id === begins ? text : undefined;
      if (each.dataset.memory !== line) line ? (each.dataset.memory = line) : delete each.dataset.memory;
    }
  }

  // An answer that has ended is part of the next prompt.
  watchAnswers() {
    let answering = false;
    new MutationObserver(() => {
      const before = answering;
      answering = document.body.classList.contains("answering");
      if (before && !answering) this.typed(0);
    }).observe(document.body, { attributeFilter: ["class"] });
  }

  watchMessages() {
    const list = document.querySelector("#messages .list");
    if (!list) return void setTimeout(() => this.watchMessages(), 100);
    new MutationObserver(() => this.drawMemory()).observe(list, { childList: true });
    this.drawMemory();
  }
}
