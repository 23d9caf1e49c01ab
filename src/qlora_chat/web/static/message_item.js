// One message: drawn from the server's HTML, with what a press of its buttons does, and the forms that these open.

import { copy, copyText, fragment, h } from "./dom.js";
import { t, translate } from "./language.js";

document.addEventListener("click", ({ target }) => {
  if (target.matches("[data-copy]")) copyText(target.closest(".code").querySelector("pre").textContent, target);
});

// -> an article for an item of the server; one that is being written has blocks, which grow
export function messageItem({ id, text, html, details, ...update }) {
  const article = html ? fragment(html).firstChild : copy("live-answer").root;
  Object.assign(article, { text, details });
  article.dataset.id = id;
  if (!html) grow(bodyOf(article), update);
  return article;
}

export const bodyOf = (article) => article.querySelector(".body");

// Does what a button of a message is for; `act(event, data)` sends an event, but not while an answer is written.
export function press(button, act) {
  const article = button.closest("article");
  const { id } = article.dataset;
  const { action, event } = button.dataset;
  const rate = () => act("like", { id, rating: Number(button.value) });
  const acts = {
    copy: () => copyText(article.text, button),
    edit: () => openEditor(article, act),
    up: rate,
    down: rate,
    fold: () => toggle(button),
    details: () => (toggle(button) ? article.append(fragment(article.details)) : article.querySelector(".details").remove()),
  };
  if (event) act(event, { id: button.value || id });
  acts[action]?.();
}

// -> whether what the button opens is open now
function toggle(button) {
  const open = button.ariaExpanded !== "true";
  button.ariaExpanded = String(open);
  return open;
}

// Lets a text grow by an update of the server: the blocks from index `from` on, of which the first goes on after the first `keep`
// characters of what it was. -> false where the text lacks updates after the one numbered `since`
export function grow(body, { number, since, from = 0, keep = 0, blocks }) {
  const shown = body.number ?? 0;
  if (number <= shown) return true;
  if (since > shown) return false;
  body.number = number;
  blocks.forEach((html, index) => {
    let block = body.children[from + index];
    if (index === 0 && keep) html = block.html.slice(0, keep) + html;
    if (!block) body.append((block = h("div", { className: "block" })));
    if (block.html === html) return;
    block.html = html;
    block.innerHTML = html; // made by the server's renderer, which lets no tag of the text through
    block.querySelectorAll(".translated").forEach(translate);
  });
  while (body.children.length > from + blocks.length) body.lastChild.remove();
  return true;
}

// The same for an answer of the conversation, with what is known of its progress.
export function growAnswer(article, live) {
  if (!grow(bodyOf(article), live)) return false;
  article.classList.toggle("waiting", !article.querySelector(".block"));
  article.querySelector(".said").textContent = live.said.split(" · ").map((each) => t(each)).join(" · ");
  return true;
}

// Opens a form of templates.html in a message, whose text is in its last box. Escape and reset close it, Ctrl+Enter submits it.
function openForm(article, template, opener, send) {
  const { root: form, problem } = copy(template);
  const areas = [...form.querySelectorAll("textarea")];
  form.onreset = () => {
    form.remove();
    article.querySelector(".note")?.remove();
    article.querySelector(`[data-action=${opener}]`).focus();
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    const long = areas.find(({ value, dataset }) => value.length > dataset.longest);
    const values = long && { label: long.dataset.label, count: long.value.length, limit: Number(long.dataset.longest) };
    problem.textContent = long ? t("{label} has {count} characters, but at most {limit} can be sent. Please shorten it.", values) : "";
    if (!long) send(...areas.map(({ value }) => value));
  };
  form.onkeydown = (event) => {
    if (event.key === "Escape") form.reset();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  areas.at(-1).value = article.text;
  article.append(form);
  return form;
}

function openEditor(article, act) {
  const send = (text) => (text.trim() === article.text.trim() ? form.reset() : act("edit", { id: article.dataset.id, text }));
  const form = openForm(article, article.matches(".question") ? "question-editor" : "answer-editor", "edit", send);
  form.querySelector("textarea").focus();
}

// The server's word on a thumb or a form: shown under the answer, with the form after a new thumb.
export function showNote(article, { html, thumbs, form, rating }, act) {
  article.querySelector(".note")?.remove();
  if (thumbs) article.querySelector(".feedback")?.remove();
  for (const { title, value, ariaPressed, dataset } of thumbs ? copy(thumbs).root.children : []) {
    Object.assign(article.querySelector(`[data-action=${dataset.action}]`), { title, value, ariaLabel: title, ariaPressed });
  }
  article.querySelector(".acts").after(fragment(html));
  const send = (comment, edited) => act("submit", { id: article.dataset.id, rating, comment, edited });
  if (form) openForm(article, "feedback", "up", send);
}
