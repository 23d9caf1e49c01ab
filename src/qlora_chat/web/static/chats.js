// The list of conversations: pages of it are fetched as it scrolls, searches come with their matches, and every change is one
// request. The server's value says which conversation the tab shows, and changes after each turn.

import { change, page, save, startSaving, upload } from "./chats_requests.js";
import { ChatRow } from "./chat_row.js";
import { addOptions, copy, h, iconButton } from "./dom.js";
import { date, t } from "./language.js";

const FORMATS = [["markdown", "Markdown"], ["json", "JSON"], ["jsonl", t("JSON lines")], ["guanaco", t("Guanaco text")]];
const TYPING_MS = 200;
const UNDO_S = 10;
const MARGIN = 600; // pixels below the window that are filled before they are scrolled to
const DAY = 86_400_000;

export function mount(element, trigger, props, watch) {
  const list = new ChatList(element, trigger);
  const update = () => list.update(props.value ?? {});
  watch("value", update);
  update();
}

class ChatList {
  constructor(element, trigger) {
    this.trigger = trigger;
    this.formats = FORMATS;
    this.value = {};
    this.rows = new Map(); // by id, as they are drawn
    this.next = null; // id that the next page comes after
    this.limit = 0; // of a search
    this.fetched = 0; // number of the newest request
    this.build(element);
    this.tabs = new BroadcastChannel("qlora-chat.conversations"); // the other tabs of this browser
    this.tabs.onmessage = () => this.refresh();
    addEventListener("popstate", () => this.openAddress());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.refresh());
    document.addEventListener("keydown", (event) => {
      if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey) || event.shiftKey || event.altKey) return;
      event.preventDefault();
      document.querySelector("#chats:not(.open)") && document.querySelector('[aria-controls="chats"]').click();
      this.search.focus();
    });
  }

  build(element) {
    const { root, open, all, ...parts } = copy("chat-column");
    Object.assign(this, parts);
    element.replaceChildren(...root.children);
    addOptions(all, FORMATS);
    all.onchange = () => this.exportChats([], all);
    open.onclick = () => this.file.click();
    this.file.onchange = () => this.importFiles([...this.file.files]);
    this.search.oninput = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.refresh(), TYPING_MS);
    };
    this.search.onkeydown = (event) => this.searchKey(event);
    this.list.onkeydown = (event) => this.key(event);
    this.scroller.addEventListener("scroll", () => this.fill(), { passive: true });
    new ResizeObserver(() => this.fill()).observe(this.scroller);
    document.querySelector("#not-saved [data-save]")?.addEventListener("click", () => this.startSaving());
    this.acceptDrops(document.getElementById("chats"));
  }

  acceptDrops(column) {
    const mark = (on) => column.classList.toggle("dropping", on);
    const has = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
    column.addEventListener("dragover", (event) => has(event) && (event.preventDefault(), mark(true)));
    column.addEventListener("dragleave", ({ relatedTarget }) => column.contains(relatedTarget) || mark(false));
    column.addEventListener("drop", (event) => {
      mark(false);
      if (!has(event)) return;
      event.preventDefault();
      this.importFiles([...event.dataTransfer.files]);
    });
  }

  // --- which conversation is shown

  update(value) {
    const { open = "", state = "" } = this.value;
    // Until the server has said what the tab shows, the address may name a conversation that is still to be opened.
    if (value.state === undefined) return this.refresh();
    this.value = value;
    if (value.open !== open) this.setAddress(value.open, open);
    this.nameTab();
    this.mark();
    if (value.state === state) return;
    this.refresh();
    this.tabs.postMessage("changed");
  }

  // A person goes back and forth between conversations with the browser's buttons; a reload does not add an entry.
  setAddress(open, before) {
    const address = new URL(location);
    if ((address.searchParams.get("c") ?? "") === (open ?? "")) return;
    if (open) address.searchParams.set("c", open);
    else address.searchParams.delete("c");
    history[before ? "pushState" : "replaceState"](history.state, "", address);
  }

  openAddress() {
    const id = new URL(location).searchParams.get("c");
    if (id === (this.value.open || null)) return;
    if (id) this.open({ id });
    else document.getElementById("new").click();
  }

  nameTab() {
    document.title = this.value.title ? `${this.value.title} · QLoRA Chat` : "QLoRA Chat";
  }

  open({ id, turn }) {
    if (id !== this.value.open) this.trigger("select", { id });
    document.dispatchEvent(new CustomEvent("seek", { detail: turn })); // the message that a search has found
    if (!matchMedia("(min-width: 64rem)").matches) document.querySelector("#chats .close")?.click();
  }

  mark() {
    const row = this.rows.get(this.value.open);
    if (row !== this.marked) this.marked?.setOpen(false);
    row?.setOpen(true);
    this.marked = row;
  }

  // --- the list

  get query() {
    return this.search.value.trim();
  }

  // Draws the first page anew. Rows below it stay, with the change that was made: `edit` takes and returns conversations.
  async refresh(edit = (chats) => chats) {
    const number = ++this.fetched;
    const query = this.query;
    this.limit = 100;
    const found = await this.tried(page(query ? { q: query, limit: this.limit } : {}));
    if (!found || number !== this.fetched) return;
    const focused = document.activeElement?.closest?.("[data-chat]")?.dataset.chat;
    if (this.list.querySelector("form")) return; // a title or tags are being typed
    const tail = query ? [] : this.tail(found, edit);
    const next = tail.length ? this.next && (tail.some(({ id }) => id === this.next) ? this.next : tail.at(-1).id) : found.next;
    this.draw(query ? found.chats : [...found.pinned, ...found.chats, ...tail], Boolean(query));
    this.setMore(query ? found.more && "more" : next);
    if (found.saved) document.getElementById("not-saved")?.remove();
    this.fill();
    if (focused) this.rows.get(focused)?.focus();
    this.note.textContent = found.chats.length ? "" : query ? t("Nothing found.") : t("No conversations yet.");
  }

  // -> conversations that have been scrolled to and are older than those of the first page
  tail({ pinned, chats, next }, edit) {
    if (!next || this.isSearch) return [];
    const first = new Set([...pinned, ...chats].map(({ id }) => id));
    const drawn = edit([...this.rows.values()].map(({ chat }) => chat));
    const older = drawn.filter((each) => !first.has(each.id) && !each.pinned && each.updated <= chats.at(-1).updated);
    return older.sort((one, other) => other.updated - one.updated);
  }

  // -> what was asked for; null, and a message, where it is refused
  async tried(request) {
    try {
      return await request;
    } catch (problem) {
      this.say(problem.message);
      return null;
    }
  }

  draw(chats, isSearch) {
    const before = this.rows;
    this.rows = new Map();
    this.isSearch = isSearch;
    this.group = null;
    const top = this.scroller.scrollTop;
    this.list.replaceChildren();
    this.append(chats, isSearch, before);
    this.scroller.scrollTop = top;
  }

  append(chats, isSearch, before = new Map()) {
    for (const chat of chats) {
      if (this.rows.has(chat.id)) continue;
      const name = isSearch ? null : chat.pinned ? t("Pinned") : groupOf(chat.updated);
      if (name && name !== this.group) this.list.append(h("h3", { class: "chat-group" }, (this.group = name)));
      const row = before.get(chat.id)?.same(chat) ?? new ChatRow(chat, this);
      this.rows.set(chat.id, row);
      this.list.append(row.element);
    }
    this.mark();
    this.setTabStop();
  }

  setMore(next) {
    this.next = next || null;
    this.end.hidden = !next;
  }

  async more() {
    if (!this.next || this.loading) return;
    this.loading = true;
    const number = this.fetched;
    const query = this.query;
    const found = await this.tried(page(query ? { q: query, limit: (this.limit += 200) } : { before: this.next }));
    this.loading = false;
    if (!found || number !== this.fetched) return;
    this.append(found.chats, Boolean(query));
    this.setMore(query ? found.more && "more" : found.next);
    this.fill();
  }

  // Fetches the next page where the end of the list is near the window.
  fill() {
    if (this.next && this.end.getBoundingClientRect().top < this.scroller.getBoundingClientRect().bottom + MARGIN) this.more();
  }

  // --- keys: one tab stop for the whole list

  setTabStop() {
    const stop = this.rows.get(this.value.open) ?? this.rows.values().next().value;
    if (stop !== this.stop) this.stop?.setTabStop(false);
    stop?.setTabStop(true);
    this.stop = stop;
  }

  searchKey(event) {
    if (event.key === "Escape" && this.search.value) {
      event.stopPropagation();
      this.search.value = "";
      this.refresh();
    } else if (event.key === "ArrowDown") {
      event.preventDefault();
      this.list.querySelector(".chat-open")?.focus();
    }
  }

  key(event) {
    if (!event.target.matches(".chat-open")) return;
    const all = [...this.list.querySelectorAll(".chat-open")];
    const at = all.indexOf(event.target);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    const row = this.rows.get(event.target.closest("[data-chat]").dataset.chat);
    if (to !== undefined) {
      event.preventDefault();
      (to < 0 ? this.search : all[Math.min(to, all.length - 1)]).focus();
    } else if (event.key === "F2") row.rename();
    else if (event.key === "Delete") this.remove(row.chat);
  }

  // --- changes

  // -> true if the change was made; `edit` makes it in the rows that are drawn
  async change(action, id, values, edit) {
    const made = await this.tried(change({ action, id, ...values }).then(() => true));
    await this.refresh(made ? edit : undefined);
    this.tabs.postMessage("changed");
    return made;
  }

  set(action, chat, values, changed = values) {
    const edit = (chats) => chats.map((each) => (each.id === chat.id ? { ...each, ...changed } : each));
    return this.change(action, chat.id, values, edit);
  }

  async rename(chat, title) {
    if ((await this.set("rename", chat, { title })) && chat.id === this.value.open) {
      this.value = { ...this.value, title };
      this.nameTab();
    }
  }

  tag(chat, tags, pinned = chat.pinned) {
    return this.set("tag", chat, { tags: pinned ? ["pinned", ...tags] : tags }, { tags, pinned });
  }

  pin(chat) {
    return this.tag(chat, chat.tags, !chat.pinned);
  }

  async remove(chat) {
    const wasOpen = chat.id === this.value.open;
    const ids = [...this.rows.keys()];
    const at = ids.indexOf(chat.id);
    if (!(await this.change("delete", chat.id, {}, (chats) => chats.filter(({ id }) => id !== chat.id)))) return;
    if (wasOpen) document.getElementById("new").click();
    this.rows.get(ids[at + 1] ?? ids[at - 1])?.focus();
    const undo = h("button", { onclick: () => this.undo(chat, wasOpen) }, t("Undo"));
    this.say(t("Deleted “{title}”.", { title: chat.title || t("Untitled") }), UNDO_S, undo);
  }

  async undo(chat, wasOpen) {
    this.toast.hidden = true;
    if ((await this.change("undo", chat.id, {}, (chats) => [...chats, chat])) && wasOpen) this.open(chat);
    this.rows.get(chat.id)?.focus();
  }

  say(text, seconds = 8, ...actions) {
    clearTimeout(this.toastTimer);
    const hide = () => (this.toast.hidden = true);
    this.toast.replaceChildren(h("span", {}, text), ...actions, iconButton("close", t("Dismiss"), hide));
    this.toast.hidden = false;
    this.toastTimer = setTimeout(hide, seconds * 1000);
  }

  async startSaving() {
    const saved = await this.tried(startSaving());
    if (saved) this.say(t(saved.count ? "Saved in {file} from now on. Conversations saved already: {count}." : "Saved in {file} from now on.", saved), 20);
    this.refresh();
  }

  // --- files

  exportChats(ids, select) {
    const format = select.value;
    select.value = "";
    if (format) this.tried(save(ids, format));
  }

  async importFiles(files) {
    this.file.value = "";
    const said = [];
    for (const file of files) {
      this.say(t("Importing {name}…", { name: file.name }), 600);
      said.push(`${file.name}: ${await upload(file).catch(({ message }) => message)}`);
    }
    await this.refresh();
    if (said.length) this.say(said.join("\n"), 60);
  }
}

// -> the name of the group that a time belongs to, by the browser's own days
function groupOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return t("Today");
  if (time >= midnight - DAY) return t("Yesterday");
  if (time >= midnight - 7 * DAY) return t("Previous 7 days");
  return date(time, { month: "long", year: "numeric" });
}
