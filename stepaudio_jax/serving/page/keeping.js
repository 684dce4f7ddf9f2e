// Keeps the dialogue of this tab in the browser, sound included, so that a reload loses nothing.

import { randomId } from "/page/dom.js";

const DATABASE = "stepaudio_jax";
const STORE = "dialogues";
const KEPT_MS = 24 * 3600 * 1000;

function open() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

async function withStore(mode, use) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const asked = use(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(asked.result);
      transaction.onerror = () => reject(transaction.error);
      transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

// A browser may refuse storage (private windows, full disks); the page then works without it.
export async function load(name) {
  try {
    return (await withStore("readonly", (store) => store.get(name)))?.value;
  } catch {
    return undefined;
  }
}

export async function keep(name, value) {
  try {
    await withStore("readwrite", (store) => store.put({ value, saved: Date.now() }, name));
    return true;
  } catch {
    return false;
  }
}

// Drops what tabs left that were closed: nobody can get back to it, and it may hold a voice.
export async function dropOld() {
  try {
    await withStore("readwrite", (store) => {
      const asked = store.openCursor();
      asked.onsuccess = () => {
        const cursor = asked.result;
        if (!cursor) return;
        if (!(cursor.value?.saved > Date.now() - KEPT_MS)) cursor.delete();
        cursor.continue();
      };
      return asked;
    });
  } catch {
    // Nothing is stored.
  }
}

// Returns a name that this tab has, and a reload of it, and no other.
export function tabName(purpose) {
  const key = `stepaudio_jax.${purpose}`;
  try {
    const name = sessionStorage.getItem(key) ?? `${purpose}.${randomId()}`;
    sessionStorage.setItem(key, name);
    return name;
  } catch {
    return purpose;
  }
}

export function forgetTabName(purpose) {
  try {
    sessionStorage.removeItem(`stepaudio_jax.${purpose}`);
  } catch {
    // There was none.
  }
}

export async function drop(name) {
  try {
    await withStore("readwrite", (store) => store.delete(name));
  } catch {
    // There was nothing to drop.
  }
}

export function setting(name, fallback) {
  try {
    return localStorage.getItem(`stepaudio_jax.${name}`) ?? fallback;
  } catch {
    return fallback;
  }
}

export function setSetting(name, value) {
  try {
    localStorage.setItem(`stepaudio_jax.${name}`, value);
  } catch {
    // The setting lasts as long as the page.
  }
}
