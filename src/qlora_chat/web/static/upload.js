// A file of dialogues, chosen or dropped: it goes to the server, and its path there into the box beside.

import { h } from "./dom.js";
import { t } from "./language.js";

export function mount(element) {
  const input = h("input", { type: "file", hidden: true, onchange: () => send(input.files[0], note) });
  const note = h("p", { class: "note", role: "status" }, t("or drop it here: JSON lines, JSON, CSV or Parquet"));
  const choose = h("button", { type: "button", onclick: () => input.click() }, t("Choose a file of dialogues"));
  element.replaceChildren(choose, input, note);
  element.addEventListener("dragover", (event) => (event.preventDefault(), element.classList.add("dropping")));
  element.addEventListener("dragleave", () => element.classList.remove("dropping"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    element.classList.remove("dropping");
    send(event.dataTransfer.files[0], note);
  });
}

async function send(file, note) {
  if (!file) return;
  note.textContent = t("It is being sent.");
  const { path, problem } = await sent(file);
  note.textContent = problem ? t(problem) : file.name;
  const box = document.querySelector("#train-data :is(input, textarea)");
  if (!path) return;
  box.value = path;
  box.dispatchEvent(new Event("input", { bubbles: true }));
}

// -> {path} on the server, or {problem}
async function sent(file) {
  try {
    const address = new URL(`page/train/data?name=${encodeURIComponent(file.name.slice(-200))}`, document.baseURI);
    const text = await (await fetch(address, { method: "POST", body: file })).text();
    return text.startsWith("{") ? JSON.parse(text) : { problem: text };
  } catch {
    return { problem: t("The server cannot be reached.") };
  }
}
