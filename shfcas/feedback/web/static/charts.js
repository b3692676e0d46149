// Charts of the dashboard as SVG nodes. Each has a table of the same numbers beside it.

const SPACE = "http://www.w3.org/2000/svg";
const MARGIN = { top: 12, right: 16, bottom: 28, left: 44 };
const HEIGHT = 220;
const BAR = 34;

function svg(name, attributes = {}, text = "") {
  const element = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
}

function emptyChart(width, height, label) {
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
}

/** Returns about `count` round values from 0 to at least `most`. */
export function ticks(most, count = 4) {
  const rough = Math.max(most, 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].find((each) => each * power >= rough) * power);
  const values = [0];
  while (values.at(-1) < most) values.push(values.at(-1) + step);
  return values;
}

/**
 * Draws a count that grows over time.
 * @param {Array<[number, number]>} points milliseconds and count, in order
 */
export function lineChart(points, width, label) {
  const chart = emptyChart(width, HEIGHT, label);
  const [start, end] = [points[0][0], points.at(-1)[0]];
  const levels = ticks(points.at(-1)[1]);
  const x = (time) => MARGIN.left + ((time - start) / Math.max(end - start, 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => HEIGHT - MARGIN.bottom - (value / levels.at(-1)) * (HEIGHT - MARGIN.top - MARGIN.bottom);

  for (const level of levels) {
    chart.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(level), y2: y(level) }),
      svg("text", { x: MARGIN.left - 8, y: y(level) + 4, "text-anchor": "end" }, level.toLocaleString("en")),
    );
  }
  for (const time of timeTicks(start, end, Math.max(2, Math.floor(width / 120)))) {
    chart.append(svg("text", { x: x(time), y: HEIGHT - 8, "text-anchor": "middle" }, timeLabel(time, end - start)));
  }
  const path = points.map(([time, value], index) => `${index ? "L" : "M"}${x(time).toFixed(1)},${y(value).toFixed(1)}`).join("");
  chart.append(
    svg("path", { class: "area", d: `${path}L${x(end).toFixed(1)},${y(0)}L${x(start).toFixed(1)},${y(0)}Z` }),
    svg("path", { class: "curve", d: path }),
  );
  return chart;
}

/** Returns at most `count` round clock times between two times. */
export function timeTicks(start, end, count) {
  const minute = 60_000;
  const minutes = [1 / 60, 1 / 12, 1 / 4, 1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10_080, 40_320];
  const steps = minutes.map((each) => each * minute);
  const step = steps.find((each) => (end - start) / each <= count) ?? Math.ceil((end - start) / count);
  const zone = new Date(start).getTimezoneOffset() * minute;
  const times = [];
  for (let time = Math.ceil((start - zone) / step) * step + zone; time <= end; time += step) times.push(time);
  return times;
}

/** Formats a time as exactly as the whole span needs. */
export function timeLabel(time, span) {
  const day = 24 * 3600 * 1000;
  if (span >= day) return new Date(time).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  const second = span < 600_000 ? { second: "2-digit" } : {};
  return new Date(time).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", ...second });
}

/**
 * Draws one horizontal bar per row, with its name and value.
 * @param {Array<[string, number]>} rows
 */
export function barChart(rows, width, label) {
  const chart = emptyChart(width, rows.length * BAR, label);
  const most = Math.max(1, ...rows.map(([, value]) => value));
  const [left, right] = [110, 56];
  rows.forEach(([name, value], index) => {
    const middle = index * BAR + BAR / 2;
    const length = (value / most) * Math.max(width - left - right, 1);
    chart.append(
      svg("text", { x: 0, y: middle + 4 }, name),
      svg("rect", { class: "bar", x: left, y: middle - 9, width: Math.max(length, 1), height: 18, rx: 4 }),
      svg("text", { class: "value", x: left + length + 8, y: middle + 4 }, value.toLocaleString("en")),
    );
  });
  return chart;
}
