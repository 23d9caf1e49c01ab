// The sampling settings: presets, one control for each setting with a sentence on when to move it, a seed, and stop texts.
// What cannot be used is said next to the field, and the last good value stays in use.

import { h } from "./dom.js";
import { t } from "./language.js";

const STORED = "qlora-chat.sampling";
const SEND_MS = 80; // a dragged slider sends no more often
const BY_POSITION = ["temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens"]; // before values had names

export function mount(element, trigger, props) {
  const panel = new Panel(trigger, props);
  element.replaceChildren(panel.root);
  panel.restore(read());
}

class Panel {
  constructor(trigger, props) {
    this.trigger = trigger;
    this.props = props;
    this.used = {}; // the last good value of each field
    const { controls, presets, stops } = props.description;
    const kinds = controls.map((each) => (each.step ? numberKind(each) : seedKind(each)));
    this.fields = [...kinds, stopKind(stops)].map((each) => new Field(each, this));
    this.presets = presets;
    this.choices = presets.map((each) =>
      h("button", { type: "button", class: "preset", "aria-pressed": "false", onclick: () => this.choose(each) }, t(each.label)));
    this.purpose = h("p", { class: "advice" });
    this.root = h("div", { class: "sampling" },
      h("div", { class: "presets", role: "group", "aria-label": t("Presets") }, ...this.choices),
      this.purpose,
      ...this.fields.map((each) => each.root));
  }

  // Shows what this browser used last, as far as it is good.
  restore(stored) {
    for (const each of this.fields) each.restore(stored?.[each.name]);
    this.publish();
  }

  choose(preset) {
    for (const each of this.fields) if (each.name in preset.values) each.show(preset.values[each.name]);
    this.changed();
  }

  changed() {
    this.publish();
    write(this.used);
    clearTimeout(this.sending);
    this.sending = setTimeout(() => this.trigger("input"), SEND_MS); // for the answer that is being written
  }

  // Hands the settings to whatever event comes next.
  publish() {
    this.props.value = JSON.stringify(this.used);
    const same = ({ values }) => Object.entries(values).every(([name, value]) => this.used[name] === value);
    const preset = this.presets.find(same);
    this.choices.forEach((each, index) => each.setAttribute("aria-pressed", String(this.presets[index] === preset)));
    this.purpose.textContent = preset ? t(preset.purpose) : t("Settings of your own.");
  }
}

// One setting: a label, its inputs, a sentence, and a place for what is wrong with a value.
class Field {
  constructor(kind, panel) {
    const { name, label, advice, input, range } = kind;
    Object.assign(this, { name, kind, panel });
    this.problem = h("p", { class: "form-problem", role: "alert", id: `${name}-problem` });
    input.id = name;
    input.setAttribute("aria-describedby", `${name}-advice ${name}-problem`);
    input.addEventListener("input", () => this.typed(input.value));
    input.addEventListener("change", () => this.problem.textContent && this.write(panel.used[name]));
    range?.addEventListener("input", () => {
      input.value = range.value;
      this.typed(range.value);
    });
    this.root = h("div", { class: "setting" },
      h("div", { class: range ? "number" : "text" }, h("label", { for: name }, t(label)), input),
      ...(range ? [range] : []),
      h("p", { class: "advice", id: `${name}-advice` }, t(advice)),
      this.problem);
  }

  typed(text) {
    const { value, problem } = this.kind.parse(text);
    this.say(problem ? `${problem} ${this.kind.inUse(this.panel.used[this.name])}` : "");
    if (problem) return;
    this.panel.used[this.name] = value;
    if (this.kind.range) this.kind.range.value = value;
    this.panel.changed();
  }

  say(text) {
    this.problem.textContent = text;
    this.kind.input.setAttribute("aria-invalid", String(Boolean(text)));
  }

  show(value) {
    this.say("");
    this.panel.used[this.name] = value;
    this.write(value);
  }

  restore(stored) {
    const { value, problem } = stored === undefined ? { problem: true } : this.kind.parse(this.kind.text(stored));
    this.show(problem ? this.kind.initial : value);
  }

  // Shows what is in use; a sentence on a refused value stays until the next change.
  write(value) {
    this.kind.input.value = this.kind.text(value);
    if (this.kind.range) this.kind.range.value = value;
  }
}

function numberKind(control) {
  const { name, label, advice, help, minimum, maximum, step, whole, initial } = control;
  const parse = (text) => {
    const value = text.trim() === "" ? NaN : Number(text.trim().replace(",", "."));
    const good = value >= minimum && value <= maximum && (!whole || Number.isInteger(value));
    const values = { text: text.trim().slice(0, 20), minimum, maximum };
    if (good) return { value };
    if (!values.text) return { problem: t(whole ? "This is empty: enter a whole number from {minimum} to {maximum}." : "This is empty: enter a number from {minimum} to {maximum}.", values) };
    return { problem: t(whole ? "“{text}” cannot be used: enter a whole number from {minimum} to {maximum}." : "“{text}” cannot be used: enter a number from {minimum} to {maximum}.", values) };
  };
  return {
    name, label, advice, initial, parse,
    input: h("input", { type: "text", inputmode: whole ? "numeric" : "decimal", autocomplete: "off", title: t(help) }),
    range: h("input", { type: "range", min: minimum, max: maximum, step, "aria-label": t("{setting}, slider", { setting: t(label) }), title: t(help) }),
    text: (value) => String(value),
    inUse: (value) => t("{value} stays in use.", { value }),
  };
}

// A seed is read as text: numbers of JavaScript cannot hold all of them.
function seedKind({ name, label, advice, maximum }) {
  const parse = (text) => {
    const digits = text.trim();
    if (!digits) return { value: null };
    const good = /^\d{1,19}$/.test(digits) && BigInt(digits) <= BigInt(maximum);
    return good ? { value: digits } : { problem: t("“{text}” is no seed: enter a whole number from 0 to {maximum}, or nothing.", { text: digits.slice(0, 20), maximum }) };
  };
  return {
    name, label, advice, parse, initial: null,
    input: h("input", { type: "text", inputmode: "numeric", autocomplete: "off", placeholder: t("drawn for each answer") }),
    text: (value) => String(value ?? ""),
    inUse: (value) => (value === null ? t("A seed is drawn for each answer.") : t("{value} stays in use.", { value })),
  };
}

function stopKind({ name, label, advice, most, longest }) {
  const written = (text) => text.replaceAll("\\n", "\n");
  const parse = (text) => {
    const value = text.split("\n").filter(Boolean).map(written);
    if (value.length > most) return { problem: t("These are {count} texts, and at most {most} can be used.", { count: value.length, most }) };
    if (value.some((each) => each.length > longest)) return { problem: t("A text can have at most {longest} characters.", { longest }) };
    return { value };
  };
  return {
    name, label, advice, parse, initial: [],
    input: h("textarea", { rows: 2, spellcheck: "false", placeholder: t("none") }),
    text: (value) => (Array.isArray(value) ? value : []).map((each) => String(each).replaceAll("\n", "\\n")).join("\n"),
    inUse: (value) => (value.length ? t("The texts before stay in use.") : t("None stays in use.")),
  };
}

function read() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORED));
    return Array.isArray(stored) ? Object.fromEntries(BY_POSITION.map((name, index) => [name, stored[index]])) : stored;
  } catch {
    return null;
  }
}

function write(value) {
  try {
    localStorage.setItem(STORED, JSON.stringify(value));
  } catch {
    // Storage is full or forbidden: the page works, and forgets.
  }
}
