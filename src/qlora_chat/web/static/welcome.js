// What a first visitor sees in an empty conversation: the model, how it was made, and questions to begin with.

import { h, type } from "./dom.js";
import { t } from "./language.js";

export function mount(element, trigger, props, watch) {
  const show = () => draw(element, props.value);
  watch("value", show);
  show();
}

function draw(element, { name, facts, made, questions }) {
  const ask = ({ target }) => {
    type(document.querySelector("#box textarea"), target.textContent);
    setTimeout(() => document.getElementById("send").click()); // once Gradio has taken the text
  };
  element.replaceChildren(
    h("h2", { dir: "auto" }, name),
    h("dl", {}, ...facts.flatMap(([label, value]) => [h("dt", {}, t(label)), h("dd", { dir: "auto" }, t(value))])),
    ...made.map((each) => h("p", {}, t(each))),
    h("h3", {}, t("Begin with one of these")),
    h("div", { class: "examples" }, ...questions.map((each) => h("button", { onclick: ask }, each))));
}
