// One message: its text, the buttons under it, and the forms that these open.

import { copy, copyText, h, tooLong } from "./dom.js";
import { number, t } from "./language.js";

const LONGEST_COMMENT = 10000;
const LONGEST_TEXT = 200000;
const LONGEST_UNFOLDED = 1500; // characters of a question
const MOST_LINES = 15;

// -> an article for an item of the server; `act(event, data)` sends an event, and returns false while an answer is written
export function messageItem(item, act) {
  const isQuestion = item.role === "user";
  const { root: article, body } = copy(isQuestion ? "question" : "answer");
  Object.assign(article, { item });
  article.dataset.id = item.id;
  article.addEventListener("click", ({ target }) => pressed(article, target.closest("[data-action], [data-copy]"), act));
  if (isQuestion) body.append(...folded(item.text));
  else setBlocks(body, 0, item.blocks);
  if (item.live) {
    article.classList.add("live");
    article.append(h("p", { class: "progress" }));
    return article;
  }
  if (item.pending) return article;
  for (const mark of item.marks ?? []) drawMark(body, mark);
  if (item.end) article.append(ending(item));
  article.append(buttons(item));
  return article;
}

function pressed(article, button, act) {
  if (!button) return;
  const { item } = article;
  const { id, versions } = item;
  const show = (step) => {
    const version = versions[versions.indexOf(id) + step];
    if (version) act("select", { id: version });
  };
  const rate = (rating) => act("like", { id, rating: item.rating === rating ? 0 : rating });
  const acts = {
    previous: () => show(-1),
    next: () => show(1),
    copy: () => copyText(item.text, button),
    edit: () => openEditor(article, act),
    retry: () => act("retry", { id }),
    continue: () => act("play", { id }),
    up: () => rate(1),
    down: () => rate(-1),
    details: () => toggleDetails(article, button),
    pin: () => document.dispatchEvent(new CustomEvent("pin", { detail: { id, pinned: button.ariaPressed !== "true" } })),
    tokens: () => document.dispatchEvent(new CustomEvent("tokens", { detail: id })),
  };
  if (button.dataset.action) acts[button.dataset.action]?.();
  else copyText(button.closest(".code").querySelector("pre").textContent, button);
}

// -> a text; a long one is shown by its beginning until a button is pressed
function folded(text) {
  const lines = text.split("\n");
  if (text.length <= LONGEST_UNFOLDED && lines.length <= MOST_LINES) return [text];
  const beginning = `${lines.slice(0, MOST_LINES).join("\n").slice(0, LONGEST_UNFOLDED)}…`;
  const shown = h("span");
  const button = h("button", { class: "fold", onclick: () => fold(button.ariaExpanded === "true") });
  const fold = (closed) => {
    shown.textContent = closed ? beginning : text;
    button.ariaExpanded = String(!closed);
    button.textContent = closed ? t("Show all {count} characters", { count: text.length }) : t("Show less");
  };
  fold(true);
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
    for (const each of block.querySelectorAll("[data-copy]")) each.textContent = t("Copy");
  });
  while (body.children.length > from + blocks.length) body.lastChild.remove();
}

// A mark within the text of a block, after `at` characters of it.
function drawMark(body, { block, at, label }) {
  const root = body.children[block];
  const { root: mark } = copy("mark");
  mark.textContent = inWords(label);
  const texts = root && document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let left = at;
  for (let text = texts?.nextNode(); text; text = texts.nextNode()) {
    if (left <= text.length) return text.splitText(left).before(mark);
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
function ending({ end, more }) {
  const line = copy("ending");
  line.text.textContent = t(end);
  if (!more) line.more.remove();
  return line.root;
}

function buttons({ id, role, versions, rating, details, facts }) {
  const row = copy(role === "user" ? "question-acts" : "answer-acts");
  const place = versions.indexOf(id);
  if (versions.length > 1) {
    const { root, previous, next, count } = copy("versions");
    count.textContent = `${place + 1}/${versions.length}`;
    if (place === 0) previous.ariaDisabled = "true";
    if (place === versions.length - 1) next.ariaDisabled = "true";
    row.root.prepend(...root.children);
  }
  if (role === "user") return row.root;
  for (const [button, value, done] of [[row.up, 1, t("Rated good")], [row.down, -1, t("Rated bad")]]) {
    button.ariaPressed = String(rating === value);
    if (rating === value) button.ariaLabel = button.title = done;
  }
  if (!details?.length) row.details.remove();
  row.facts.textContent = (facts ?? "").split(" · ").map((each) => t(each)).join(" · ");
  return row.root;
}

function toggleDetails(article, button) {
  const open = article.querySelector(".details");
  button.ariaExpanded = String(!open);
  if (open) return open.remove();
  const { root, rows } = copy("details");
  rows.append(...article.item.details.flatMap(([name, value]) => [h("dt", {}, t(name)), h("dd", {}, t(value))]));
  article.append(root);
}

function openEditor(article, act) {
  if (article.querySelector(".editor")) return;
  const { item } = article;
  const isQuestion = item.role === "user";
  const body = article.querySelector(".body");
  const { root: editor, area, cancel, send, problem } = copy("editor");
  area.ariaLabel = isQuestion ? t("Edit your message") : t("Edit the answer");
  area.value = item.text;
  if (!isQuestion) send.textContent = t("Save");
  cancel.onclick = () => {
    editor.replaceWith(body);
    article.classList.remove("editing");
    article.querySelector("[data-action=edit]")?.focus();
  };
  send.onclick = () => {
    if (area.value.trim() === item.text.trim()) cancel.click();
    else if (!tooLong(problem, t("The message"), area.value, LONGEST_TEXT)) act("edit", { id: item.id, text: area.value });
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel.click();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send.click();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  body.replaceWith(editor);
  article.classList.add("editing");
  area.focus();
}

// The server's word on a thumb or a form: shown under the answer, with the form after a new thumb.
export function showNote(article, { ok, rating, text, form }, act) {
  const acts = article.querySelector(".acts");
  if (ok) {
    article.item.rating = rating;
    const row = buttons(article.item);
    const focused = acts.contains(document.activeElement) && document.activeElement.dataset.action;
    acts.replaceWith(row);
    if (focused) row.querySelector(`[data-action=${focused}]`)?.focus();
    article.querySelector(".feedback")?.remove();
  }
  article.querySelector(".note")?.remove();
  article.querySelector(".acts").after(h("p", { class: ok ? "note" : "note problem", role: ok ? "status" : "alert" }, t(text)));
  if (form) article.append(feedbackForm(article, act));
}

function feedbackForm(article, act) {
  const { id, rating, text } = article.item;
  const { root: form, comment, edited, problem, close, save } = copy("feedback");
  edited.value = text;
  close.onclick = () => {
    form.remove();
    article.querySelector(".note")?.remove();
    article.querySelector("[data-action=up]")?.focus();
  };
  save.onclick = () => {
    if (tooLong(problem, t("The comment"), comment.value, LONGEST_COMMENT) || tooLong(problem, t("The answer"), edited.value, LONGEST_TEXT)) return;
    act("submit", { id, rating, comment: comment.value, edited: edited.value });
  };
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close.click();
  });
  return form;
}

// What is known of an answer that is being written.
export function drawProgress(article, { tokens, speed, read }) {
  const line = article.querySelector(".progress");
  const waiting = !article.querySelector(".block");
  article.classList.toggle("waiting", waiting);
  let text = tokens ? t("{count} tokens", { count: tokens }) : "";
  if (text && speed) text += ` · ${t("{speed} tokens/s", { speed: Math.round(speed) })}`;
  if (waiting) text = read ? t("reading {done} of {all} tokens", { done: read[0], all: read[1] }) : t("waiting for the first token");
  if (line.textContent !== text) line.replaceChildren(...(waiting ? [h("span", { class: "dots", "aria-hidden": "true" })] : []), text);
}
