// One message: its text, the buttons under it, and the forms that these open.

import { confirmOn, copyText, h, icon, iconButton } from "./dom.js";
import { number, t } from "./language.js";

const LONGEST_COMMENT = 10000;
const LONGEST_TEXT = 200000;
const LONGEST_UNFOLDED = 1500; // characters of a question
const MOST_LINES = 15;

// -> an article for an item of the server; `act(event, data)` sends an event, and returns false while an answer is written
export function messageItem(item, act) {
  const isQuestion = item.role === "user";
  const body = h("div", { class: isQuestion ? "body" : "body markdown", dir: "auto", onclick: copyCode });
  const article = h("article", { class: isQuestion ? "question" : "answer", "data-id": item.id, "aria-label": isQuestion ? t("You") : t("Answer") }, body);
  article.item = item;
  if (isQuestion) body.append(...folded(item.text));
  else setBlocks(body, 0, item.blocks);
  if (item.live) {
    article.classList.add("live");
    article.append(h("p", { class: "progress" }));
    return article;
  }
  if (item.pending) return article;
  for (const mark of item.marks ?? []) drawMark(body, mark);
  if (item.end) article.append(ending(item, act));
  article.append(buttons(article, item, act));
  return article;
}

// -> a text; a long one is shown by its beginning until a button is pressed
function folded(text) {
  if (text.length <= LONGEST_UNFOLDED && text.split("\n").length <= MOST_LINES) return [text];
  const beginning = text.split("\n").slice(0, MOST_LINES).join("\n").slice(0, LONGEST_UNFOLDED);
  const shown = h("span", {}, `${beginning}…`);
  const button = h("button", { type: "button", class: "fold", "aria-expanded": "false" });
  const label = (open) => (button.textContent = open ? t("Show less") : t("Show all {count} characters", { count: text.length }));
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") === "false";
    shown.textContent = open ? text : `${beginning}…`;
    button.setAttribute("aria-expanded", String(open));
    label(open);
  });
  label(false);
  return [shown, button];
}

// Draws the blocks from index `from` on, leaving alone those that have not changed. The first of them goes on after the first
// `keep` characters of what it was.
export function setBlocks(body, from, blocks, keep = 0) {
  blocks.forEach((html, index) => {
    let block = body.children[from + index];
    if (index === 0 && keep) html = block.html.slice(0, keep) + html;
    if (!block) body.append((block = h("div", { class: "block" })));
    if (block.html === html) return;
    block.html = html;
    block.innerHTML = html; // made by the server's renderer, which lets no tag of the text through
  });
  while (body.children.length > from + blocks.length) body.lastChild.remove();
}

async function copyCode({ target }) {
  const button = target.closest("[data-copy]");
  if (!button) return;
  await copyText(button.closest(".code").querySelector("pre").textContent);
  confirmOn(button);
}

// A mark within the text of a block, after `at` characters of it.
function drawMark(body, { block, at, label }) {
  const root = body.children[block];
  const mark = h("span", { class: "mark", role: "note", title: t("The setting acted from here on") }, inWords(label));
  const texts = root && document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let left = at;
  for (let text = texts?.nextNode(); text; text = texts.nextNode()) {
    if (left <= text.length) {
      text.splitText(left).before(mark);
      return;
    }
    left -= text.length;
  }
  (root ?? body).append(mark);
}

// "Temperature 0.7 → 2", or several of them
function inWords(label) {
  const words = label.split(", ").map((each) => each.replace(/^.+?(?= \S+ → |$)/, (name) => t(name)));
  return words.join(", ").replace(/\d+\.\d+/g, (digits) => number(Number(digits)));
}

// Why an answer ended early, and a way to go on.
function ending(item, act) {
  const line = h("p", { class: "end" }, t(item.end));
  if (item.more) line.append(h("button", { type: "button", "data-action": "continue", onclick: () => act("play", { id: item.id }) }, icon("play"), t("Continue")));
  return line;
}

function buttons(article, item, act) {
  const row = h("div", { class: "acts" });
  const add = (name, label, action, onclick, attributes = {}) =>
    row.append(iconButton(name, label, onclick, { "data-action": action, ...attributes }));
  const place = item.versions.indexOf(item.id);
  if (item.versions.length > 1) {
    const show = (index) => () => item.versions[index] && act("select", { id: item.versions[index] });
    add("left", t("Previous version"), "previous", show(place - 1), { "aria-disabled": place === 0 && "true" });
    row.append(h("span", { class: "count" }, `${place + 1}/${item.versions.length}`));
    add("right", t("Next version"), "next", show(place + 1), { "aria-disabled": place === item.versions.length - 1 && "true" });
  }
  add("copy", t("Copy"), "copy", async ({ currentTarget }) => {
    await copyText(item.text);
    confirmOn(currentTarget);
  });
  add("edit", t("Edit"), "edit", () => openEditor(article, act));
  if (item.role === "user") return row;
  add("retry", t("Retry"), "retry", () => act("retry", { id: item.id }));
  for (const [name, label, done, rating] of [["up", t("Good answer"), t("Rated good"), 1], ["down", t("Bad answer"), t("Rated bad"), -1]]) {
    const pressed = item.rating === rating;
    add(name, pressed ? done : label, name, () => act("like", { id: item.id, rating: item.rating === rating ? 0 : rating }), { "aria-pressed": String(pressed) });
  }
  if (item.details?.length) add("info", t("Details"), "details", ({ currentTarget }) => toggleDetails(article, currentTarget), { "aria-expanded": "false" });
  if (item.facts) row.append(h("span", { class: "facts" }, item.facts.split(" · ").map((each) => t(each)).join(" · ")));
  return row;
}

function toggleDetails(article, button) {
  const open = article.querySelector(".details");
  button.setAttribute("aria-expanded", String(!open));
  if (open) return open.remove();
  const rows = article.item.details.flatMap(([name, value]) => [h("dt", {}, t(name)), h("dd", {}, t(value))]);
  const tokens = h("button", { type: "button", class: "plain", onclick: () => document.dispatchEvent(new CustomEvent("tokens", { detail: article.item.id })) }, t("Token probabilities"));
  article.append(h("dl", { class: "details" }, ...rows, tokens));
}

function openEditor(article, act) {
  if (article.querySelector(".editor")) return;
  const { item } = article;
  const isQuestion = item.role === "user";
  const body = article.querySelector(".body");
  const area = h("textarea", { "aria-label": isQuestion ? t("Edit your message") : t("Edit the answer"), dir: "auto" });
  area.value = item.text;
  const close = () => {
    editor.replaceWith(body);
    article.classList.remove("editing");
    article.querySelector("[data-action=edit]")?.focus();
  };
  const send = () => {
    if (area.value.trim() === item.text.trim()) return close();
    if (tooLong(editor, t("The message"), area.value, LONGEST_TEXT)) return;
    act("edit", { id: item.id, text: area.value });
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const editor = h("div", { class: "editor" }, area,
    h("div", { class: "form-buttons" },
      h("button", { type: "button", class: "plain", onclick: close }, t("Cancel")),
      h("button", { type: "button", class: "primary", title: "Ctrl+Enter", onclick: send }, isQuestion ? t("Send") : t("Save"))),
    h("p", { class: "form-problem", role: "alert" }));
  body.replaceWith(editor);
  article.classList.add("editing");
  area.focus();
}

// Says under a form that a text is too long to be sent.
function tooLong(form, name, text, limit) {
  const shown = form.querySelector(".form-problem");
  const problem = text.length > limit;
  const said = "{name} has {count} characters, but at most {limit} can be sent. Please shorten it.";
  shown.textContent = problem ? t(said, { name, count: text.length, limit }) : "";
  return problem;
}

// The server's word on a thumb or a form: shown under the answer, with the form after a new thumb.
export function showNote(article, note, act) {
  const { item } = article;
  if (note.ok) {
    item.rating = note.rating;
    const row = buttons(article, item, act);
    const focused = article.querySelector(".acts").contains(document.activeElement) && document.activeElement.dataset.action;
    article.querySelector(".acts").replaceWith(row);
    if (focused) row.querySelector(`[data-action=${focused}]`)?.focus();
  }
  if (note.ok || !article.querySelector(".feedback")) article.querySelector(".feedback")?.remove();
  article.querySelector(".note")?.remove();
  article.querySelector(".acts").after(h("p", { class: note.ok ? "note" : "note problem", role: note.ok ? "status" : "alert" }, t(note.text)));
  if (note.form) article.append(feedbackForm(article, act));
}

function feedbackForm(article, act) {
  const { item } = article;
  const comment = h("textarea", { rows: 1, placeholder: t("What was good about it, or wrong?"), dir: "auto" });
  const edited = h("textarea", { rows: 3, dir: "auto" });
  edited.value = item.text;
  const close = () => {
    form.remove();
    article.querySelector(".note")?.remove();
    article.querySelector("[data-action=up]")?.focus();
  };
  const save = () => {
    if (tooLong(form, t("The comment"), comment.value, LONGEST_COMMENT) || tooLong(form, t("The answer"), edited.value, LONGEST_TEXT)) return;
    act("submit", { id: item.id, rating: item.rating, comment: comment.value, edited: edited.value });
  };
  const form = h("div", { class: "feedback" },
    h("label", {}, t("Comment"), comment),
    h("label", {}, t("The answer as it should have been"), edited),
    h("p", { class: "form-problem", role: "alert" }),
    h("div", { class: "form-buttons" },
      h("button", { type: "button", class: "plain", onclick: close }, t("Close")),
      h("button", { type: "button", class: "primary", onclick: save }, t("Save"))));
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  return form;
}

// What is known of an answer that is being written.
export function drawProgress(article, live) {
  const line = article.querySelector(".progress");
  const waiting = !article.querySelector(".block");
  article.classList.toggle("waiting", waiting);
  let text = live.tokens ? t("{count} tokens", { count: live.tokens }) + (live.speed ? ` · ${t("{speed} tokens/s", { speed: Math.round(live.speed) })}` : "") : "";
  if (waiting) text = live.read ? t("reading {done} of {all} tokens", { done: live.read[0], all: live.read[1] }) : t("waiting for the first token");
  if (line.textContent !== text) line.replaceChildren(...(waiting ? [h("span", { class: "dots", "aria-hidden": "true" })] : []), text);
}
