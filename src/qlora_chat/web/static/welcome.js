// What a first visitor sees in an empty conversation: the model, how it was made, and questions to begin with.

import { h } from "./dom.js";

export function mount(element, trigger, props, watch) {
  const show = () => draw(element, props.value);
  watch("value", show);
  show();
}

function draw(element, { name, facts, made, questions }) {
  const ask = (question) => {
    const box = document.querySelector("#box textarea");
    box.value = question;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    setTimeout(() => document.getElementById("send").click()); // once Gradio has taken the text
  };
  element.replaceChildren(
    h("h2", { dir: "auto" }, name),
    h("dl", {}, ...facts.flatMap(([label, value]) => [h("dt", {}, label), h("dd", { dir: "auto" }, value)])),
    ...made.map((each) => h("p", {}, each)),
    h("h3", {}, "Begin with one of these"),
    h("div", { class: "examples" }, ...questions.map((each) => h("button", { type: "button", onclick: () => ask(each) }, each))));
}
