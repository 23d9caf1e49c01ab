// Elements without inline text: everything that a person or a model wrote becomes a text node.

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
function prepared(content, icons) {
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
  const content = prepared(parsed(html), templates);
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

// -> an element with attributes ("on..." adds a listener), and children that are elements or texts
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export const icon = (name) => find(templates, `svg[data-icon=${name}]`);

// -> a button that shows an icon and is known to screen readers and tests by its label
export function iconButton(name, label, onclick, attributes = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

// Waits until elements with these ids exist: Gradio mounts the components of a page one after the other.
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
  const to = { ArrowDown: Math.min(at + 1, all.length - 1), ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
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
    const area = h("textarea", { class: "off-screen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
}
