// A file of dialogues, chosen or dropped: it goes to the server, and its path there into the box beside.

import { copy, takeDrops, type } from "./dom.js";
import { t } from "./language.js";
import { sendFile } from "./requests.js";

export function mount(element) {
  const { root, file, note } = copy("upload");
  file.onchange = async () => {
    const [dialogues] = file.files;
    note.textContent = t("It is being sent.");
    try {
      const { path } = await sendFile("train/data", dialogues);
      note.textContent = dialogues.name;
      type(document.querySelector("#train-data :is(input, textarea)"), path);
    } catch ({ message }) {
      note.textContent = message;
    }
  };
  takeDrops(root, file);
  element.replaceChildren(root);
}
