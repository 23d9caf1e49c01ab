// What a first visitor sees in an empty conversation: the model, how it was made, and questions to begin with.

import { h } from "./dom.js";
import { t } from "./language.js";

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
    h("dl", {}, ...facts.flatMap(([label, value]) => [h("dt", {}, t(label)), h("dd", { dir: "auto" }, t(value))])),
    ...made.map((each) => h("p", {}, t(each))),
    h("h3", {}, t("Begin with one of these")),
    h("div", { class: "examples" }, ...questions.map((each) => h("button", { type: "button", onclick: () => ask(each) }, each))));
}
