// The sampling settings: presets, one control for each setting with a sentence on when to move it, a seed, and stop texts.
// What cannot be used is said next to the field, and the last good value stays in use.

import { copy, h } from "./dom.js";
import { t } from "./language.js";
import { read, write } from "./memory.js";

const STORED = "qlora-chat.sampling";
const SEND_MS = 80; // a dragged slider sends no more often
const BY_POSITION = ["temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens"]; // before values had names

export function mount(element, trigger, props) {
  const panel = new Panel(trigger, props);
  element.replaceChildren(panel.root);
  const stored = read(STORED);
  panel.restore(Array.isArray(stored) ? Object.fromEntries(BY_POSITION.map((name, index) => [name, stored[index]])) : stored);
}

class Panel {
  constructor(trigger, props) {
    this.trigger = trigger;
    this.props = props;
    this.used = {}; // the last good value of each field
    const { controls, presets, stops } = props.description;
    const kinds = controls.map((each) => (each.step ? numberKind(each) : seedKind(each)));
    const { root, presets: row, purpose } = copy("sampling");
    this.fields = [...kinds, stopKind(stops)].map((each) => new Field(each, this));
    this.presets = presets;
    this.choices = presets.map((each) => h("button", { class: "preset", onclick: () => this.choose(each) }, t(each.label)));
    row.append(...this.choices);
    root.append(...this.fields.map((each) => each.root));
    Object.assign(this, { root, purpose });
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
    write(STORED, this.used);
    clearTimeout(this.sending);
    this.sending = setTimeout(() => this.trigger("input"), SEND_MS); // for the answer that is being written
  }

  // Hands the settings to whatever event comes next.
  publish() {
    this.props.value = JSON.stringify(this.used);
    const same = ({ values }) => Object.entries(values).every(([name, value]) => this.used[name] === value);
    const preset = this.presets.find(same);
    this.choices.forEach((each, index) => (each.ariaPressed = String(this.presets[index] === preset)));
    this.purpose.textContent = t(preset?.purpose ?? "Settings of your own.");
  }
}

// One setting: a label, its inputs, a sentence, and a place for what is wrong with a value.
class Field {
  constructor(kind, panel) {
    const { name, input, range } = kind;
    const { root, line, label, advice, problem } = copy("setting");
    Object.assign(this, { name, kind, panel, root, problem });
    label.textContent = t(kind.label);
    advice.textContent = t(kind.advice);
    label.htmlFor = input.id = name;
    advice.id = `${name}-advice`;
    problem.id = `${name}-problem`;
    input.setAttribute("aria-describedby", `${advice.id} ${problem.id}`);
    input.oninput = () => this.typed(input.value);
    input.onchange = () => problem.textContent && this.write(panel.used[name]);
    line.className = range ? "number" : "text";
    line.append(input);
    if (!range) return;
    range.oninput = () => this.typed((input.value = range.value));
    line.after(range);
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
    this.kind.input.ariaInvalid = String(Boolean(text));
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

const stays = (value) => t("{value} stays in use.", { value });

function numberKind(control) {
  const { label, help, minimum, maximum, step, whole } = control;
  const parse = (text) => {
    const trimmed = text.trim();
    const value = trimmed ? Number(trimmed.replace(",", ".")) : NaN;
    if (value >= minimum && value <= maximum && (!whole || Number.isInteger(value))) return { value };
    const range = { text: trimmed.slice(0, 20), minimum, maximum };
    const expected = whole ? t("Enter a whole number from {minimum} to {maximum}.", range) : t("Enter a number from {minimum} to {maximum}.", range);
    return { problem: `${trimmed ? t("“{text}” cannot be used.", range) : t("This is empty.")} ${expected}` };
  };
  const { root: input } = copy("number-input");
  const { root: range } = copy("range-input");
  input.inputMode = whole ? "numeric" : "decimal";
  input.title = range.title = t(help);
  Object.assign(range, { min: minimum, max: maximum, step, ariaLabel: t("{setting}, slider", { setting: t(label) }) });
  return { ...control, parse, input, range, text: String, inUse: stays };
}

// A seed is read as text: numbers of JavaScript cannot hold all of them.
function seedKind(control) {
  const { maximum } = control;
  const parse = (text) => {
    const digits = text.trim();
    if (!digits) return { value: null };
    if (/^\d{1,19}$/.test(digits) && BigInt(digits) <= BigInt(maximum)) return { value: digits };
    return { problem: t("“{text}” is no seed: enter a whole number from 0 to {maximum}, or nothing.", { text: digits.slice(0, 20), maximum }) };
  };
  return {
    ...control, parse, initial: null, input: copy("seed-input").root,
    text: (value) => String(value ?? ""),
    inUse: (value) => (value === null ? t("A seed is drawn for each answer.") : stays(value)),
  };
}

function stopKind(control) {
  const { most, longest } = control;
  const parse = (text) => {
    const value = text.split("\n").filter(Boolean).map((each) => each.replaceAll("\\n", "\n"));
    if (value.length > most) return { problem: t("These are {count} texts, and at most {most} can be used.", { count: value.length, most }) };
    if (value.some((each) => each.length > longest)) return { problem: t("A text can have at most {longest} characters.", { longest }) };
    return { value };
  };
  return {
    ...control, parse, initial: [], input: copy("stops-input").root,
    text: (value) => (Array.isArray(value) ? value : []).map((each) => String(each).replaceAll("\n", "\\n")).join("\n"),
    inUse: (value) => (value.length ? t("The texts before stay in use.") : t("None stays in use.")),
  };
}
