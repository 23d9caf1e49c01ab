// Requests about conversations. Each carries the browser's secret, by which a shared page tells people apart.

import { t } from "./language.js";
import { browser } from "./memory.js";

export const FORMATS = { markdown: "Markdown", json: "JSON", jsonl: "JSON lines", guanaco: "Guanaco text" };
const CHATS = "page/chats";
const LARGEST = 32 * 2 ** 20; // of an import; the server refuses more

function send(path, body = null) {
  const headers = { "x-qlora-chat-owner": browser() };
  return fetch(new URL(path, document.baseURI), body === null ? { headers } : { method: "POST", headers, body });
}

async function checked(response) {
  if (response.ok) return response;
  const text = await response.text();
  let problem = text;
  try {
    problem = JSON.parse(text).problem ?? JSON.parse(text).detail?.[0]?.msg ?? text;
  } catch {
    // plain text, from the guard in front of the page
  }
  throw new Error(problem || t("The server answered {status}.", { status: response.status }));
}

async function sent(path, body) {
  try {
    return await checked(await send(path, body));
  } catch (problem) {
    if (problem instanceof TypeError) throw new Error(t("The server cannot be reached."));
    throw problem;
  }
}

// -> a page of the list; with `change`, the change is made instead
export async function request(parameters, change = null) {
  const query = new URLSearchParams(parameters).toString();
  const response = await sent(query ? `${CHATS}?${query}` : CHATS, change && JSON.stringify(change));
  return response.json();
}

// Downloads conversations as a file.
export async function save(ids, format) {
  const response = await sent(`${CHATS}/export`, JSON.stringify({ ids, format }));
  const name = decodeURIComponent(/filename\*=UTF-8''(.+)$/.exec(response.headers.get("content-disposition") ?? "")?.[1] ?? "chats");
  const address = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  Object.assign(link, { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

// -> {count, file}: conversations are saved from now on
export async function startSaving() {
  return (await sent(`${CHATS}/save`, "")).json();
}

// -> the report of an import
export async function upload(file) {
  if (file.size > LARGEST) throw new Error(t("This file is larger than 32 MB: import it with `qlora-chat history import`."));
  return (await sent(`${CHATS}/import?name=${encodeURIComponent(file.name.slice(-200))}`, await file.arrayBuffer())).json();
}
