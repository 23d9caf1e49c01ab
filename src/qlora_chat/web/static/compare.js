// One question to several models side by side. The server draws the view; this module opens it, sends what was chosen, and lets
// the answers grow.

import { h } from "./dom.js";
import { grow } from "./message_item.js";

export function mount(element, trigger, props, watch) {
  const view = new CompareView(trigger);
  element.replaceChildren(view.dialog);
  watch("value", () => view.show(props.value ?? {}));
  document.addEventListener("click", ({ target }) => target.closest("#open-compare") && view.open());
}

class CompareView {
  constructor(trigger) {
    this.trigger = trigger;
    this.dialog = h("dialog", {
      class: "compare-view",
      "aria-labelledby": "compare-title",
      onsubmit: (event) => this.submit(event),
      onclick: ({ target }) => this.act(target.closest("[data-act]")),
      oncancel: (event) => this.cancel(event),
      onkeydown: (event) => event.target.name === "question" && event.key === "Enter" && !event.shiftKey && !event.isComposing && this.submit(event),
    });
  }

  part(name) {
    return this.dialog.querySelector(`.compare-${name}`);
  }

  open() {
    this.dialog.showModal();
    this.trigger("input");
  }

  submit(event) {
    event.preventDefault();
    const form = this.part("form");
    const { question, blind } = form.elements;
    const columns = [...form.querySelectorAll("fieldset:enabled")].map(({ elements }) => [...elements].map(({ name, value }) => [name, value]));
    this.trigger("submit", { question: question.value, columns: JSON.stringify(columns.map(Object.fromEntries)), blind: blind.checked });
  }

  // Escape stops the answers, and closes the view where none is written.
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

  // All HTML is the server's, texts escaped. What was chosen stays while the form is the same.
  show({ form, notes, problem, html, live }) {
    if (form && form !== this.form) {
      const typed = this.dialog.querySelector("textarea")?.value ?? document.querySelector("#box textarea").value;
      this.dialog.innerHTML = this.form = form;
      this.dialog.querySelector("textarea").value = typed;
    }
    if (notes !== undefined) this.part("notes").innerHTML = notes;
    if (problem !== undefined) this.part("problem").textContent = problem;
    if (html || form) this.draw(html ?? "");
    const bodies = [...this.dialog.querySelectorAll(".body")];
    if (!bodies.every((body, index) => !live?.[index] || grow(body, live[index]))) this.trigger("input"); // updates are missing
  }

  // Shows the result, or the form where there is none; the focus and the column in view stay.
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
