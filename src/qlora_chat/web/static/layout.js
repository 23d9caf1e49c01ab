// The frame of the page: drawers left and right, one button that sends or stops, Esc, and where the focus goes.

import { copy, fragment, present } from "./dom.js";

const WIDE = matchMedia("(min-width: 64rem)"); // both drawers fit beside the chat

const byId = (id) => document.getElementById(id);
const isAnswering = () => document.body.classList.contains("answering");
let drawers = [];

export async function mount(element) {
  await present("shell", "new", "open-compare", "send", "stop", "open-model", "chats", "settings", "model");
  const { root, shade, ...parts } = copy("frame");
  drawers = [
    new Drawer("chats", parts.openChats, parts.closeChats),
    new Drawer("settings", parts.openSettings, parts.closeSettings),
    new Drawer("model", byId("open-model"), parts.closeModel),
  ];
  element.replaceChildren(parts.openChats);
  byId("new").after(parts.openSettings);
  byId("shell").append(shade);
  shade.onclick = uncover;
  document.addEventListener("keydown", pressed);
  keepFocus();
  label("new", "plus");
  label("open-compare", "compare");
}

function pressed(event) {
  const { key, ctrlKey, shiftKey } = event;
  if (key === "O" && ctrlKey && shiftKey) byId("new").click();
  else if (key !== "Escape") return;
  else if (!uncover()) {
    if (!isAnswering()) return;
    byId("stop").click();
  }
  event.preventDefault();
}

// Closes what covers the chat. -> whether anything did
function uncover() {
  const covering = drawers.filter((each) => each.open && !WIDE.matches);
  for (const each of covering) each.set(false);
  return covering.length > 0;
}

// A column that is open or closed. On a narrow window it covers the chat, and closes when it has been left.
class Drawer {
  constructor(id, button, close) {
    Object.assign(this, { column: byId(id), button, isLeft: id === "chats" });
    button.setAttribute("aria-controls", id);
    button.addEventListener("click", () => this.set(!this.open));
    close.onclick = () => this.set(false);
    this.column.setAttribute("role", "region");
    this.column.setAttribute("aria-labelledby", `${id}-title`);
    this.column.prepend(close);
    this.set(this.isLeft && WIDE.matches, false);
  }

  set(open, focus = true) {
    const { column, button } = this;
    this.open = open;
    column.classList.toggle("open", open);
    column.inert = !open;
    button.ariaExpanded = String(open);
    document.body.classList.toggle(`with-${column.id}`, open);
    if (open && !this.isLeft) drawers.forEach((each) => each.isLeft || each === this || each.set(false, false)); // one at the right
    if (focus) (open ? column.querySelector(".close") : button).focus();
  }
}

// Send and Stop are in one place, and only one of them is visible: the focus goes from the one to the other.
function keepFocus() {
  let focused = null;
  document.addEventListener("focusin", ({ target }) => (focused = target));
  new MutationObserver(() => {
    const [from, to] = isAnswering() ? ["#send", "#stop"] : ["#stop", "#box textarea"];
    if (focused === document.querySelector(from)) document.querySelector(to).focus();
  }).observe(document.body, { attributeFilter: ["class"] });
}

function label(id, picture) {
  const button = byId(id);
  button.ariaLabel = button.title = button.textContent.trim();
  button.prepend(fragment(`<i data-icon="${picture}"></i>`));
}
