// The tokens of an answer, each with its probability and what could have stood there; a click on that branches the answer.

import { copy, fragment, walk } from "./dom.js";

export function mount(element, trigger, props, watch) {
  const view = new TokenView(element, trigger);
  watch("value", () => view.show(props.value ?? {}));
  document.addEventListener("click", ({ target }) => target.matches("[data-action=tokens]") && view.open(target.closest("article").dataset.id));
}

class TokenView {
  constructor(element, trigger) {
    Object.assign(this, { element, trigger });
  }

  get buttons() {
    return [...this.text.querySelectorAll("button")];
  }

  open(id) {
    Object.assign(this, copy("token-view"), { id });
    this.text.onkeydown = (event) => walk(event, this.buttons, event.target);
    this.text.onclick = ({ target }) => target.closest("button")?.focus(); // Safari focuses no button by itself
    this.text.addEventListener("focusin", ({ target }) => this.select(target));
    this.root.onclose = () => {
      const token = this.root.returnValue; // of the alternative that was chosen
      if (token) this.trigger("select", { id, at: this.at, token: Number(token) });
    };
    this.element.replaceChildren(this.root);
    this.root.showModal();
    this.trigger("input", { id });
  }

  show({ id, status, tokens, choices }) {
    if (id !== this.id || !this.root?.open) return;
    this.status.replaceChildren(fragment(status));
    if (!tokens) return;
    this.choices = choices;
    this.text.replaceChildren(fragment(tokens));
    this.buttons[0]?.focus();
  }

  select(button) {
    for (const each of this.buttons) each.tabIndex = each === button ? 0 : -1;
    this.at = this.buttons.indexOf(button);
    this.choice.replaceChildren(fragment(this.choices[this.at]));
  }
}
