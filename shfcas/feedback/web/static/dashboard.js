// The dashboard: progress and agreement of all annotators.

import { get, root } from "./api.js";
import { barChart, lineChart, timeLabel } from "./charts.js";

const REFRESH = 10_000; // milliseconds
const main = document.getElementById("dashboard");
const status = document.getElementById("status");
const LABELS = { first: "First", second: "Second", tie: "Tie", both_bad: "Both bad", skip: "Skipped", flag: "Flagged" };
const STATES = {
  preferred: "One preferred", tie: "Tie", both_bad: "Both bad", flagged: "Flagged", skipped: "Only skipped", open: "Open",
};
const MISSING = "–";
let numbers = null;
let drawn = "";

const whole = (value) => (value ?? null) === null ? MISSING : Math.round(value).toLocaleString("en");
const decimal = (value, digits = 2) => ((value ?? null) === null ? MISSING : value.toFixed(digits).replace("-", "−"));
const percent = (value) => ((value ?? null) === null ? MISSING : `${Math.round(100 * value)} %`);

async function refresh() {
  try {
    numbers = await get("/api/dashboard");
    showProblem("");
    // Draws only new numbers, so that readers of a table with a screen reader keep their place.
    const text = JSON.stringify(numbers);
    if (text !== drawn) draw();
    drawn = text;
  } catch (error) {
    if (error.status === 401) return location.replace(`${root}/`);
    showProblem(error.status ? `The server says: ${error.message}` : "Offline: these numbers may be out of date");
  }
  setTimeout(refresh, REFRESH);
}

function showProblem(text) {
  status.dataset.state = text ? "waiting" : "";
  if (status.textContent !== text) status.textContent = text;
}

function draw() {
  const { report, progress, queue } = numbers;
  if (!report || !progress) {
    main.replaceChildren(node("p", "card", "There is no queue yet. This page checks again by itself."));
    return;
  }
  const open = [...main.querySelectorAll("details")].map((each) => each.open);
  main.replaceChildren(figures(report, progress, queue), overTime(report), people(report), agreement(report), answers(report));
  main.querySelectorAll("details").forEach((each, index) => (each.open = open[index] ?? false));
}

function figures(report, progress, queue) {
  const list = node("dl", "figures");
  const figure = (name, value, more) => {
    const pair = node("div");
    pair.append(node("dt", "", name), node("dd", "", value), node("dd", "soft", more));
    list.append(pair);
  };
  figure("Settled", whole(progress.settled), `of ${whole(progress.total)} comparisons of ${queue}`);
  figure("Answers", whole(progress.answers), `of ${whole(progress.wanted)} needed`);
  figure("People", whole(report.annotators.length), report.annotators.length === 1 ? "has answered" : "have answered");
  figure("Krippendorff’s alpha", decimal(report.alpha), report.alpha === null ? "needs two answers to the same" : "1 is agreement, 0 is chance");
  return list;
}

function overTime(report) {
  const part = section("Progress over time");
  const points = report.progress.map(([time, count]) => [Date.parse(time), count]);
  if (points.length < 2) {
    part.append(node("p", "soft", "A chart needs two answers."));
    return part;
  }
  const span = points.at(-1)[0] - points[0][0];
  const total = points.at(-1)[1];
  part.append(
    chart((width) => lineChart(points, width, `Answers over time: ${total} by ${timeLabel(points.at(-1)[0], span)}.`)),
    folded(table(["Until", "Answers"], thinned(points).map(([time, count]) => [new Date(time).toLocaleString("en-GB"), whole(count)]))),
  );
  return part;
}

/** Returns at most 24 of the points, including the last. */
function thinned(points) {
  const step = Math.ceil(points.length / 24);
  return points.filter((_, index) => (points.length - 1 - index) % step === 0);
}

function people(report) {
  const part = section("People");
  const rows = report.annotators.map((each) => [
    each.name,
    whole(each.answered),
    whole(each.skipped),
    whole(each.flagged),
    whole(each.answers_per_hour),
    decimal(each.median_seconds, 1),
    interval(each.left_share),
    percent(each.tie_share),
    selfAgreement(each.self_agreement),
    whole(each.informed),
    ...(report.known ? [knownAnswers(report.known[each.name])] : []),
  ]);
  const heads = ["Name", "Answered", "Skipped", "Flagged", "Per hour", "Median (s)", "Left [95 %]", "Ties", "Self-agreement", "Changed after why"];
  if (report.known) heads.push("Known answers [95 %]");
  part.append(
    rows.length ? table(heads, rows) : node("p", "soft", "Nobody has answered yet."),
    node("p", "note", "Left: share of preferences for the answer on the left. Sides are random, so about half is expected. " +
      "Self-agreement: share of repeated comparisons with the same answer. Changed after why: answers that were undone after " +
      "the annotator looked at why the comparison was asked." +
      (report.known ? " Known answers: share of the questions with a known answer that were answered like that." : "")),
  );
  return part;
}

const interval = (share) => (share ? `${percent(share.mean)} [${whole(100 * share.low)}, ${whole(100 * share.high)}]` : MISSING);
const knownAnswers = (share) => (share ? `${interval(share)} of ${whole(share.count)}` : MISSING);
const selfAgreement = (agreement) => (agreement?.n ? `${percent(agreement.share)} of ${whole(agreement.n)}` : MISSING);

function agreement(report) {
  const part = section("Agreement");
  const rows = report.pairs.map((each) => [each.annotators.join(" and "), whole(each.n), percent(each.share), decimal(each.kappa)]);
  part.append(
    rows.length ? table(["Pair", "Shared", "Same answer", "Cohen’s kappa"], rows) : node("p", "soft", "No two people have answered the same comparison."),
    node("p", "note", `Krippendorff’s alpha over all annotators: ${decimal(report.alpha)}. Kappa and alpha: 1 is complete agreement, 0 is ` +
      "chance. First, second, tie and both bad are four different answers."),
  );
  return part;
}

function answers(report) {
  const both = node("div", "columns");
  const half = (title, names, counts, note) => {
    const part = section(title);
    const rows = Object.entries(names).map(([key, name]) => [name, counts[key] ?? 0]);
    part.append(
      chart((width) => barChart(rows, width, `${title}: ${rows.map(([name, value]) => `${name} ${value}`).join(", ")}.`)),
      folded(table([title, "Count"], rows.map(([name, value]) => [name, whole(value)]))),
      node("p", "note", note),
    );
    both.append(part);
  };
  half("Answers", LABELS, report.labels, "First and second: order in the queue, whatever side they were on. Without repeats.");
  half("Comparisons", STATES, report.states, "Verdict of each comparison, from all its answers.");
  return both;
}

// Nodes

function node(name, kind = "", text = "") {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  if (text) element.textContent = text;
  return element;
}

function section(title) {
  const part = node("section", "card");
  part.append(node("h2", "", title));
  part.setAttribute("aria-label", title);
  return part;
}

function table(heads, rows) {
  const whole = node("table");
  const head = node("thead");
  head.append(cells("th", heads, "col"));
  const body = node("tbody");
  body.append(...rows.map((row) => cells("td", row, "row")));
  whole.append(head, body);
  const scroller = node("div", "scroll");
  scroller.tabIndex = 0;
  scroller.setAttribute("role", "region");
  scroller.setAttribute("aria-label", `Table: ${heads.join(", ")}`);
  scroller.append(whole);
  return scroller;
}

function cells(kind, texts, scope) {
  const row = node("tr");
  texts.forEach((text, index) => {
    const cell = node(index ? kind : "th", "", text);
    if (!index || kind === "th") cell.scope = scope;
    row.append(cell);
  });
  return row;
}

function folded(content) {
  const details = node("details");
  details.append(node("summary", "", "As a table"), content);
  return details;
}

/** Returns a frame whose chart fills the available width. */
function chart(make) {
  const frame = node("div", "chart");
  new ResizeObserver(([{ contentRect }]) => {
    const width = Math.floor(contentRect.width);
    if (width && width !== Number(frame.firstChild?.getAttribute("width"))) frame.replaceChildren(make(width));
  }).observe(frame);
  return frame;
}

refresh();
