// One conversation in the list: a button that opens it, and a menu. Title and tags are edited in place.

import { FORMATS } from "./chats_requests.js";
import { h, iconButton } from "./dom.js";
import { t } from "./language.js";

export class ChatRow {
  constructor(chat, list) {
    this.chat = chat;
    this.list = list;
    this.drawn = JSON.stringify(chat);
    this.element = h("div", { class: "chat-row", "data-chat": chat.id });
    this.draw();
  }

  // -> this row if it shows just that, so that nothing is drawn twice
  same(chat) {
    return JSON.stringify(chat) === this.drawn ? this : null;
  }

  draw() {
    const { title, tags, excerpt, marks, title_marks } = this.chat;
    this.button = h("button", { type: "button", class: "chat-open", title: title || t("Untitled"), onclick: () => this.list.open(this.chat.id) },
      h("span", { class: "chat-title", dir: "auto" }, ...marked(title || t("Untitled"), title_marks)),
      ...(excerpt ? [h("span", { class: "chat-excerpt", dir: "auto" }, ...marked(excerpt, marks))] : []),
      ...(tags.length ? [h("span", { class: "chat-tags" }, ...tags.map((each) => h("span", {}, `#${each}`)))] : []));
    this.menuButton = iconButton("info", t("Menu of {title}", { title: title || t("Untitled") }), () => this.toggleMenu(), { class: "icon-button chat-menu-button", "aria-expanded": "false" });
    this.element.replaceChildren(this.button, this.menuButton);
    this.setOpen(this.isOpen);
    this.setTabStop(Boolean(this.isTabStop));
  }

  setOpen(open) {
    this.isOpen = open;
    this.element.classList.toggle("current", Boolean(open));
    if (open) this.button?.setAttribute("aria-current", "true");
    else this.button?.removeAttribute("aria-current");
  }

  setTabStop(stop) {
    this.isTabStop = stop;
    for (const each of [this.button, this.menuButton]) each?.setAttribute("tabindex", stop ? "0" : "-1");
  }

  focus() {
    this.button?.focus();
  }

  // --- the menu

  toggleMenu() {
    if (this.menu) this.closeMenu();
    else this.openMenu();
  }

  openMenu() {
    const item = (name, act) => h("button", { type: "button", onclick: () => (this.closeMenu(), act()) }, name);
    const formats = h("select", { "aria-label": t("Export this conversation"), onchange: () => (this.list.exportChats([this.chat.id], formats), this.closeMenu()) },
      h("option", { value: "" }, t("Export as…")), ...Object.entries(FORMATS).map(([value, name]) => h("option", { value }, t(name))));
    this.menu = h("div", { class: "chat-menu", role: "group", "aria-label": t("What to do with {title}", { title: this.chat.title || t("Untitled") }), onkeydown: (event) => this.menuKey(event) },
      item(this.chat.pinned ? t("Unpin") : t("Pin"), () => this.list.pin(this.chat)),
      item(t("Rename"), () => this.rename()),
      item(t("Tags…"), () => this.editTags()),
      formats,
      item(t("Delete"), () => this.list.remove(this.chat)));
    this.element.append(this.menu);
    this.menuButton.setAttribute("aria-expanded", "true");
    this.menu.firstElementChild.focus();
    this.menu.scrollIntoView({ block: "nearest" });
    this.outside = (event) => this.element.contains(event.target) || this.closeMenu(false);
    document.addEventListener("pointerdown", this.outside);
  }

  closeMenu(focus = true) {
    document.removeEventListener("pointerdown", this.outside);
    this.menu?.remove();
    this.menu = null;
    this.menuButton.setAttribute("aria-expanded", "false");
    if (focus) this.menuButton.focus();
  }

  menuKey(event) {
    const items = [...this.menu.children];
    const at = items.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") {
      event.stopPropagation();
      this.closeMenu();
    } else if (step && document.activeElement.tagName === "BUTTON") items[(at + step + items.length) % items.length].focus();
    else return;
    event.preventDefault();
  }

  // --- editing in place

  rename() {
    this.edit(this.chat.title, t("Title"), 200, (text) => text && text !== this.chat.title && this.list.rename(this.chat, text));
  }

  editTags() {
    const before = this.chat.tags.join(", ");
    this.edit(before, t("Tags, with commas between"), 800, (text) => text !== before && this.list.tag(this.chat, text.split(",")));
  }

  edit(text, label, most, done) {
    const field = h("input", { "aria-label": label, placeholder: label, maxlength: String(most), onkeydown: (event) => keyed(event) });
    const form = h("form", { class: "chat-edit", onsubmit: (event) => (event.preventDefault(), end(true)) }, field);
    let ended = false;
    const end = (save) => {
      if (ended) return;
      ended = true;
      this.draw();
      this.focus();
      if (save) done(field.value.trim());
    };
    const keyed = (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      end(false);
    };
    field.addEventListener("blur", () => end(true));
    field.value = text;
    this.element.replaceChildren(form);
    field.focus();
    field.select();
  }
}

// -> texts, with <mark> around the ranges of code points
function marked(text, ranges = []) {
  const letters = Array.from(text);
  const parts = [];
  let at = 0;
  for (const [begin, end] of ranges) {
    parts.push(letters.slice(at, begin).join(""), h("mark", {}, letters.slice(begin, end).join("")));
    at = end;
  }
  return [...parts, letters.slice(at).join("")];
}
