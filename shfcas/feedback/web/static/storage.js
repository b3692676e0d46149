// What this browser keeps, under names of its own. A browser that keeps nothing is told from one that does.

const memory = new Map();
let durable = true;

/** Whether everything that was put in is still there after the tab is closed. */
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
    // It was never there.
  }
}

/** The names that begin so, in order. */
export function names(prefix) {
  const found = new Set(memory.keys());
  try {
    for (let index = 0; index < localStorage.length; index++) found.add(localStorage.key(index));
  } catch {
    // Only what is in memory, then.
  }
  return [...found].filter((name) => name.startsWith(prefix)).sort();
}
