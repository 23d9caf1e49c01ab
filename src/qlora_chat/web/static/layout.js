// The frame of the page: drawers left and right, one button that sends or stops, Esc, and where the focus goes.

import { h, icon, iconButton, present } from "./dom.js";
import { t } from "./language.js";

const WIDE = matchMedia("(min-width: 64rem)"); // both drawers fit beside the chat
const SIDES = {
  chats: ["menu", t("Conversations"), t("Close conversations")],
  settings: ["settings", t("Settings"), t("Close settings")],
  model: ["", t("Model"), t("Close model")],
};
const AT_THE_END = ["settings", "model"]; // one of them at a time

let drawers = [];

export async function mount(element) {
  await present("shell", "new", "open-compare", "send", "stop", "open-model", ...Object.keys(SIDES));
  drawers = Object.entries(SIDES).map(([id, described]) => new Drawer(id, ...described));
  element.replaceChildren(drawers[0].button);
  document.getElementById("new").after(drawers[1].button);
  const shade = h("div", { id: "shade", onclick: () => drawers.forEach((each) => each.cover() && each.set(false)) });
  document.getElementById("shell").append(shade);
  document.addEventListener("keydown", pressed);
  keepFocus();
  label("new", "plus");
  label("open-compare", "compare");
}

function pressed(event) {
  if (event.key === "O" && event.ctrlKey && event.shiftKey) document.getElementById("new").click();
  else if (event.key !== "Escape") return;
  else if (drawers.some((each) => each.cover())) drawers.forEach((each) => each.cover() && each.set(false));
  else if (document.body.classList.contains("answering")) document.getElementById("stop").click();
  else return;
  event.preventDefault();
}

// A column that is open or closed. On a narrow window it covers the chat, and closes when it has been left.
class Drawer {
  constructor(id, picture, name, close) {
    this.column = document.getElementById(id);
    this.button = document.getElementById(`open-${id}`) ?? iconButton(picture, name, () => {}, { class: "icon-button drawer-button" });
    this.button.setAttribute("aria-controls", id);
    this.button.addEventListener("click", () => this.set(!this.open));
    this.column.setAttribute("role", "region");
    this.column.setAttribute("aria-label", name);
    this.column.prepend(iconButton("close", close, () => this.set(false), { class: "icon-button close" }));
    this.set(id === "chats" && WIDE.matches, false);
  }

  cover() {
    return this.open && !WIDE.matches;
  }

  set(open, focus = true) {
    this.open = open;
    this.column.classList.toggle("open", open);
    this.column.inert = !open;
    this.button.setAttribute("aria-expanded", String(open));
    document.body.classList.toggle(`with-${this.column.id}`, open);
    if (open && AT_THE_END.includes(this.column.id)) drawers.forEach((each) => each !== this && AT_THE_END.includes(each.column.id) && each.set(false, false));
    if (!focus) return;
    if (open) this.column.querySelector(".close").focus();
    else this.button.focus();
  }
}

// Send and Stop are in one place, and only one of them is visible: the focus goes from the one to the other.
function keepFocus() {
  const send = document.getElementById("send");
  const stop = document.getElementById("stop");
  let focused = null;
  document.addEventListener("focusin", ({ target }) => (focused = target));
  new MutationObserver(() => {
    const answering = document.body.classList.contains("answering");
    if (focused === (answering ? send : stop)) (answering ? stop : document.querySelector("#box textarea")).focus();
  }).observe(document.body, { attributeFilter: ["class"] });
}

function label(id, picture) {
  const button = document.getElementById(id);
  button.ariaLabel = button.title = button.textContent.trim();
  button.prepend(icon(picture));
}
