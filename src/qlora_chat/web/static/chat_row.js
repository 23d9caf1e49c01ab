// One conversation in the list: a button that opens it, and a menu. Title and tags are edited in place.

import { addOptions, copy, h } from "./dom.js";
import { t } from "./language.js";

export class ChatRow {
  constructor(chat, list) {
    this.chat = chat;
    this.list = list;
    this.drawn = JSON.stringify(chat);
    this.draw();
  }

  // -> this row if it shows just that, so that nothing is drawn twice
  same(chat) {
    return JSON.stringify(chat) === this.drawn ? this : null;
  }

  get title() {
    return this.chat.title || t("Untitled");
  }

  draw() {
    const { id, tags, excerpt, marks, title_marks } = this.chat;
    const { root, button, title, menuButton } = copy("chat-row");
    root.dataset.chat = id;
    title.append(...marked(this.title, title_marks));
    if (excerpt) button.append(h("span", { class: "chat-excerpt", dir: "auto" }, ...marked(excerpt, marks)));
    if (tags.length) button.append(h("span", { class: "chat-tags" }, ...tags.map((each) => h("span", {}, `#${each}`))));
    button.title = this.title;
    button.onclick = () => this.list.open(this.chat);
    menuButton.ariaLabel = menuButton.title = t("Menu of {title}", { title: this.title });
    menuButton.onclick = () => (this.menu ? this.closeMenu() : this.openMenu());
    Object.assign(this, { button, menuButton });
    this.element?.replaceWith(root);
    this.element = root;
    this.setOpen(this.isOpen);
    this.setTabStop(this.isTabStop);
  }

  setOpen(open) {
    this.isOpen = open;
    this.element.classList.toggle("current", Boolean(open));
    this.button.ariaCurrent = open ? "true" : null;
  }

  setTabStop(stop) {
    this.isTabStop = stop;
    this.button.tabIndex = this.menuButton.tabIndex = stop ? 0 : -1;
  }

  focus() {
    this.button.focus();
  }

  // --- the menu

  openMenu() {
    const { root, formats, ...items } = copy("chat-menu");
    const { list, chat } = this;
    const acts = { pin: () => list.pin(chat), rename: () => this.rename(), tags: () => this.editTags(), remove: () => list.remove(chat) };
    for (const [name, act] of Object.entries(acts)) items[name].onclick = () => (this.closeMenu(), act());
    if (chat.pinned) items.pin.textContent = t("Unpin");
    addOptions(formats, list.formats);
    formats.onchange = () => (list.exportChats([chat.id], formats), this.closeMenu());
    root.ariaLabel = t("What to do with {title}", { title: this.title });
    root.onkeydown = (event) => this.menuKey(event);
    this.menu = root;
    this.element.append(root);
    this.menuButton.ariaExpanded = "true";
    items.pin.focus();
    root.scrollIntoView({ block: "nearest" });
    this.outside = ({ target }) => this.element.contains(target) || this.closeMenu(false);
    document.addEventListener("pointerdown", this.outside);
  }

  closeMenu(focus = true) {
    document.removeEventListener("pointerdown", this.outside);
    this.menu?.remove();
    this.menu = null;
    this.menuButton.ariaExpanded = "false";
    if (focus) this.menuButton.focus();
  }

  menuKey(event) {
    const items = [...this.menu.children];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") {
      event.stopPropagation();
      this.closeMenu();
    } else if (step && event.target.tagName === "BUTTON") items[(items.indexOf(event.target) + step + items.length) % items.length].focus();
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

  edit(text, label, maxLength, done) {
    const { root: form, field } = copy("chat-edit");
    Object.assign(field, { ariaLabel: label, placeholder: label, maxLength, value: text });
    let ended = false;
    const end = (save) => {
      if (ended) return;
      ended = true;
      this.draw();
      this.focus();
      if (save) done(field.value.trim());
    };
    form.onsubmit = (event) => (event.preventDefault(), end(true));
    field.addEventListener("keydown", (event) => event.key === "Escape" && (event.stopPropagation(), end(false)));
    field.onblur = () => end(true);
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
