// What can be done with a conversation of the list: the menu that all rows share, and a form in the place of a row.

import { copy, walk } from "./dom.js";
import { t } from "./language.js";

// The browser itself opens and closes the menu; `act(name, id, value)` is called for what is chosen. -> a function that prepares
// it for a row
export function chatMenu(menu, act) {
  const items = [...menu.children];
  let id;
  const choose = (name, value) => (menu.hidePopover(), act(name, id, value));
  menu.onclick = ({ target }) => target.dataset.act && choose(target.dataset.act);
  menu.onchange = ({ target }) => choose("save", target);
  menu.ontoggle = ({ newState }) => {
    const { activeElement: focused } = document;
    // The row has been drawn anew, so that the browser had no button to give the focus back to.
    if (newState === "closed" && (menu.contains(focused) || focused === document.body)) act("focus", id);
  };
  menu.onkeydown = (event) => {
    if (event.key === "Escape") event.stopPropagation(); // closes nothing else
    if (event.target.tagName === "BUTTON") walk(event, items, items.at(-1));
  };
  return ({ dataset: { chat, pinned } }, button) => {
    if (chat !== id) menu.hidePopover(); // of another row
    id = chat;
    const { right, bottom } = button.getBoundingClientRect();
    Object.assign(menu.style, { right: `${innerWidth - right}px`, top: `min(${bottom}px, 100dvh - 15rem)` });
    menu.ariaLabel = button.ariaLabel;
    items[0].textContent = t(pinned === undefined ? "Pin" : "Unpin");
  };
}

// Lets a person edit a text in the place of a row. -> the new text; null if it stays
export function edited(row, what, text) {
  const { root: form, field } = copy(`chat-${what}`);
  const shown = [...row.children];
  field.value = text;
  row.replaceChildren(form);
  field.focus();
  field.select();
  return new Promise((done) => {
    const end = (save) => {
      field.onblur = null;
      row.replaceChildren(...shown);
      row.firstChild.focus();
      const typed = field.value.trim();
      done(save && field.validity.valid && typed !== text ? typed : null);
    };
    form.onsubmit = (event) => (event.preventDefault(), end(true));
    field.onkeydown = (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      end(false);
    };
    field.onblur = () => end(true);
  });
}
