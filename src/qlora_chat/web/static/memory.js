// What the browser remembers of a tab, and for all tabs. Where storage is full or forbidden, the page works and forgets.

const CONVERSATION = "qlora-chat.conversation";
const TAB = "qlora-chat.tab";
const LONGEST_SYSTEM = 20000; // the server refuses a longer one, so that the tab could not be reloaded

export function read(key, store = "localStorage") {
  try {
    return JSON.parse(window[store].getItem(key));
  } catch {
    return null;
  }
}

// -> whether it is remembered
export function write(key, value, store = "localStorage") {
  try {
    window[store].setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

// -> one JSON text for the server
export function recall() {
  const [navigation] = performance.getEntriesByType("navigation");
  return [
    JSON.stringify({
      conversation: read(CONVERSATION, "sessionStorage"),
      reloaded: navigation?.type === "reload",
      address: new URL(location).searchParams.get("c"),
      ...read(TAB, "sessionStorage"),
      browser: browser(),
    }),
  ];
}

// A secret that this browser drew for itself: it tells its own conversations from those of others on a shared page.
export function browser() {
  let secret = read("qlora-chat.browser");
  if (typeof secret !== "string") {
    secret = Array.from(crypto.getRandomValues(new Uint8Array(32)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    write("qlora-chat.browser", secret);
  }
  // Another page process that takes over reads it here; it is in no URL and goes to no other site.
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `qlora_chat_owner${location.port}=${secret}; Path=/gradio_api; Max-Age=34560000; SameSite=Strict${secure}`;
  return secret;
}

export function rememberConversation(id) {
  write(CONVERSATION, id, "sessionStorage");
}

export function rememberTab(adapter, system, logged) {
  const sendable = (system ?? "").length <= LONGEST_SYSTEM;
  write(TAB, { adapter, system: sendable ? system : "", logged }, "sessionStorage");
}
