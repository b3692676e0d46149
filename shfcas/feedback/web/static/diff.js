// Differences of two texts by word, from the longest common subsequence of their words.

const WORD = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}_]+|[^\s]/gu;
const LINE = /[^\n]+/g;
const CELLS = 4_000_000; // maximum size of the table of common subsequences: about 20 ms and 8 MB
const TOO_LONG = 3_000_000; // characters of both texts together

/**
 * Finds the ranges of each text that the other text lacks.
 * @returns {{left: Array<[number, number]>, right: Array<[number, number]>, by: "words"|"lines"|"ends"|"nothing"}}
 *   `by` is the granularity: long texts are compared by line. Of very long ones only the common start and end count.
 */
export function differences(left, right) {
  if (left.length + right.length > TOO_LONG) return { left: [], right: [], by: "nothing" };
  const words = compare(split(left, WORD), split(right, WORD));
  if (words) return { ...words, by: "words" };
  const a = split(left, LINE);
  const b = split(right, LINE);
  const lines = compare(a, b);
  if (lines) return { ...lines, by: "lines" };
  return { ...ends(a, b), by: "ends" };
}

function split(text, pattern) {
  const units = [];
  for (const match of text.matchAll(pattern)) {
    units.push({ text: match[0], start: match.index, end: match.index + match[0].length });
  }
  return units;
}

/** Counts the equal units at the start and, among the rest, at the end. */
function common(a, b) {
  const most = Math.min(a.length, b.length);
  let head = 0;
  while (head < most && a[head].text === b[head].text) head++;
  let tail = 0;
  while (tail < most - head && a[a.length - 1 - tail].text === b[b.length - 1 - tail].text) tail++;
  return [head, tail];
}

function compare(a, b) {
  const [head, tail] = common(a, b);
  const n = a.length - head - tail;
  const m = b.length - head - tail;
  if ((n + 1) * (m + 1) > CELLS || Math.min(n, m) > 65_535) return null;

  // table[i, j]: length of the longest common subsequence from i and j on. Words are numbered: numbers compare faster.
  const numbers = new Map();
  const number = (unit) => numbers.get(unit.text) ?? (numbers.set(unit.text, numbers.size), numbers.size - 1);
  const x = Int32Array.from(a.slice(head, head + n), number);
  const y = Int32Array.from(b.slice(head, head + m), number);
  const width = m + 1;
  const table = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      const here = i * width + j;
      table[here] = x[i] === y[j] ? table[here + width + 1] + 1 : Math.max(table[here + width], table[here + 1]);
    }
  }

  const onlyLeft = [];
  const onlyRight = [];
  let i = 0;
  let j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && x[i] === y[j]) {
      i++;
      j++;
    } else if (j >= m || (i < n && table[(i + 1) * width + j] >= table[i * width + j + 1])) {
      onlyLeft.push(head + i++);
    } else {
      onlyRight.push(head + j++);
    }
  }
  return { left: ranges(a, onlyLeft), right: ranges(b, onlyRight) };
}

function ends(a, b) {
  const [head, tail] = common(a, b);
  const middle = (units) => (units.length > head + tail ? [[units[head].start, units.at(-1 - tail).end]] : []);
  return { left: middle(a), right: middle(b) };
}

/** Joins consecutive units to one range, with the white space between them. */
function ranges(units, indices) {
  const joined = [];
  let last = -2;
  for (const index of indices) {
    if (index === last + 1) joined.at(-1)[1] = units[index].end;
    else joined.push([units[index].start, units[index].end]);
    last = index;
  }
  return joined;
}
