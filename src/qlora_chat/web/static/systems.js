// System texts under names, which this browser stores: one is chosen into the box for the system text, or saved from it.

import { h } from "./dom.js";
import { t } from "./language.js";

const STORED = "qlora-chat.systems";
const LONGEST_NAME = 60;
const MOST = 100;

export function mount(element) {
  element.replaceChildren(new SystemTexts().root);
}

class SystemTexts {
  constructor() {
    this.texts = read();
    this.choice = h("select", { id: "system-name", onchange: () => this.choose() });
    this.name = h("input", { type: "text", maxlength: LONGEST_NAME, placeholder: t("Name"), "aria-label": t("Name of the system text") });
    this.remove = h("button", { type: "button", class: "plain", onclick: () => this.delete() }, t("Delete"));
    this.problem = h("p", { class: "form-problem", role: "alert" });
    const save = h("button", { type: "button", class: "plain", onclick: () => this.save() }, t("Save"));
    this.name.addEventListener("keydown", (event) => event.key === "Enter" && this.save());
    this.root = h("div", { class: "systems" },
      h("label", { for: "system-name" }, t("Saved system texts")),
      h("div", { class: "row" }, this.choice, this.remove),
      h("div", { class: "row" }, this.name, save),
      h("p", { class: "advice" }, t("Save the system text above under a name, to use it again in this browser.")),
      this.problem);
    this.draw("");
  }

  draw(chosen) {
    const names = Object.keys(this.texts).sort((one, other) => one.localeCompare(other));
    this.choice.replaceChildren(h("option", { value: "" }, names.length ? t("Choose one") : t("None yet")), ...names.map((each) => h("option", { value: each }, each)));
    this.choice.value = chosen;
    this.choice.disabled = !names.length;
    this.remove.disabled = !chosen;
  }

  choose() {
    const name = this.choice.value;
    this.remove.disabled = !name;
    this.name.value = name;
    this.problem.textContent = "";
    if (!name) return;
    const box = document.querySelector("#system textarea");
    box.value = this.texts[name];
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }

  save() {
    const name = this.name.value.trim();
    const text = document.querySelector("#system textarea").value;
    this.problem.textContent = !name ? t("Enter a name first.") : !text.trim() ? t("There is no system text above to save.") : "";
    if (this.problem.textContent) return;
    if (!(name in this.texts) && Object.keys(this.texts).length >= MOST) {
      this.problem.textContent = t("{most} system texts are saved; delete one first.", { most: MOST });
      return;
    }
    this.texts[name] = text;
    this.store(name);
  }

  delete() {
    delete this.texts[this.choice.value];
    this.name.value = "";
    this.store("");
    this.choice.focus();
  }

  store(chosen) {
    try {
      localStorage.setItem(STORED, JSON.stringify(this.texts));
    } catch {
      this.problem.textContent = t("This browser lets the page store nothing.");
    }
    this.draw(chosen);
  }
}

// A record without prototype: a text may be called "constructor".
function read() {
  const texts = Object.create(null);
  try {
    for (const [name, text] of Object.entries(JSON.parse(localStorage.getItem(STORED)) ?? {})) if (typeof text === "string") texts[name] = text;
  } catch {
    // Nothing was stored that can be read.
  }
  return texts;
}
