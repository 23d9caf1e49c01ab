// The list of conversations. The server draws its rows, which are fetched page by page; its value says which conversation the tab
// shows, and has the row after each turn.

import { chatMenu, edited } from "./chat_menu.js";
import { copy, fragment, h, takeDrops, walk } from "./dom.js";
import { date, t } from "./language.js";
import { download, request, sendFile } from "./requests.js";

const TYPING_MS = 200;
const UNDO_S = 10;
const PAGE = 50;
const MARGIN = "600px"; // below the window, filled before it is scrolled to
const DAY = 86_400_000;
const LARGEST = 32 * 2 ** 20; // file for an import; the server refuses more

const addressed = () => new URLSearchParams(location.search).get("c") ?? "";
const idOf = (row) => row.dataset.chat;
const titleOf = (row) => row.querySelector(".chat-title").textContent;
const isPinned = (row) => "pinned" in row.dataset;
const inOrder = (one, other) => isPinned(other) - isPinned(one) || other.dataset.updated - one.dataset.updated;

export function mount(element, trigger, props, watch) {
  const list = new ChatList(element, trigger);
  const update = () => list.update(props.value ?? {});
  watch("value", update);
  update();
}

class ChatList {
  value = { open: "" };
  query = ""; // what the rows were searched for by
  next = null; // what the next page is asked for by
  refreshes = 0;
  tabs = new BroadcastChannel("qlora-chat.conversations"); // the other tabs of this browser

  constructor(element, trigger) {
    const { root, menu, all, ...parts } = copy("chat-column");
    const act = (name, id, value) => this.row(id) && this[name](this.row(id), value);
    Object.assign(this, parts, { trigger, openMenu: chatMenu(menu, act) });
    element.replaceChildren(...root.children);
    element.onkeydown = (event) => this.key(event);
    this.list.onclick = ({ target }) => this.pressed(target.closest("button"));
    this.search.oninput = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.refresh(), TYPING_MS);
    };
    this.file.onchange = () => this.import([...this.file.files]);
    takeDrops(document.getElementById("chats"), this.file);
    all.onchange = () => this.save(null, all);
    document.querySelector("#not-saved [data-save]")?.addEventListener("click", () => this.startSaving());
    this.watcher = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && this.more(), { root: this.scroller, rootMargin: MARGIN });
    this.tabs.onmessage = ({ data }) => (data ? this.put(data) : this.refresh());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.refresh());
    document.addEventListener("keydown", (event) => this.shortcut(event));
    addEventListener("popstate", () => this.goTo(addressed()));
    this.refresh();
  }

  // --- which conversation is shown

  update(value) {
    const before = this.value;
    // Until the server has said what the tab shows, the address may name a conversation that is still to be opened.
    if (value.state === undefined) return;
    this.value = value;
    if (value.open !== before.open) this.setAddress(value.open, before.open);
    if (value.state === before.state) return this.mark();
    this.put(value.row);
    this.tabs.postMessage(value.row);
  }

  // The browser's buttons go back and forth between conversations; a reload adds no entry.
  setAddress(open, before) {
    if (addressed() === open) return;
    history[before ? "pushState" : "replaceState"](history.state, "", open ? `?c=${open}` : location.pathname);
  }

  goTo(id) {
    if (!id && this.value.open) document.getElementById("new").click();
    else if (id !== this.value.open) this.open(id);
  }

  open(id, turn) {
    if (id !== this.value.open) this.trigger("select", { id });
    document.dispatchEvent(new CustomEvent("seek", { detail: turn })); // the message that a search has found
    if (!matchMedia("(min-width: 64rem)").matches) document.querySelector("#chats .close")?.click();
  }

  // Marks what is open, in the list and as the tab's name. Its row or the first is the one tab stop of the list.
  mark() {
    const { rows } = this;
    const open = this.row(this.value.open);
    for (const row of rows) {
      row.firstChild.ariaCurrent = row === open ? "true" : null;
      for (const button of row.querySelectorAll("button")) button.tabIndex = row === (open ?? rows[0]) ? 0 : -1;
    }
    const title = open ? titleOf(open) : this.value.title;
    document.title = title ? `${title} · QLoRA Chat` : "QLoRA Chat";
  }

  // --- the list

  get rows() {
    return [...this.list.querySelectorAll("[data-chat]")];
  }

  row(id) {
    return this.rows.find((each) => idOf(each) === id);
  }

  // Asks for the list as far as it is drawn, or for what a search finds.
  async refresh() {
    const query = this.search.value.trim();
    const limit = query === this.query ? Math.max(PAGE, this.rows.length) : PAGE;
    const found = await this.page({ q: query, limit }, ++this.refreshes);
    if (!found) return;
    this.query = query;
    this.draw(rowsOf(found.rows), found.next);
    if (found.saved) document.getElementById("not-saved")?.remove();
  }

  async more() {
    if (!this.next || this.loading) return;
    this.loading = true;
    const found = await this.page({ q: this.query, before: this.next }, this.refreshes);
    this.loading = false;
    if (found) this.draw([...this.rows, ...rowsOf(found.rows)], found.next);
  }

  // -> a page; null where it is refused, or the list has been asked for anew, or a title or tags are being typed
  async page(parameters, number) {
    const found = await this.tried(request(`chats?${new URLSearchParams(parameters)}`));
    return number === this.refreshes && !this.isEditing ? found : null;
  }

  put(html) {
    if (this.query || this.isEditing) this.mark();
    else this.draw([...this.rows, ...rowsOf(html)]);
  }

  // Shows rows, of which a later one replaces an earlier one. What has not changed stays as it is, with the focus.
  draw(rows, next = this.next) {
    this.next = next;
    const { activeElement: focused } = document;
    const left = focused.closest("[data-chat]");
    const at = this.rows.indexOf(left);
    const drawn = new Map(this.rows.map((row) => [row.html, row]));
    const shown = [...new Map(rows.map((row) => [idOf(row), drawn.get(row.html) ?? row])).values()];
    arrange(this.list, this.query ? shown : grouped(shown.sort(inOrder)));
    this.mark();
    if (!focused.isConnected) this.focus(this.row(idOf(left)) ?? this.rows[at] ?? this.rows.at(-1));
    this.note.textContent = rows.length ? "" : this.query ? t("Nothing found.") : t("No conversations yet.");
    this.end.hidden = !next;
    this.watcher.unobserve(this.end); // who begins anew is told whether it is near
    this.watcher.observe(this.end);
  }

  focus(row) {
    row?.firstChild.focus();
  }

  // --- presses and keys

  pressed(button) {
    const row = button?.closest("[data-chat]");
    if (!row) return;
    if (button === row.firstChild) this.open(idOf(row), row.dataset.turn);
    else this.openMenu(row, button);
  }

  key(event) {
    const { target, key } = event;
    const all = this.rows.map((row) => row.firstChild);
    const isSearch = target === this.search;
    if (all.includes(target) || (isSearch && key === "ArrowDown")) walk(event, all, this.search);
    if (all.includes(target) && key === "F2") this.rename(target.parentElement);
    if (all.includes(target) && key === "Delete") this.remove(target.parentElement);
    if (!isSearch || key !== "Escape" || !target.value) return;
    event.stopPropagation();
    target.value = "";
    this.refresh();
  }

  shortcut(event) {
    if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey) || event.shiftKey || event.altKey) return;
    event.preventDefault();
    document.querySelector("[aria-controls=chats][aria-expanded=false]")?.click();
    this.search.focus();
  }

  // --- changes

  async change(row, values) {
    const made = await this.tried(request("chats", JSON.stringify({ id: idOf(row), ...values })));
    await this.refresh();
    this.tabs.postMessage("");
    return made;
  }

  pin(row) {
    this.change(row, { pinned: !isPinned(row) });
  }

  rename(row) {
    this.edit(row, "title", titleOf(row));
  }

  tag(row) {
    this.edit(row, "tags", [...row.querySelectorAll(".chat-tags span")].map((each) => each.textContent.slice(1)).join(", "));
  }

  async edit(row, what, text) {
    this.isEditing = true;
    const typed = await edited(row, what, text);
    this.isEditing = false;
    if (typed === null) this.refresh(); // for what has been left undrawn
    else this.change(row, { [what]: typed });
  }

  async remove(row) {
    const wasOpen = idOf(row) === this.value.open;
    if (!(await this.change(row, { deleted: true }))) return;
    if (wasOpen) document.getElementById("new").click();
    this.say(t("Deleted “{title}”.", { title: titleOf(row) || t("Untitled") }), UNDO_S, () => this.restore(row, wasOpen));
  }

  async restore(row, wasOpen) {
    if ((await this.change(row, { deleted: false })) && wasOpen) this.open(idOf(row));
    this.focus(this.row(idOf(row)));
  }

  async startSaving() {
    const saved = await this.tried(request("chats/save", ""));
    if (saved) this.say(t(saved.said), 20);
    this.refresh();
  }

  // --- files and messages

  save(row, choice) {
    this.tried(download("chats/export", JSON.stringify({ ids: row ? [idOf(row)] : [], format: choice.value })));
    choice.value = "";
  }

  async import(files) {
    const said = [];
    for (const file of files) {
      this.say(t("Importing {name}…", { name: file.name }), 600);
      said.push(`${file.name}: ${await imported(file).catch(({ message }) => message)}`);
    }
    this.file.value = "";
    await this.refresh();
    this.say(said.join("\n"), 60);
  }

  // -> what was asked for; null, and a message, where it is refused
  async tried(asked) {
    try {
      return await asked;
    } catch ({ message }) {
      this.say(message);
      return null;
    }
  }

  say(text, seconds = 8, undo = null) {
    const { toast, said, undoButton } = this;
    const hide = () => (toast.hidden = true);
    said.textContent = text;
    undoButton.hidden = !undo;
    undoButton.onclick = undo;
    toast.hidden = false;
    toast.onclick = ({ target }) => target.closest("button") && hide();
    clearTimeout(this.saying);
    this.saying = setTimeout(hide, seconds * 1000);
  }
}

async function imported(file) {
  if (file.size > LARGEST) return t("This file is larger than 32 MB: import it with `qlora-chat history import`.");
  const lines = await sendFile("chats/import", file);
  return lines.map((each) => t(each)).join("\n");
}

function rowsOf(html) {
  const rows = [...fragment(html).children];
  for (const row of rows) row.html = row.outerHTML;
  return rows;
}

// Gives a parent these children; those in their place are not touched.
function arrange(parent, children) {
  const wanted = new Set(children);
  for (const each of [...parent.children]) if (!wanted.has(each)) each.remove();
  children.forEach((each, at) => each === parent.children[at] || parent.insertBefore(each, parent.children[at] ?? null));
}

function grouped(rows) {
  const names = rows.map(groupOf);
  return rows.flatMap((row, at) => (names[at] === names[at - 1] ? [row] : [h("h3", { className: "chat-group" }, names[at]), row]));
}

// -> the name of the group that a row belongs to, by the browser's own days
function groupOf(row) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const time = Number(row.dataset.updated);
  if (isPinned(row)) return t("Pinned");
  if (time >= midnight) return t("Today");
  if (time >= midnight - DAY) return t("Yesterday");
  if (time >= midnight - 7 * DAY) return t("Previous 7 days");
  return date(time, { month: "long", year: "numeric" });
}
