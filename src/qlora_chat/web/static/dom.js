// Elements of templates.html and of the server's HTML, and what every module does with elements.

import { t, translate } from "./language.js";

const templates = await load();

async function load() {
  const content = parsed((await (await fetch(new URL("templates.html", import.meta.url))).text()).replace(/>\s+</g, "><"));
  return prepared(content, content);
}

function parsed(html) {
  return Object.assign(document.createElement("template"), { innerHTML: html }).content;
}

// Puts markup into the page's language, and icons into it.
function prepared(content, icons = templates) {
  translate(content);
  content.querySelectorAll("i[data-icon]").forEach((each) => each.replaceWith(find(icons, `svg[data-icon=${each.dataset.icon}]`)));
  content.querySelectorAll(".icon-button[aria-label]").forEach((each) => (each.title = each.ariaLabel));
  return content;
}

function find(content, selector) {
  return content.querySelector(selector).cloneNode(true);
}

// -> elements of the server's HTML, whose texts are escaped; <i data-template> stands for what the template of that id holds
export function fragment(html) {
  const content = prepared(parsed(html));
  content.querySelectorAll("i[data-template]").forEach((each) => each.replaceWith(...copy(each.dataset.template).root.children));
  return content;
}

// -> {root, and its elements by their data-part}: a copy of the element of templates.html with this id
export function copy(id) {
  const root = find(templates, `[id=${id}]`);
  root.removeAttribute("id");
  const parts = Object.fromEntries([...root.querySelectorAll("[data-part]")].map((each) => [each.dataset.part, each]));
  return { root, ...parts };
}

// -> an element with properties, and children that are elements or texts
export function h(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Waits for elements with these ids: Gradio mounts one component after the other.
export async function present(...ids) {
  while (!ids.every((id) => document.getElementById(id))) await new Promise(requestAnimationFrame);
}

// Puts a text into one of Gradio's boxes, as if it had been typed.
export function type(box, text) {
  box.value = text;
  box.dispatchEvent(new Event("input", { bubbles: true }));
}

// Moves the focus by arrow keys among elements, from the first of them back to `before`.
export function walk(event, all, before) {
  const at = all.indexOf(event.target);
  const last = all.length - 1;
  const [back, on] = [at - 1, Math.min(at + 1, last)];
  const to = { ArrowDown: on, ArrowRight: on, ArrowUp: back, ArrowLeft: back, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  (all[to] ?? before).focus();
}

// While something is dragged over an area, its field for files lies over it, so that the browser itself drops files there.
export function takeDrops(area, field) {
  area.addEventListener("dragenter", () => area.classList.add("dropping"));
  for (const end of ["dragleave", "drop"]) field.addEventListener(end, () => area.classList.remove("dropping"));
}

// Copies text exactly, and shows a tick on the button. Browsers give pages on a plain-HTTP address no clipboard; there, a
// selection is copied.
export async function copyText(text, button) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else {
    const area = h("textarea", { className: "off-screen", value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
}
