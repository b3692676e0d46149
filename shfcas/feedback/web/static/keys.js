// Which key does what: one table for the handler and for the list that `?` shows.

import { put, take } from "./storage.js";

const ON = "shfcas/keys";

// `code` is the place of a key, which is the same on every keyboard; `key` is what is printed on it.
export const KEYS = [
  { does: "left", shown: ["1", "←"], says: "A is better", codes: ["Digit1", "Numpad1", "ArrowLeft"] },
  { does: "right", shown: ["2", "→"], says: "B is better", codes: ["Digit2", "Numpad2", "ArrowRight"] },
  { does: "left-clearly", shown: ["⇧ 1", "⇧ ←"], says: "A is clearly better", codes: ["Digit1", "ArrowLeft"], shift: true },
  { does: "right-clearly", shown: ["⇧ 2", "⇧ →"], says: "B is clearly better", codes: ["Digit2", "ArrowRight"], shift: true },
  { does: "left-slightly", shown: [","], says: "A is slightly better", keys: [",", "<"] },
  { does: "right-slightly", shown: ["."], says: "B is slightly better", keys: [".", ">"] },
  { does: "tie", shown: ["t"], says: "Tie", keys: ["t"] },
  { does: "both_bad", shown: ["b"], says: "Both are bad", keys: ["b"] },
  { does: "skip", shown: ["s"], says: "Skip: somebody else may be asked", keys: ["s"] },
  { does: "flag", shown: ["f"], says: "Flag: nobody should be asked this", keys: ["f"] },
  { does: "undo", shown: ["u"], says: "Undo the last answer", keys: ["u"] },
  { does: "comment", shown: ["c"], says: "Write a comment", keys: ["c"] },
  { does: "differences", shown: ["d"], says: "Mark the words that differ", keys: ["d"] },
  { does: "fixed", shown: ["m"], says: "Letters of fixed width", keys: ["m"] },
  { does: "why", shown: ["w"], says: "Why the last one was asked", keys: ["w"] },
  { does: "guidelines", shown: ["g"], says: "Guidelines", keys: ["g"] },
  { does: "scroll", shown: ["↑ ↓", "Space"], says: "Scroll both answers" },
  { does: "keys", shown: ["?"], says: "This list", keys: ["?"] },
];

export const areOn = () => take(ON) ?? true;
export const turn = (on) => put(ON, on);

/** Calls `act(does)` for each key of the table; not in a field, not while a dialog is open, not held down. */
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
    if (!event.repeat) act(row.does);
  });
}

function matches(row, event) {
  if (row.codes?.includes(event.code)) return Boolean(row.shift) === event.shiftKey;
  return row.keys?.includes(event.key.toLowerCase()) ?? false;
}

const isField = (element) => element.isContentEditable || element.matches("input, textarea, select");

/** Fills the list of `?`. */
export function list(parent) {
  parent.replaceChildren(
    ...KEYS.flatMap((row) => {
      const term = document.createElement("dt");
      row.shown.forEach((key, index) => {
        const kbd = document.createElement("kbd");
        kbd.textContent = key;
        term.append(...(index ? [" ", kbd] : [kbd]));
      });
      const meaning = document.createElement("dd");
      meaning.textContent = row.says;
      return [term, meaning];
    }),
  );
}
