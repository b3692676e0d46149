// Keyboard shortcuts: one table for the handler and for the list that `?` shows.

import { put, take } from "./storage.js";

const ON = "shfcas/keys";

// `codes` are positions of keys, the same on every keyboard; `keys` are the characters printed on them.
export const KEYS = [
  { action: "left", labels: ["1", "←"], meaning: "A is better", codes: ["Digit1", "Numpad1", "ArrowLeft"] },
  { action: "right", labels: ["2", "→"], meaning: "B is better", codes: ["Digit2", "Numpad2", "ArrowRight"] },
  { action: "left-clearly", labels: ["⇧ 1", "⇧ ←"], meaning: "A is clearly better", codes: ["Digit1", "ArrowLeft"], shift: true },
  { action: "right-clearly", labels: ["⇧ 2", "⇧ →"], meaning: "B is clearly better", codes: ["Digit2", "ArrowRight"], shift: true },
  { action: "left-slightly", labels: [","], meaning: "A is slightly better", keys: [",", "<"] },
  { action: "right-slightly", labels: ["."], meaning: "B is slightly better", keys: [".", ">"] },
  { action: "tie", labels: ["t"], meaning: "Tie", keys: ["t"] },
  { action: "both_bad", labels: ["b"], meaning: "Both are bad", keys: ["b"] },
  { action: "skip", labels: ["s"], meaning: "Skip: leave it to someone else", keys: ["s"] },
  { action: "flag", labels: ["f"], meaning: "Flag: nobody should be asked this", keys: ["f"] },
  { action: "undo", labels: ["u"], meaning: "Undo the last answer", keys: ["u"] },
  { action: "comment", labels: ["c"], meaning: "Write a comment", keys: ["c"] },
  { action: "differences", labels: ["d"], meaning: "Mark the differences", keys: ["d"] },
  { action: "fixed", labels: ["m"], meaning: "Fixed-width font", keys: ["m"] },
  { action: "why", labels: ["w"], meaning: "Why you were asked the last one", keys: ["w"] },
  { action: "guidelines", labels: ["g"], meaning: "Guidelines", keys: ["g"] },
  { action: "scroll", labels: ["↑ ↓", "Space"], meaning: "Scroll both answers" },
  { action: "keys", labels: ["?"], meaning: "This list", keys: ["?"] },
];

export const areOn = () => take(ON) ?? true;
export const turn = (on) => put(ON, on);

/** Calls `act(action)` for the keys of the table, except in a field, behind a dialog, and for a key held down. */
export function listen(act, scroll) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (isField(event.target) || document.querySelector("dialog[open]") || !areOn()) return;
    if (scroll(event)) {
      event.preventDefault();
      return;
    }
    const row = KEYS.find((each) => matches(each, event));
    if (!row) return;
    event.preventDefault();
    if (!event.repeat) act(row.action);
  });
}

function matches(row, event) {
  if (row.codes?.includes(event.code)) return Boolean(row.shift) === event.shiftKey;
  return row.keys?.includes(event.key.toLowerCase()) ?? false;
}

const isField = (element) => element.isContentEditable || element.matches("input, textarea, select");

/** Fills the list that `?` shows. */
export function list(parent) {
  parent.replaceChildren(
    ...KEYS.flatMap((row) => {
      const term = document.createElement("dt");
      row.labels.forEach((key, index) => {
        const kbd = document.createElement("kbd");
        kbd.textContent = key;
        term.append(...(index ? [" ", kbd] : [kbd]));
      });
      const meaning = document.createElement("dd");
      meaning.textContent = row.meaning;
      return [term, meaning];
    }),
  );
}
