// Requests about conversations.

import { t } from "./language.js";
import { ask } from "./memory.js";

const LARGEST = 32 * 2 ** 20; // of an import; the server refuses more

async function sent(path, body) {
  const response = await ask(`chats${path}`, body === undefined ? {} : { method: "POST", body }).catch(() => null);
  if (!response) throw new Error(t("The server cannot be reached."));
  if (response.ok) return response;
  let problem = await response.text();
  try {
    const { problem: said, detail } = JSON.parse(problem);
    problem = said ?? detail?.[0]?.msg ?? problem;
  } catch {
    // plain text, from the guard in front of the page
  }
  throw new Error(t(problem) || t("The server answered {status}.", { status: response.status }));
}

// -> a page of the list
export async function page(parameters) {
  return (await sent(`?${new URLSearchParams(parameters)}`)).json();
}

export async function change(values) {
  await sent("", JSON.stringify(values));
}

// Downloads conversations as a file.
export async function save(ids, format) {
  const response = await sent("/export", JSON.stringify({ ids, format }));
  const [, name = "chats"] = /filename\*=UTF-8''(.+)$/.exec(response.headers.get("content-disposition")) ?? [];
  const link = Object.assign(document.createElement("a"), {
    href: URL.createObjectURL(await response.blob()),
    download: decodeURIComponent(name),
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// -> {count, file}: conversations are saved from now on
export async function startSaving() {
  return (await sent("/save", "")).json();
}

// -> what was imported of a file, in words
export async function upload(file) {
  if (file.size > LARGEST) throw new Error(t("This file is larger than 32 MB: import it with `qlora-chat history import`."));
  const response = await sent(`/import?name=${encodeURIComponent(file.name.slice(-200))}`, file);
  return reportOf(await response.json());
}

function reportOf({ added, there, problems, more_problems, left_out }) {
  const parts = [t("{count} added", { count: added })];
  if (there) parts.push(t(there === 1 ? "{count} was there already" : "{count} were there already", { count: there }));
  for (const [what, count] of Object.entries(left_out)) parts.push(t("{count} left out ({what})", { count, what: t(what) }));
  const more = more_problems ? [t("and {count} more", { count: more_problems })] : [];
  return [`${parts.join(", ")}.`, ...problems.map((each) => t(each)), ...more].join("\n");
}
