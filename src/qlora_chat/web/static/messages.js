// The list of messages. The server's value names the newest one and has the open blocks of the answer being written; messages
// are fetched, once.

import { copy, type } from "./dom.js";
import { t } from "./language.js";
import { bodyOf, growAnswer, messageItem, press, showNote } from "./message_item.js";
import { request } from "./requests.js";

const NEAR = 60; // pixels from the end at which the list follows the answer
const LONGEST_ANNOUNCED = 2000;
const RETRY_MS = 2000;

let list = null; // the page has one
let memory = {}; // what the model sees of the conversation: {begins, line, pinned}

let arrival = null; // of another conversation, while the server opens it

export function leave() {
  arrival ??= Promise.withResolvers();
  setTimeout(arrival.resolve, 3000); // its event may be lost
}

export function arrived(reference) {
  arrival?.resolve(reference);
  arrival = null;
}

// A message is being sent: draw it at once, with the values of the event passed on.
export async function ask(...values) {
  if (arrival) values[1] = (await arrival.promise) ?? values[1]; // it belongs there
  list?.ask(values[0]);
  return values;
}

// The event of an answer has ended: a message that the server refused is not part of the conversation.
export function settle(...values) {
  list?.dropPending();
  list?.clearBox();
  return values;
}

// Marks the messages that the model always sees, and where its memory begins.
export function showMemory(value) {
  memory = value;
  list?.drawMemory();
}

export function mount(element, trigger, props, watch) {
  list = new MessageList(element, trigger);
  const update = () => list.update(props.value ?? {});
  watch("value", update);
  update();
  document.addEventListener("click", ({ target }) => {
    if (!target.matches(".examples button")) return;
    type(document.querySelector("#box textarea"), target.textContent);
    setTimeout(() => document.getElementById("send").click()); // once Gradio has taken the text
  });
}

class MessageList {
  constructor(element, trigger) {
    this.value = {};
    this.conversation = null; // id of the conversation that is drawn
    this.drawn = ""; // the value for which messages were fetched
    this.follow = true;
    const { root, ...parts } = copy("message-list");
    Object.assign(this, parts);
    this.newest.onclick = () => this.toEnd(true);
    element.replaceChildren(...root.children);
    this.act = (event, data) => !this.value.live && trigger(event, data);
    this.list.onclick = ({ target }) => {
      const button = target.closest("[data-action]");
      if (button) press(button, this.act);
    };
    this.watchScrolling();
    document.addEventListener("seek", ({ detail }) => this.showSought(detail));
  }

  // Shows the message that a search has found, once it is drawn.
  showSought(sought = this.sought) {
    const article = sought && this.find(sought);
    this.sought = article ? null : sought;
    if (!article) return;
    this.follow = false;
    article.classList.add("found");
    article.scrollIntoView({ block: "center" });
    this.newest.hidden = false;
  }

  watchScrolling() {
    const { list, scroller } = this;
    const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
    const setFollow = (follow) => {
      this.follow = follow;
      this.newest.hidden = follow || atEnd();
    };
    scroller.addEventListener("scroll", () => setFollow(atEnd()), { passive: true });
    scroller.addEventListener("wheel", (event) => event.deltaY < 0 && scroller.scrollTop > 0 && setFollow(false), { passive: true });
    const resized = new ResizeObserver(() => (this.follow ? this.toEnd() : setFollow(atEnd())));
    resized.observe(list);
    resized.observe(scroller);
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
    const { root, question, body } = copy("pending");
    question.text = body.textContent = text;
    this.dropPending();
    this.list.append(...root.children);
    this.toEnd();
  }

  // Clears the box of a question that is part of the conversation now, unless something else has been typed since.
  clearBox() {
    const box = document.querySelector("#box textarea");
    const asked = [...this.list.querySelectorAll(".question")].at(-1);
    if (!this.sent || box?.value !== this.sent || asked?.text.trim() !== this.sent.trim()) return;
    this.sent = null;
    type(box, "");
  }

  dropPending() {
    this.list.querySelectorAll(".pending").forEach((each) => each.remove());
  }

  update(value) {
    // while an answer is written, the conversation is that of the value before
    if (value.live) value = { ...this.value, head: value.live.id, live: value.live, note: null };
    if (this.value.live && !value.live) document.dispatchEvent(new Event("answered"));
    this.value = { ...value };
    document.body.classList.toggle("answering", Boolean(value.live));
    if (!value.conversation) return;
    const { live, note } = value;
    if (live && live.id !== this.writing) {
      this.writing = live.id; // announced when it is finished
      this.follow = true;
    }
    if (live && this.last?.matches(".pending") && growAnswer(this.last, live)) {
      this.clearBox();
      if (!live.blocks.length) return; // a request would keep the model from its first words: the messages are fetched after them
    }
    const key = `${value.conversation} ${value.head} ${live ? "live" : ""}`;
    if (key !== this.drawn) {
      this.fetchNewest(key);
      return;
    }
    const article = this.find((live ?? note)?.id);
    if (live && article?.matches(".live") && !growAnswer(article, live)) this.fetchNewest(key);
    if (note && article) showNote(article, note, this.act);
    this.value.note = null;
  }

  // Fetches what the drawn messages lack; a change of the value meanwhile is drawn afterwards.
  async fetchNewest(key) {
    if (this.fetching) return;
    this.fetching = true;
    const { conversation } = this.value;
    const finished = [...this.list.querySelectorAll("article:not(.live, .pending)")].at(-1);
    const found = await this.request({ conversation, shown: (this.conversation === conversation && finished?.dataset.id) || "" });
    this.fetching = false;
    if (found) {
      this.drawn = key;
      this.draw(found);
    } else await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    this.update(this.value);
  }

  request(query) {
    return request(`messages?${new URLSearchParams(query)}`).catch(() => null);
  }

  draw({ conversation, after, items, earlier }) {
    const begun = this.conversation !== conversation || !after || !this.find(after);
    const { activeElement } = document;
    const focused = this.list.contains(activeElement);
    const articles = items.map(messageItem);
    this.conversation = conversation;
    while (this.last && this.last.dataset.id !== after) this.last.remove();
    this.list.append(...articles);
    this.list.classList.add("drawn");
    if (begun || this.follow) this.toEnd();
    const finished = articles.find((each) => each.dataset.id === this.writing && !each.matches(".live"));
    if (finished) {
      this.writing = null;
      this.announcement.textContent = bodyOf(finished).innerText.slice(0, LONGEST_ANNOUNCED);
    }
    if (focused && !activeElement.isConnected) {
      const same = articles[0]?.querySelector(`[data-action=${activeElement.dataset.action}]`);
      (same ?? this.scroller).focus({ preventScroll: true });
    }
    this.clearBox();
    this.finish(begun && earlier);
  }

  // Marks what is drawn, and goes on with older messages when the browser has nothing else to do.
  finish(earlier) {
    this.drawMemory();
    this.showSought();
    if (earlier) requestIdleCallback(() => this.drawOlder());
  }

  // Draws an older page, without moving what is being read.
  async drawOlder() {
    const { conversation, list, scroller } = this;
    const first = list.firstElementChild;
    const found = await this.request({ conversation, until: first.dataset.id });
    if (!found?.items.length || this.conversation !== conversation || list.firstElementChild !== first) return;
    const fromEnd = scroller.scrollHeight - scroller.scrollTop;
    list.prepend(...found.items.map(messageItem));
    if (this.follow) this.toEnd();
    else scroller.scrollTop = scroller.scrollHeight - fromEnd;
    this.finish(found.earlier);
  }

  // The line is an attribute of the message that it stands above, which page.css shows.
  drawMemory() {
    const { begins, line, pinned = [] } = memory;
    for (const each of this.list.children) {
      each.querySelector("[data-action=pin]")?.setAttribute("aria-pressed", pinned.includes(each.dataset.id));
      if (line && each.dataset.id === begins) each.dataset.memory = t(line);
      else delete each.dataset.memory;
    }
  }
}
