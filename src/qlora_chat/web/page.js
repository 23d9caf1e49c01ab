// What one tab remembers by itself: which conversation it shows, and how it likes its answers.
// The conversation's id is kept for the tab, the settings for the browser. Nothing else is stored.

const CONVERSATION = "qlora-chat.conversation";
const TAB = "qlora-chat.tab";
const SAMPLING = "qlora-chat.sampling";

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

// -> one JSON text for the server: {conversation, reloaded, system, logged, sampling}
export function recall() {
  const [navigation] = performance.getEntriesByType("navigation");
  return [
    JSON.stringify({
      conversation: read(sessionStorage, CONVERSATION),
      reloaded: navigation?.type === "reload",
      ...read(sessionStorage, TAB),
      sampling: read(localStorage, SAMPLING),
    }),
  ];
}

export function rememberConversation(id) {
  write(sessionStorage, CONVERSATION, id);
}

export function rememberTab(system, logged) {
  write(sessionStorage, TAB, { system, logged });
}

export function rememberSampling(...values) {
  write(localStorage, SAMPLING, values);
  return values;
}
