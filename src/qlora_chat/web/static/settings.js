// The sampling settings, which the server draws. What cannot be used is said next to the field, and the last good value stays in
// use.

import { t } from "./language.js";
import { read, write } from "./memory.js";

const STORED = "qlora-chat.sampling";
const SEND_MS = 80; // a dragged slider sends no more often
const BY_POSITION = ["temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens"]; // before values had names

export function mount(element, trigger, props) {
  element.innerHTML = props.form;
  const panel = new Panel(element, trigger, props);
  const stored = read(STORED);
  panel.show(Array.isArray(stored) ? Object.fromEntries(BY_POSITION.map((name, index) => [name, stored[index]])) : stored);
  panel.publish();
}

class Panel {
  constructor(element, trigger, props) {
    const all = (selector) => [...element.querySelectorAll(selector)];
    Object.assign(this, { trigger, props, presets: all(".preset"), purpose: element.querySelector(".purpose") });
    this.fields = all(".setting").map((each) => new Field(each, () => this.changed()));
    for (const each of this.presets) each.onclick = () => (this.show(JSON.parse(each.dataset.values)), this.changed());
  }

  // Values from a preset or from this browser's storage, as far as they are good.
  show(values) {
    for (const field of this.fields) field.show(values?.[field.name]);
  }

  get used() {
    return Object.fromEntries(this.fields.map(({ name, used }) => [name, used]));
  }

  changed() {
    this.publish();
    write(STORED, this.used);
    clearTimeout(this.sending);
    this.sending = setTimeout(() => this.trigger("input"), SEND_MS); // for the answer that is being written
  }

  // Hands the settings to whatever event comes next.
  publish() {
    const { used } = this;
    this.props.value = JSON.stringify(used);
    const same = ({ dataset }) => Object.entries(JSON.parse(dataset.values)).every(([name, value]) => used[name] === value);
    const preset = this.presets.find(same);
    for (const each of this.presets) each.ariaPressed = String(each === preset);
    this.purpose.textContent = preset ? t(preset.dataset.purpose) : t("Settings of your own.");
  }
}

// One setting: its input, in some a slider, and a place for what is wrong with a value. Values are texts.
class Field {
  constructor(root, changed) {
    const [input, slider] = root.querySelectorAll("input, textarea");
    Object.assign(this, { input, slider, name: input.id, used: input.value, problem: root.querySelector(".form-problem") });
    const typed = () => this.take(input.value) && changed();
    input.oninput = typed;
    input.onchange = () => this.problem.textContent && this.write();
    if (slider) slider.oninput = () => ((input.value = slider.value), typed());
  }

  // -> whether a text can be used; from now on it is, or what is wrong with it is said
  take(text) {
    const value = usable(text, this.input.dataset);
    this.say(value === null ? this.refusal(text.trim()) : "");
    if (value === null) return false;
    this.used = value;
    if (this.slider) this.slider.value = value;
    return true;
  }

  refusal(text) {
    const { expected, stays, emptyStays } = this.input.dataset;
    const wrong = text ? t("“{text}” cannot be used.", { text: text.slice(0, 20) }) : t("This is empty.");
    return [wrong, t(expected), t(this.used ? stays : emptyStays, { value: t(this.used) })].join(" ");
  }

  say(text) {
    this.problem.textContent = text;
    this.input.ariaInvalid = String(Boolean(text));
  }

  show(value) {
    const text = Array.isArray(value) ? inLines(value) : String(value ?? "");
    if (value !== undefined && !this.take(text)) this.say("");
    this.write();
  }

  // Shows what is in use; a sentence on a refused value stays until the next change.
  write() {
    this.input.value = this.used;
    if (this.slider) this.slider.value = this.used;
  }
}

// -> stop texts as they are typed; browsers stored a list of them before
const inLines = (texts) => texts.map((each) => String(each).replaceAll("\n", "\\n")).join("\n");

const exact = (digits) => (/^\d+$/.test(digits) ? BigInt(digits) : Number(digits)); // a Number cannot hold every seed

// -> a text as it is used; null if it cannot be
function usable(text, { pattern, minimum, maximum }) {
  if (!new RegExp(`^(${pattern})$`, "u").test(text)) return null;
  const digits = text.trim().replace(",", ".");
  if (!maximum) return text;
  if (!digits) return "";
  return exact(digits) >= exact(minimum) && exact(digits) <= exact(maximum) ? String(exact(digits)) : null;
}
