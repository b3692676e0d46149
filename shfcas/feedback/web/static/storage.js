// Browser storage, with memory as a fallback where the browser refuses to store.

const memory = new Map();
let durable = true;

/** Returns false if something is stored in memory only, and so ends with the tab. */
export const isDurable = () => durable;

export function put(name, value) {
  const text = JSON.stringify(value);
  try {
    localStorage.setItem(name, text);
    memory.delete(name);
  } catch {
    durable = false;
    memory.set(name, text);
  }
}

export function take(name) {
  try {
    const text = memory.get(name) ?? localStorage.getItem(name);
    return text === null ? null : JSON.parse(text);
  } catch {
    return null;
  }
}

export function drop(name) {
  memory.delete(name);
  try {
    localStorage.removeItem(name);
  } catch {
    // The browser never stored it.
  }
}

/** Returns the stored names with this prefix, sorted. */
export function names(prefix) {
  const all = new Set(memory.keys());
  try {
    for (let index = 0; index < localStorage.length; index++) all.add(localStorage.key(index));
  } catch {
    // Only memory, then.
  }
  return [...all].filter((name) => name.startsWith(prefix)).sort();
}
