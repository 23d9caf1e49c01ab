// One question to several models side by side. The server draws the view; this module sends what was chosen, and lets answers grow.

import { copy } from "./dom.js";
import { read, write } from "./memory.js";
import { grow } from "./message_item.js";

const NEWEST = "qlora-chat.comparison"; // its id, for a reloaded page

export function mount(element, trigger, props, watch) {
  const view = new CompareView(trigger);
  element.replaceChildren(view.dialog);
  watch("value", () => view.show(props.value ?? {}));
  document.addEventListener("click", ({ target }) => target.closest("#open-compare") && view.open());
}

class CompareView {
  constructor(trigger) {
    this.trigger = trigger;
    this.dialog = Object.assign(copy("compare-view").root, {
      onsubmit: (event) => this.submit(event),
      onclick: ({ target }) => this.act(target.closest("[data-act]")),
      oncancel: (event) => this.cancel(event),
      onkeydown: (event) => this.key(event),
    });
  }

  part(name) {
    return this.dialog.querySelector(`.compare-${name}`);
  }

  open() {
    this.dialog.showModal();
    this.fetch();
  }

  fetch() {
    this.trigger("input", { id: read(NEWEST, "sessionStorage") ?? "" });
  }

  submit(event) {
    event.preventDefault();
    const form = this.part("form");
    const { question, blind } = form.elements;
    const columns = [...form.querySelectorAll("fieldset:enabled")].map(({ elements }) => [...elements].map(({ name, value }) => [name, value]));
    this.trigger("submit", { question: question.value, columns: JSON.stringify(columns.map(Object.fromEntries)), blind: blind.checked });
  }

  key(event) {
    const { key, target, shiftKey, isComposing } = event;
    if (target.name === "question" && key === "Enter" && !shiftKey && !isComposing) this.submit(event);
  }

  // Escape stops the answers, else it closes the view.
  cancel(event) {
    if (!this.dialog.querySelector("[data-act=stop]")) return;
    event.preventDefault();
    this.trigger("stop");
  }

  act(button) {
    const { act, value } = button?.dataset ?? {};
    if (act === "add") this.toggle(this.dialog.querySelector("fieldset:disabled"), false);
    if (act === "remove") this.toggle(button.closest("fieldset"), true);
    if (act === "again") this.draw("");
    if (["clear", "like", "select", "stop"].includes(act)) this.trigger(act, value ? { choice: value } : {});
    if (act === "close" || act === "select") this.dialog.close();
  }

  // A disabled column is neither shown nor sent.
  toggle(column, disabled) {
    column.disabled = disabled;
    (disabled ? this.dialog.querySelector("[data-act=add]") : column.querySelector("select")).focus();
  }

  // What was chosen stays while the form is the same.
  show({ id, form, notes, problem, html, live }) {
    if (id) write(NEWEST, id, "sessionStorage");
    if (form && form !== this.form) {
      const typed = this.dialog.querySelector("textarea")?.value ?? document.querySelector("#box textarea").value;
      this.dialog.innerHTML = this.form = form;
      this.dialog.querySelector("textarea").value = typed;
    }
    if (notes !== undefined) this.part("notes").innerHTML = notes;
    if (problem !== undefined) this.part("problem").textContent = problem;
    if (html || form) this.draw(html ?? "");
    const bodies = [...this.dialog.querySelectorAll(".body")];
    if (!bodies.every((body, index) => !live?.[index] || grow(body, live[index]))) this.fetch(); // updates are missing
  }

  // Shows the result, else the form; the focus and the column in view stay.
  draw(html) {
    const form = this.part("form");
    const result = this.part("result");
    const left = this.part("answers")?.scrollLeft ?? 0;
    result.innerHTML = html;
    form.hidden = Boolean(html);
    this.part("answers")?.scrollTo(left, 0);
    if (!this.dialog.contains(document.activeElement) || !html) (html ? result.querySelector("button") : form.elements.question)?.focus({ preventScroll: true });
  }
}
