// The tokens of an answer, each with its probability and what could have stood there; a click on that branches the answer.

import { h, iconButton } from "./dom.js";
import { number, t } from "./language.js";

const LEVELS = [[0.8, "sure"], [0.5, "likely"], [0.2, "open"], [0, "unlikely"]];

export function mount(element, trigger, props, watch) {
  const view = new TokenView(trigger);
  element.replaceChildren(view.dialog);
  watch("value", () => view.show(props.value ?? {}));
}

const rounded = (p) => number(p, { style: "percent" });
const percent = (p) => (p === null || p < 0.01 ? t("under {share}", { share: rounded(0.01) }) : p >= 0.995 ? t("over {share}", { share: rounded(0.99) }) : rounded(p));
const shown = (text) => (text === "" ? t("(end)") : text.replaceAll("\n", "⏎").replaceAll(" ", "␣"));

class TokenView {
  constructor(trigger) {
    this.trigger = trigger;
    this.status = h("p", { class: "advice", role: "status" });
    this.text = h("div", { class: "tokens", role: "group", "aria-label": t("Tokens of the answer") });
    this.choice = h("div", { class: "alternatives", "aria-live": "polite" });
    this.dialog = h("dialog", { class: "token-view", "aria-label": t("Token probabilities") },
      iconButton("close", t("Close token probabilities"), () => this.dialog.close(), { class: "icon-button close" }),
      h("h2", {}, t("Token probabilities")), this.status, this.text, this.choice);
    this.text.addEventListener("keydown", (event) => this.move(event));
    this.text.addEventListener("focusin", ({ target }) => target.token && this.select(target));
    document.addEventListener("tokens", ({ detail }) => this.open(detail));
  }

  open(id) {
    this.id = id;
    this.text.replaceChildren();
    this.choice.replaceChildren();
    this.status.textContent = t("Computing the probabilities of each token…");
    if (!this.dialog.open) this.dialog.showModal();
    this.trigger("input", { id });
  }

  show({ id, tokens, problem, done, total, cut }) {
    if (id !== this.id || !this.dialog.open) return;
    if (problem) this.status.textContent = t(problem);
    else if (!tokens) this.status.textContent = t("Computing: {done} of {total} tokens", { done, total });
    else this.draw(tokens, cut);
  }

  draw(tokens, cut) {
    const unlikely = tokens.filter(({ p }) => p === null || p < 0.2).length;
    this.status.textContent = t(cut ? "The first {count} tokens, {unlikely} of them below {share}. Choose one to see what could have stood there." : "{count} tokens, {unlikely} of them below {share}. Choose one to see what could have stood there.", { count: tokens.length, unlikely, share: rounded(0.2) });
    this.text.replaceChildren(...tokens.flatMap((token, at) => {
      const level = LEVELS.find(([least]) => (token.p ?? 0) >= least)[1];
      const button = h("button", { type: "button", class: "token", "data-level": level, tabindex: at ? "-1" : "0", title: percent(token.p), "aria-label": `${shown(token.text)}, ${percent(token.p)}`, onclick: (event) => event.currentTarget.focus() }, token.text.replaceAll("\n", "⏎") || "·");
      Object.assign(button, { token, at });
      return token.text.includes("\n") ? [button, h("br")] : [button];
    }));
    this.text.firstElementChild?.focus();
  }

  move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const buttons = [...this.text.querySelectorAll("button")];
    const next = step && buttons[buttons.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  }

  select(button) {
    for (const each of this.text.querySelectorAll("[tabindex='0']")) each.tabIndex = -1;
    button.tabIndex = 0;
    const { token, at } = button;
    const options = token.instead.map(([id, text, p]) => {
      const usable = text && !text.includes("\ufffd");
      return h("button", { type: "button", class: "alternative", disabled: !usable, onclick: () => this.branch(at, id) }, h("code", {}, shown(text)), ` ${percent(p)}`);
    });
    this.choice.replaceChildren(
      h("p", {}, h("code", {}, shown(token.text)), t(" had {share}. Go on from another token instead:", { share: percent(token.p) })),
      h("div", { class: "row" }, ...options));
  }

  branch(at, token) {
    this.dialog.close();
    this.trigger("select", { id: this.id, at, token });
  }
}
