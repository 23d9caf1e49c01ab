// Elements without inline text: everything that a person or a model wrote becomes a text node.

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

const PATHS = {
  arrow: "M12 5v14M6 13l6 6 6-6",
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6L6 18",
  compare: "M4 5h6.500v14H4zM13.500 5H20v14h-6.500z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  down: "M17 4v11M17 15h3V4h-3M17 15l-5 5c-2 0-2-2-1-5H6c-2 0-2-2-1.500-3.500L6.500 5C7 4 8 4 9 4h8",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  info: "M5 12h.01M12 12h.01M19 12h.01",
  left: "M14 6l-6 6 6 6",
  menu: "M4 7h16M4 12h16M4 17h16",
  play: "M8 5l11 7-11 7z",
  plus: "M12 5v14M5 12h14",
  retry: "M19 12a7 7 0 1 1-2.200-5.100M19 4v4h-4",
  right: "M10 6l6 6-6 6",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  up: "M7 20V9M7 9H4v11h3M7 9l5-5c2 0 2 2 1 5h5c2 0 2 2 1.500 3.500L17.500 19c-.5 1-1.500 1-2.500 1H7",
};
const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

// -> a button that shows an icon and is known to screen readers and tests by its label
export function iconButton(name, label, onclick, attributes = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

// Waits until elements with these ids exist: Gradio mounts the components of a page one after the other.
export async function present(...ids) {
  while (!ids.every((id) => document.getElementById(id))) await new Promise(requestAnimationFrame);
}

// Copies text exactly. Browsers give pages on a plain-HTTP address no clipboard; there, a selection is copied.
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "off-screen" });
  area.value = text;
  document.body.append(area);
  const focused = document.activeElement;
  area.select();
  document.execCommand("copy");
  area.remove();
  focused?.focus();
}

// Shows a tick on a button for a moment.
export function confirmOn(button) {
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"));
  setTimeout(() => button.replaceChildren(...before), 1200);
}
