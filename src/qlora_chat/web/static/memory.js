// What one tab remembers by itself: which conversation it shows, and how it likes its answers.
// The conversation's id is kept for the tab, the settings for the browser. Nothing else is stored.

const CONVERSATION = "qlora-chat.conversation";
const TAB = "qlora-chat.tab";
const BROWSER = "qlora-chat.browser";
// The server refuses a longer system text, in a message as in what a tab remembers: a tab that kept it could not be reloaded.
const LONGEST_SYSTEM = 20000;

function read(store, key) {
  try {
    return JSON.parse(store.getItem(key));
  } catch {
    return null;
  }
}

function write(store, key, value) {
  try {
    store.setItem(key, JSON.stringify(value));
  } catch {
    // Storage is full or forbidden: the page works, and forgets.
  }
}

// -> one JSON text for the server: {conversation, reloaded, address, adapter, system, logged, browser}
export function recall() {
  const [navigation] = performance.getEntriesByType("navigation");
  return [
    JSON.stringify({
      conversation: read(sessionStorage, CONVERSATION),
      reloaded: navigation?.type === "reload",
      address: new URL(location).searchParams.get("c"),
      ...read(sessionStorage, TAB),
      browser: browser(),
    }),
  ];
}

// A secret that this browser drew for itself: it tells its own conversations from those of others on a shared page.
export function browser() {
  let secret = read(localStorage, BROWSER);
  if (typeof secret !== "string") {
    secret = Array.from(crypto.getRandomValues(new Uint8Array(32)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    write(localStorage, BROWSER, secret);
  }
  // Another page process that takes over reads it here; it is in no URL and goes to no other site.
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `qlora_chat_owner${location.port}=${secret}; Path=/gradio_api; Max-Age=34560000; SameSite=Strict${secure}`;
  return secret;
}

export function rememberConversation(id) {
  write(sessionStorage, CONVERSATION, id);
}

export function rememberTab(adapter, system, logged) {
  const sendable = (system ?? "").length <= LONGEST_SYSTEM;
  write(sessionStorage, TAB, { adapter, system: sendable ? system : "", logged });
}
