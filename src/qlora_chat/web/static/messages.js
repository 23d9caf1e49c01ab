// The list of messages. The server's value says which message is the newest and carries the open blocks of the answer being
// written; the messages themselves are fetched, once.

import { copy, type } from "./dom.js";
import { drawProgress, messageItem, setBlocks, showNote } from "./message_item.js";
import { ask as askServer } from "./memory.js";

const NEAR = 60; // pixels from the end at which the list follows the answer
const LONGEST_ANNOUNCED = 2000;
const RETRY_MS = 1000;
const LONGEST_RETRY_MS = 30000;
const RESENT = 2; // updates whose changes every update repeats, as in live_blocks.py

let list = null; // the page has one

// A message is being sent: draw it at once, with the values of the event passed on.
export function ask(...values) {
  list?.ask(values[0]);
  return values;
}

// The event of an answer has ended: a message that the server refused is not part of the conversation.
export function settle(...values) {
  list?.dropPending();
  list?.clearBox();
  return values;
}

export function mount(element, trigger, props, watch) {
  list = new MessageList(element, trigger);
  const update = () => list.update(props.value ?? {});
  watch("value", update);
  update();
}

class MessageList {
  constructor(element, trigger) {
    this.trigger = trigger;
    this.value = {};
    this.conversation = null; // id of the conversation that is drawn
    this.drawn = ""; // the value for which messages were fetched
    this.note = 0;
    this.retry = RETRY_MS;
    this.follow = true;
    const { root, ...parts } = copy("message-list");
    Object.assign(this, parts);
    this.newest.onclick = () => this.toEnd(true);
    element.replaceChildren(...root.children);
    this.act = (event, data) => !this.value.live && this.trigger(event, data);
    this.watchScrolling();
    document.addEventListener("seek", ({ detail }) => {
      this.sought = detail;
      this.showSought();
    });
  }

  // Shows the message that a search has found, once it is drawn.
  showSought() {
    const article = this.sought && this.find(this.sought);
    if (!article) return;
    this.sought = null;
    this.follow = false;
    article.classList.add("found");
    article.scrollIntoView({ block: "center" });
    this.newest.hidden = false;
  }

  watchScrolling() {
    const atEnd = () => this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < NEAR;
    const setFollow = (follow) => {
      this.follow = follow;
      this.newest.hidden = follow || atEnd();
    };
    this.scroller.addEventListener("scroll", () => setFollow(atEnd()), { passive: true });
    this.scroller.addEventListener("wheel", (event) => event.deltaY < 0 && this.scroller.scrollTop > 0 && setFollow(false), { passive: true });
    const resized = new ResizeObserver(() => (this.follow ? this.toEnd() : setFollow(atEnd())));
    resized.observe(this.list);
    resized.observe(this.scroller);
  }

  toEnd(focus = false) {
    this.follow = true;
    this.newest.hidden = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    if (focus) this.scroller.focus({ preventScroll: true });
  }

  get last() {
    return this.list.lastElementChild;
  }

  find(id) {
    return this.list.querySelector(`:scope > [data-id="${CSS.escape(id)}"]`);
  }

  ask(text) {
    this.sent = text;
    if (this.value.live || !this.conversation || !text?.trim()) return;
    const question = { id: "pending-question", role: "user", text, versions: [], pending: true };
    const answer = { id: "pending-answer", role: "assistant", blocks: [], versions: [], live: true, pending: true };
    this.dropPending();
    this.list.append(...[question, answer].map((each) => messageItem(each, this.act)));
    drawProgress(this.last, {});
    this.list.classList.remove("empty");
    this.toEnd();
  }

  // Clears the box of a question that is part of the conversation now, unless something else has been typed since.
  clearBox() {
    const box = document.querySelector("#box textarea");
    const asked = [...this.list.children].findLast((each) => each.item.role === "user");
    if (!this.sent || box?.value !== this.sent || asked?.item.text.trim() !== this.sent.trim()) return;
    this.sent = null;
    type(box, "");
  }

  dropPending() {
    for (const each of [...this.list.children]) if (each.item.pending) each.remove();
    this.list.classList.toggle("empty", !this.last);
  }

  update(value) {
    // while an answer is written, the conversation is that of the value before
    if (value.live) value = { ...this.value, head: value.live.id, live: value.live, note: null };
    this.value = value;
    document.body.classList.toggle("answering", Boolean(value.live));
    if (!value.conversation) return;
    const { live, note } = value;
    if (live) this.writing = live.id; // announced when it is finished
    if (live?.from === 0 && !live.keep && this.last?.item.pending) {
      setBlocks(this.last.querySelector(".body"), 0, live.blocks);
      drawProgress(this.last, live);
      this.clearBox();
      if (!live.blocks.length) return; // a request would keep the model from its first words: the messages are fetched after them
    }
    const key = `${value.conversation} ${value.head} ${live ? "live" : ""}`;
    if (key !== this.drawn && (live || this.last?.item.live || this.conversation !== value.conversation || (this.last?.item.id ?? "") !== value.head)) {
      this.fetchNewest(key);
      return;
    }
    this.drawn = key;
    if (live && !this.drawLive(live)) this.fetchNewest(key);
    if (note && note.number !== this.note) {
      this.note = note.number;
      const article = this.find(note.id);
      if (article) showNote(article, note, this.act);
    }
  }

  // False where updates are missing that this one builds on.
  drawLive(live) {
    const article = this.find(live.id);
    if (!article?.item.live) return true;
    if (live.number > article.item.number + RESENT + 1) return false;
    if (live.number > article.item.number) {
      article.item.number = live.number;
      setBlocks(article.querySelector(".body"), live.from, live.blocks, live.keep);
    }
    drawProgress(article, live);
    return true;
  }

  // Fetches what the drawn messages lack; a change of the value meanwhile is drawn afterwards.
  async fetchNewest(key) {
    if (this.fetching) return;
    this.fetching = true;
    const { conversation } = this.value;
    const finished = [...this.list.children].findLast((each) => !each.item.live && !each.item.pending);
    const shown = this.conversation === conversation && finished ? finished.item.id : "";
    const found = await this.request({ conversation, shown });
    this.fetching = false;
    if (found) {
      this.drawn = key;
      this.retry = RETRY_MS;
      this.draw(found);
    } else {
      await new Promise((resolve) => setTimeout(resolve, this.retry));
      this.retry = Math.min(2 * this.retry, LONGEST_RETRY_MS);
    }
    this.update(this.value);
  }

  async request(query) {
    const response = await askServer(`messages?${new URLSearchParams(query)}`).catch(() => null);
    return response?.ok ? response.json().catch(() => null) : null;
  }

  draw({ conversation, after, items, earlier }) {
    const begun = this.conversation !== conversation || !after || !this.find(after);
    const written = this.last?.item.live && !this.last.item.pending ? this.last.item.id : null;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.action ?? "list" : null;
    const articles = items.map((each) => messageItem(each, this.act));
    this.conversation = conversation;
    if (begun) this.list.replaceChildren(...articles);
    else {
      while (this.last && this.last.item.id !== after) this.last.remove();
      this.list.append(...articles);
    }
    if (begun || this.follow || articles.some((each) => each.item.live && each.item.id !== written)) this.toEnd();
    const finished = this.writing && articles.find((each) => each.item.id === this.writing && !each.item.live);
    if (finished) {
      this.writing = null;
      this.announcement.textContent = finished.querySelector(".body").innerText.slice(0, LONGEST_ANNOUNCED);
    }
    if (focused && !this.list.contains(document.activeElement)) {
      const same = articles[0]?.querySelector(`[data-action=${focused}]`);
      (same ?? this.scroller).focus({ preventScroll: true });
    }
    this.clearBox();
    this.list.classList.toggle("empty", !this.last);
    this.showSought();
    if (begun && earlier) requestIdleCallback(() => this.drawOlder());
  }

  // Draws older pages while the browser has nothing else to do, without moving what is being read.
  async drawOlder() {
    const { conversation, list, scroller } = this;
    const first = list.firstElementChild;
    const found = await this.request({ conversation, until: first.item.id });
    if (!found?.items.length || this.conversation !== conversation || list.firstElementChild !== first) return;
    const fromEnd = scroller.scrollHeight - scroller.scrollTop;
    list.prepend(...found.items.map((each) => messageItem(each, this.act)));
    if (this.follow) this.toEnd();
    else scroller.scrollTop = scroller.scrollHeight - fromEnd;
    this.showSought();
    if (found.earlier) requestIdleCallback(() => this.drawOlder());
  }
}
