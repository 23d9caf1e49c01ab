// One question to several models side by side. The server draws the view; this module opens it, sends what was chosen, and lets
// the answers grow.

import { h, present } from "./dom.js";
import { setBlocks } from "./message_item.js";

const RESENT = 2; // updates whose changes every update repeats, as in live_blocks.py

export async function mount(element, trigger, props, watch) {
  const view = new CompareView(trigger);
  element.replaceChildren(view.dialog);
  watch("value", () => view.show(props.value ?? {}));
  await present("open-compare");
  document.getElementById("open-compare").addEventListener("click", () => view.open());
}

class CompareView {
  constructor(trigger) {
    this.trigger = trigger;
    this.dialog = h("dialog", {
      class: "compare-view",
      "aria-labelledby": "compare-title",
      onsubmit: (event) => this.submit(event),
      onclick: ({ target }) => this.act(target.closest("[data-act]")),
      oncancel: (event) => this.writing && (event.preventDefault(), trigger("stop")),
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
    const columns = [...form.querySelectorAll("fieldset:enabled")].map((each) => Object.fromEntries([...each.elements].map(({ name, value }) => [name, value])));
    this.trigger("submit", { question: form.elements.question.value, columns: JSON.stringify(columns), blind: form.elements.blind.checked });
  }

  act(button) {
    const { act, value } = button?.dataset ?? {};
    if (act === "add") this.toggle(this.dialog.querySelector("fieldset:disabled"), false);
    if (act === "remove") this.toggle(button.closest("fieldset"), true);
    if (act === "again") this.draw("");
    if (act === "stop" || act === "clear") this.trigger(act);
    if (act === "like" || act === "select") this.trigger(act, { choice: value });
    if (act === "close" || act === "select") this.dialog.close();
  }

  toggle(column, disabled) {
    column.disabled = column.hidden = disabled;
    const add = this.dialog.querySelector("[data-act=add]");
    add.disabled = !this.dialog.querySelector("fieldset:disabled");
    (disabled ? add : column.querySelector("select")).focus();
  }

  // All HTML is the server's, texts escaped. What was chosen stays while the form is the same.
  show({ form, notes, problem, html, writing, live }) {
    if (form && form !== this.form) {
      const typed = this.dialog.querySelector("textarea")?.value ?? document.querySelector("#box textarea").value;
      this.dialog.innerHTML = this.form = form;
      this.dialog.querySelector("textarea").value = typed;
    }
    if (notes !== undefined) this.part("notes").innerHTML = notes;
    if (problem !== undefined) this.part("problem").textContent = problem;
    if (writing !== undefined) this.writing = writing;
    if (html || form) this.draw(html ?? "");
    this.dialog.querySelectorAll(".body").forEach((body, index) => this.grow(body, live?.[index]));
  }

  // Shows the result, or the form where there is none; the focus and the column in view stay.
  draw(html) {
    const [form, result] = ["form", "result"].map((name) => this.part(name));
    const left = this.part("answers")?.scrollLeft ?? 0;
    result.innerHTML = html;
    form.hidden = Boolean(html);
    this.part("answers")?.scrollTo(left, 0);
    if (!this.dialog.contains(document.activeElement) || !html) (html ? result.querySelector("button") : form.elements.question)?.focus({ preventScroll: true });
  }

  grow(body, live) {
    const shown = body.number ?? -1;
    if (!live || live.number <= shown) return;
    if (live.number > shown + RESENT + 1 && (live.from || live.keep)) return void this.trigger("input"); // some are missing
    body.number = live.number;
    setBlocks(body, live.from, live.blocks, live.keep);
  }
}
