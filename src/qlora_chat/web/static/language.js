// The page in its reader's language. A text's key is its English sentence, so what has no entry stays English. Sentences of the
// server come with their values filled in, and are recognised by their pattern.

import { read, write } from "./memory.js";

const LANGUAGES = ["en", "de", "es", "fr", "ja", "zh-Hans"]; // with a name in templates.html
const KEY = "qlora-chat.language";
const NUMBER = /^(-?\d{1,3}(?:,?\d{3})*(?:\.\d+)?)( ?\D{0,3})$/; // as the server writes them
const SHORT = 8; // characters of a pattern besides its values
const SHOWN = ["aria-label", "data-empty", "data-label", "placeholder", "title"];
// What our own modules draw is translated there; what a person or a model wrote is not, but for what the page says in it.
const OWN = ".own, script, style";
const NOT_OWN = ".translated";

export const chosen = read(KEY) ?? "";
let entries = new Map();
export const language = await load(LANGUAGES.includes(chosen) ? chosen : ofBrowser());
let patterns = null;

function ofBrowser() {
  const base = (tag) => tag.split("-")[0];
  const known = navigator.languages.map((each) => LANGUAGES.find((code) => base(code) === base(each)));
  return known.find(Boolean) ?? "en";
}

async function load(code) {
  if (code === "en") return code;
  try {
    const response = await fetch(new URL(`languages/${code}.json`, import.meta.url));
    entries = new Map(Object.entries(await response.json()));
    return code;
  } catch {
    return "en";
  }
}

// Takes a language ("": the browser's) from now on.
export function choose(code) {
  if (write(KEY, code)) location.reload();
}

export const number = (value, options) => new Intl.NumberFormat(language, options).format(value);
export const date = (time, options) => new Intl.DateTimeFormat(language, options).format(time);

// -> a text in the page's language, with {name} replaced by values: t("{count} added", { count: 3 })
export function t(text, values) {
  const entry = entries.get(text);
  if (entry !== undefined || values) return fill(entry ?? text, values ?? {});
  return entries.size && text ? recognised(text) : text;
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name] ?? whole;
    return typeof value === "number" ? number(value) : value;
  });
}

// A number ("1,234", "97.3%", "1.20 GiB"), or a sentence with its values filled in.
function recognised(text) {
  const [, digits, unit] = NUMBER.exec(text) ?? [];
  if (digits) return formatted(digits) + unit;
  patterns ??= [...entries].filter(([key]) => /\{\w+\}/.test(key)).map(pattern).sort((one, other) => other.length - one.length);
  for (const { expression, names, entry } of patterns) {
    const found = expression.exec(text);
    const said = (name, index) => [name, name === "title" ? found[index + 1] : t(found[index + 1])]; // a title is a person's own
    if (found) return fill(entry, Object.fromEntries(names.map(said)));
  }
  return text;
}

function formatted(digits) {
  const minimumFractionDigits = digits.split(".")[1]?.length ?? 0;
  const useGrouping = digits.includes(","); // a seed has none
  return number(digits.replaceAll(",", ""), { minimumFractionDigits, maximumFractionDigits: 20, useGrouping });
}

// The longest pattern is the most specific one; a short one is sure of itself only where its values are numbers.
function pattern([key, entry]) {
  const parts = key.split(/\{\w+\}/).map((each) => each.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const names = [...key.matchAll(/\{(\w+)\}/g)].map((each) => each[1]);
  return { expression: new RegExp(`^${parts.join(parts.join("").length < SHORT ? "([\\d,.?]+%?)" : "(.+?)")}$`, "s"), names, entry, length: parts.join("").length };
}

const written = new WeakMap(); // texts that are translated already, by their node

// What Gradio draws, now and later.
export function translate(node) {
  if (node.nodeType === Node.TEXT_NODE) {
    if (written.get(node) === node.data) return;
    const text = node.data.trim();
    const said = t(text);
    if (said === text) return;
    node.data = node.data.replace(text, () => said);
    written.set(node, node.data);
  } else if (node.matches?.(OWN)) {
    node.querySelectorAll(NOT_OWN).forEach(translate);
  } else {
    translateAttributes(node);
    node.childNodes.forEach(translate);
  }
}

function translateAttributes(node) {
  for (const { name, value } of node.attributes ?? []) {
    if (SHOWN.includes(name) && t(value) !== value) node.setAttribute(name, t(value));
  }
}

function watch() {
  const isOwn = (node) => (node.nodeType === Node.TEXT_NODE ? node.parentElement : node)?.closest(OWN);
  new MutationObserver((changes) => {
    for (const { type, target, addedNodes } of changes) {
      if (isOwn(target)) continue;
      if (type === "attributes") translateAttributes(target);
      else (type === "characterData" ? [target] : addedNodes).forEach(translate);
    }
  }).observe(document.body, { childList: true, characterData: true, attributeFilter: SHOWN, subtree: true });
  translate(document.body);
}

// Gradio names the browser's language, which the page need not be in.
function nameLanguage() {
  const root = document.documentElement;
  const set = () => root.lang !== language && (root.lang = language);
  set();
  new MutationObserver(set).observe(root, { attributeFilter: ["lang"] });
}

nameLanguage();
if (entries.size) watch();
