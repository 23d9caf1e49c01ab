// The tokens of an answer, each with its probability and what could have stood there; a click on that branches the answer.

import { copy, h } from "./dom.js";
import { number, t } from "./language.js";

const LEVELS = [[0.8, "sure"], [0.5, "likely"], [0.2, "open"], [0, "unlikely"]];

export function mount(element, trigger, props, watch) {
  const view = new TokenView(trigger);
  element.replaceChildren(view.root);
  watch("value", () => view.show(props.value ?? {}));
}

const share = (p) => number(p, { style: "percent" });
const shown = (text) => (text === "" ? t("(end)") : text.replaceAll("\n", "⏎").replaceAll(" ", "␣"));

function percent(p) {
  if (p === null || p < 0.01) return t("under {share}", { share: share(0.01) });
  return p >= 0.995 ? t("over {share}", { share: share(0.99) }) : share(p);
}

class TokenView {
  constructor(trigger) {
    this.trigger = trigger;
    Object.assign(this, copy("token-view"));
    this.close.onclick = () => this.root.close();
    this.text.onkeydown = (event) => this.move(event);
    this.text.addEventListener("focusin", ({ target }) => target.token && this.select(target));
    document.addEventListener("tokens", ({ detail }) => this.open(detail));
  }

  open(id) {
    this.id = id;
    this.text.replaceChildren();
    this.choice.replaceChildren();
    this.status.textContent = t("Computing the probabilities of each token…");
    if (!this.root.open) this.root.showModal();
    this.trigger("input", { id });
  }

  show({ id, tokens, problem, done, total, cut }) {
    if (id !== this.id || !this.root.open) return;
    if (problem) this.status.textContent = t(problem);
    else if (!tokens) this.status.textContent = t("Computing: {done} of {total} tokens", { done, total });
    else this.draw(tokens, cut);
  }

  draw(tokens, cut) {
    const counts = { count: tokens.length, unlikely: tokens.filter(({ p }) => p === null || p < 0.2).length, share: share(0.2) };
    const said = cut ? t("The first {count} tokens, {unlikely} of them below {share}.", counts) : t("{count} tokens, {unlikely} of them below {share}.", counts);
    this.status.textContent = `${said} ${t("Choose one to see what could have stood there.")}`;
    this.text.replaceChildren(...tokens.flatMap((token, at) => {
      const level = LEVELS.find(([least]) => (token.p ?? 0) >= least)[1];
      const button = h("button", { class: "token", "data-level": level, tabindex: at ? "-1" : "0", onclick: () => button.focus() }, token.text.replaceAll("\n", "⏎") || "·");
      Object.assign(button, { token, at, title: percent(token.p), ariaLabel: `${shown(token.text)}, ${percent(token.p)}` });
      return token.text.includes("\n") ? [button, h("br")] : [button];
    }));
    this.text.firstElementChild?.focus();
  }

  move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const buttons = [...this.text.querySelectorAll("button")];
    const next = step && buttons[buttons.indexOf(event.target) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  }

  select(button) {
    for (const each of this.text.querySelectorAll("[tabindex='0']")) each.tabIndex = -1;
    button.tabIndex = 0;
    const { token, at } = button;
    const options = token.instead.map(([id, text, p]) => {
      const disabled = !text || text.includes("\ufffd");
      return h("button", { class: "alternative", disabled, onclick: () => this.branch(at, id) }, h("code", {}, shown(text)), ` ${percent(p)}`);
    });
    this.choice.replaceChildren(
      h("p", {}, h("code", {}, shown(token.text)), t(" had {share}. Go on from another token instead:", { share: percent(token.p) })),
      h("div", { class: "row" }, ...options));
  }

  branch(at, token) {
    this.root.close();
    this.trigger("select", { id: this.id, at, token });
  }
}
