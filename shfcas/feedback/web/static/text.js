// Untrusted text as DOM nodes: text nodes only, with a visible mark for each character that would hide, reorder or
// disguise text.

// Control characters except newline and tab; format characters except joiners (of scripts and emoji) and visible number
// signs (Arabic and others); halves of surrogate pairs; line separators; blank letters.
const UNSEEN = new RegExp(
  "(?![\\n\\t\\u200C\\u200D\\u0600-\\u0605\\u06DD\\u070F\\u0890\\u0891\\u08E2\\u{110BD}\\u{110CD}])" +
    "[\\p{Cc}\\p{Cf}\\p{Cs}\\u2028\\u2029\\u115F\\u1160\\u3164\\uFFA0]",
  "u",
);
const RUN = new RegExp(`(${UNSEEN.source})\\1*`, "gu");
const MARKS = 500; // further marks are plain text: a million elements would freeze the browser
const BLOCK = 20_000;
const LONG = 100_000;

/** Returns the text of a mark: `<U+202E>`, or `<U+202E ×3>` for three in a row. */
export function markOf(character, count) {
  const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return count > 1 ? `<U+${code} ×${count}>` : `<U+${code}>`;
}

/** Returns the text with uniform newlines. Ranges of `differences` refer to this form. */
export function normalized(text) {
  return text.replaceAll("\r\n", "\n");
}

/**
 * Replaces the content of an element with a text.
 * @param {Element} element
 * @param {string} text normalized text
 * @param {Array<[number, number]>} ranges start and end of the parts marked as different, in order
 */
export function showText(element, text, ranges = []) {
  const budget = { marks: MARKS };
  if (text.length <= LONG) {
    const parts = document.createDocumentFragment();
    write(parts, text, 0, text.length, ranges, 0, budget);
    element.replaceChildren(parts);
    return;
  }
  // Blocks that the browser lays out only when they are scrolled to. Each ends with a line, so readers see no seam.
  const blocks = [];
  let next = 0;
  for (let start = 0; start < text.length; ) {
    const newline = start + BLOCK < text.length ? text.indexOf("\n", start + BLOCK) : -1;
    const end = newline < 0 ? text.length : newline + 1;
    const block = document.createElement("div");
    block.className = "block";
    next = write(block, text, start, end, ranges, next, budget);
    blocks.push(block);
    start = end;
  }
  element.replaceChildren(...blocks);
}

/** Appends text[start:end]; returns the index of the first range that reaches past the end. */
function write(parent, text, start, end, ranges, next, budget) {
  let at = start;
  for (; next < ranges.length && ranges[next][0] < end; next++) {
    const [from, to] = ranges[next];
    plain(parent, text.slice(at, Math.max(at, from)), budget);
    const mark = document.createElement("mark");
    plain(mark, text.slice(Math.max(at, from), Math.min(to, end)), budget);
    parent.append(mark);
    at = Math.min(to, end);
    if (to > end) return next;
  }
  plain(parent, text.slice(at, end), budget);
  return next;
}

function plain(parent, text, budget) {
  let written = "";
  let at = 0;
  for (const match of text.matchAll(RUN)) {
    written += text.slice(at, match.index);
    at = match.index + match[0].length;
    const label = markOf(match[1], match[0].length / match[1].length);
    if (budget.marks-- <= 0) {
      written += label;
      continue;
    }
    if (written) parent.append(written);
    written = "";
    const chip = document.createElement("span");
    chip.className = "unseen-character";
    chip.textContent = label;
    parent.append(chip);
  }
  written += text.slice(at);
  if (written) parent.append(written);
}
