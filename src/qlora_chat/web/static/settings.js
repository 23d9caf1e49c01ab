// The sampling settings, which the server draws. A field says what cannot be used, and its last good value stays. Values are texts.

import { t } from "./language.js";
import { read, write } from "./memory.js";

const STORED = "qlora-chat.sampling";
const SEND_MS = 80; // a dragged slider sends no more often

export function mount(element, trigger, props) {
  element.innerHTML = props.form;
  const purpose = element.querySelector(".purpose");
  const presets = [...element.querySelectorAll(".preset")];
  const fields = [...element.querySelectorAll(".setting")].map((each) => new Field(each, () => changed()));
  let sending;

  // Hands the settings to whatever event comes next.
  const publish = () => {
    const used = Object.fromEntries(fields.map((each) => [each.input.id, each.used]));
    props.value = JSON.stringify(used);
    const preset = presets.find((each) => valuesOf(each).every(([name, value]) => used[name] === value));
    for (const each of presets) each.ariaPressed = String(each === preset);
    purpose.textContent = preset ? t(preset.dataset.purpose) : t("Settings of your own.");
    return used;
  };
  const changed = () => {
    write(STORED, publish());
    clearTimeout(sending);
    sending = setTimeout(() => trigger("input"), SEND_MS); // for the answer that is being written
  };
  const show = (values) => values.forEach(([name, value]) => fields.find(({ input }) => input.id === name)?.show(value));

  for (const each of presets) each.onclick = () => (show(valuesOf(each)), changed());
  show(Object.entries(read(STORED) ?? {}));
  publish();
}

const valuesOf = (preset) => Object.entries(JSON.parse(preset.dataset.values));

// One setting: its input, for some a slider, and what is wrong with a text.
class Field {
  constructor(root, changed) {
    const [input, slider] = root.querySelectorAll("input, textarea");
    Object.assign(this, { input, slider, used: input.value, problem: root.querySelector(".form-problem") });
    input.oninput = () => this.take(input.value) && changed();
    input.onchange = () => this.problem.textContent && (input.value = this.used); // what was refused is still said
    if (slider) slider.oninput = () => ((input.value = slider.value), input.oninput());
  }

  // Uses a text from now on, or says why not. -> whether it is used
  take(text) {
    const value = usable(text, this.input.dataset);
    const isRefused = value === null;
    this.problem.textContent = isRefused ? this.refusal(text.trim()) : "";
    this.input.ariaInvalid = String(isRefused);
    if (isRefused) return false;
    this.used = value;
    if (this.slider) this.slider.value = value;
    return true;
  }

  refusal(text) {
    const { expected, stays, emptyStays } = this.input.dataset;
    const wrong = text ? t("“{text}” cannot be used.", { text: text.slice(0, 20) }) : t("This is empty.");
    return [wrong, t(expected), t(this.used ? stays : emptyStays, { value: t(this.used) })].join(" ");
  }

  // Takes a value of a preset, or of this browser's storage if it can be used.
  show(value) {
    const text = String(value ?? "");
    if (usable(text, this.input.dataset) !== null) this.take(text);
    this.input.value = this.used;
  }
}

const exact = (digits) => (/^\d+$/.test(digits) ? BigInt(digits) : Number(digits)); // a Number cannot hold every seed

// -> a text as it is used; null if it cannot be
function usable(text, { pattern, minimum, maximum }) {
  if (!new RegExp(`^(${pattern})$`, "u").test(text)) return null;
  const digits = text.trim().replace(",", ".");
  if (!maximum) return text;
  if (!digits) return "";
  return exact(digits) >= exact(minimum) && exact(digits) <= exact(maximum) ? String(exact(digits)) : null;
}
