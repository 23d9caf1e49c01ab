// Requests of the page's own parts, and files.

import { h } from "./dom.js";
import { t } from "./language.js";
import { browser } from "./memory.js";

// -> the server's response, to a POST where there is a body; an Error says in words why there is none
async function response(path, body) {
  const method = body === undefined ? "GET" : "POST";
  const options = { method, body, headers: { "x-qlora-chat-owner": browser() } };
  const answer = await fetch(new URL(`page/${path}`, document.baseURI), options).catch(() => null);
  if (!answer) throw new Error(t("The server cannot be reached."));
  if (answer.ok) return answer;
  const text = await answer.text(); // JSON of a route, or plain text of the guard in front of the page
  const problem = text.startsWith("{") ? JSON.parse(text).problem : text;
  throw new Error(t(problem) || t("The server answered {status}.", { status: answer.status }));
}

export async function request(path, body) {
  return (await response(path, body)).json();
}

export function sendFile(path, file) {
  return request(`${path}?name=${encodeURIComponent(file.name.slice(-200))}`, file);
}

// Saves what the server makes of a request as a file.
export async function download(path, body) {
  const answer = await response(path, body);
  const [, name] = /filename\*=UTF-8''(.+)$/.exec(answer.headers.get("content-disposition"));
  const href = URL.createObjectURL(await answer.blob());
  h("a", { href, download: decodeURIComponent(name) }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
