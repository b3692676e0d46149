// Text that nobody vouches for becomes nodes: text nodes only, and a visible mark for each character that would hide,
// reorder or steer what is read.

// Controls but newline and tab, format characters but the joiners of scripts and emoji and the Arabic and other number
// signs that are drawn, halves of surrogate pairs, line separators, and letters that are blank.
const UNSEEN = new RegExp(
  "(?![\\n\\t\\u200C\\u200D\\u0600-\\u0605\\u06DD\\u070F\\u0890\\u0891\\u08E2\\u{110BD}\\u{110CD}])" +
    "[\\p{Cc}\\p{Cf}\\p{Cs}\\u2028\\u2029\\u115F\\u1160\\u3164\\uFFA0]",
  "u",
);
const RUN = new RegExp(`(${UNSEEN.source})\\1*`, "gu");
const MARKS = 500; // further ones are written as plain text: a million elements would stop the browser
const BLOCK = 20_000;
const LONG = 100_000;

/** The marks' text: `<U+202E>`, or `<U+202E ×3>` for three of them. */
export function markOf(character, count) {
  const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return count > 1 ? `<U+${code} ×${count}>` : `<U+${code}>`;
}

/** What is shown of a text: its newlines alike. Ranges of `differences` refer to this. */
export function shown(text) {
  return text.replaceAll("\r\n", "\n");
}

/**
 * Puts a text into an element, in place of what was there.
 * @param {Element} element
 * @param {string} text as `shown` returns it
 * @param {Array<[number, number]>} ranges start and end of what is marked as different, in order
 */
export function show(element, text, ranges = []) {
  const budget = { marks: MARKS };
  if (text.length <= LONG) {
    const parts = document.createDocumentFragment();
    write(parts, text, 0, text.length, ranges, 0, budget);
    element.replaceChildren(parts);
    return;
  }
  // Blocks that are laid out when they are scrolled to. They end with a line, so nothing looks different.
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
