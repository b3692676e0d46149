// What the page shows of a comparison, of the last answer and of the state of things. It only reads the desk.

import { differences } from "./diff.js";
import { isDurable } from "./storage.js";
import { show, shown } from "./text.js";

export const $ = (id) => document.getElementById(id);

const ROLES = { system: "System", user: "User", assistant: "Assistant", tool: "Tool" };
const GRAIN = {
  words: "",
  lines: "These answers are long: whole lines are marked.",
  ends: "These answers are too long to compare: all is marked between where they begin and end alike.",
  nothing: "These answers are too long to compare.",
};

/** The words of a choice: `A clearly better`. */
export function words(choice, strength) {
  const side = { left: "A", right: "B" }[choice];
  if (side) return `${side} ${strength ? `${strength} ` : ""}better`;
  return { tie: "tie", both_bad: "both bad", skip: "skipped", flag: "flagged" }[choice] ?? choice;
}

export function showTask(task, number, marked) {
  $("work").dataset.item = task.id;
  $("heading").textContent = `Comparison ${number}`;
  showPrompt(task.prompt);
  showAnswers(task, marked);
  for (const id of ["prompt", "left", "right"]) $(id).scrollTop = 0;
}

export function showAnswers(task, marked) {
  const left = shown(task.left.text);
  const right = shown(task.right.text);
  const found = marked ? differences(left, right) : { left: [], right: [], by: "words" };
  show($("left"), left, found.left);
  show($("right"), right, found.right);
  $("differences").setAttribute("aria-pressed", String(marked));
  $("differences-note").textContent = marked && left === right ? "The answers are the same, word for word." : GRAIN[found.by];
}

function showPrompt(prompt) {
  if (typeof prompt === "string") {
    const text = node("div", "text");
    text.dir = "auto";
    show(text, shown(prompt));
    $("prompt").replaceChildren(text);
    return;
  }
  $("prompt").replaceChildren(...prompt.map(turn));
}

function turn({ role, content }) {
  const text = node("div", "text");
  text.dir = "auto";
  show(text, shown(content));
  const label = node(role === "system" ? "summary" : "h3", "role");
  if (ROLES[role]) label.textContent = ROLES[role];
  else show(label, shown(String(role)));
  const whole = node(role === "system" ? "details" : "div", `turn turn-${ROLES[role] ? role : "other"}`);
  whole.append(label, text);
  return whole;
}

export function showProgress(desk, outbox) {
  const { progress, mine } = desk;
  $("progress").hidden = !progress;
  if (!progress) return;
  $("bar").max = Math.max(mine.done + mine.left, 1);
  $("bar").value = mine.done;
  $("counts").textContent = `${count(mine.done)} answered, ${count(mine.left)} left`;
  $("pace").textContent = desk.pace ? `${count(Math.round(desk.pace))} an hour${timeLeft(mine.left / desk.pace)}` : "";
  $("everyone").textContent = `all: ${count(progress.settled)} of ${count(progress.total)} settled`;
  $("done-text").textContent = outbox.size
    ? `You have answered ${count(mine.done)}. ${kept(outbox.size)}; leave the page open until they are saved.`
    : `You have answered ${count(mine.done)}. All of it is saved.`;
}

const count = (number) => number.toLocaleString("en");
const kept = (number) => `${number} ${number === 1 ? "answer" : "answers"} kept here`;

function timeLeft(hours) {
  if (!(hours > 0)) return "";
  const minutes = Math.max(1, Math.round(hours * 60));
  if (minutes < 60) return `, about ${minutes} min left`;
  const steps = Math.round(minutes / 10);
  return `, about ${Math.floor(steps / 6)} h ${steps % 6 ? `${(steps % 6) * 10} min ` : ""}left`;
}

/** Says how things stand, in words that change only when that changes: they are read aloud. */
export function showStatus(desk, outbox) {
  const lost = isDurable() ? "" : " This browser stores nothing: keep the tab open.";
  const refused = outbox.refused ? ` ${outbox.refused} not accepted by the server.` : "";
  let [state, text] = ["saved", "Saved"];
  if (outbox.state === "signed-out") [state, text] = ["waiting", `Signed out: ${kept(outbox.size)}`];
  else if (outbox.state === "waiting" && outbox.problem) {
    [state, text] = ["waiting", `Not saved: ${kept(outbox.size)}. The server says: ${outbox.problem}`];
  } else if (outbox.size && (outbox.state === "waiting" || !navigator.onLine)) {
    [state, text] = ["waiting", `Offline: ${kept(outbox.size)}`];
  } else if (!navigator.onLine || desk.unreachable) [state, text] = ["waiting", "Offline"];
  else if (desk.problem) [state, text] = ["waiting", `No new comparisons. The server says: ${desk.problem}`];
  else if (outbox.size) [state, text] = ["saving", "Saving"];
  else if (!desk.progress) text = "";
  text += refused + lost;
  const status = $("status");
  status.dataset.state = refused || lost ? "waiting" : state;
  if (status.textContent !== text) status.textContent = text;
}

export function showLast(last, undone) {
  const said = undone ?? last;
  const text = said ? words(said.choice, said.strength) : "";
  $("last-kind").textContent = undone ? "Undone:" : "Last answer:";
  if ($("last-text").textContent !== text) $("last-text").textContent = text;
  $("last").hidden = !text;
  $("undo").disabled = !last;
  $("why-button").disabled = !last;
}

const SAID = {
  kendall_distance: [
    "Kendall distance of the prompt",
    "How differently the reward model and the policy order all answers to this prompt: 0 alike, 1 the other way round.",
  ],
  mean_abs_pacs: ["Mean |PACS| of the prompt", "How far they disagree about its answers, on average."],
};
const EACH = {
  pacs: ["PACS", "Above 0: the reward model likes the answer more than the policy does, below 0: less."],
  rewards: ["Reward", "What the reward model gives; higher is better."],
  logprobs: ["Log-probability", "Of the answer under the policy."],
};

/** Why the last one was asked; the two answers as they stood. */
export function showWhy(last) {
  const parts = [];
  const say = (text, name = "p", kind = "") => parts.push(Object.assign(node(name, kind), { textContent: text }));
  if (!last) say("You have answered nothing yet.");
  else {
    say(`About the comparison that you answered last: ${words(last.choice, last.strength)}.`);
    const why = last.why;
    if (why === null) say("The numbers come when the answer is saved.");
    else if (!Object.keys(why).length) say("The table that it was chosen from says nothing about it.");
    else parts.push(...numbers(why));
  }
  $("why-text").replaceChildren(...parts);
}

function numbers(why) {
  const parts = [];
  const each = Object.keys(EACH).filter((name) => why[name]);
  if (each.length) {
    const rows = each.map((name) => [name, sides(why[name])]);
    const table = node("table");
    table.append(row("th", ["", "A", "B"]), ...rows.map(([name, values]) => row("td", [EACH[name][0], ...values.map(number)])));
    parts.push(table);
  }
  const list = node("dl", "meanings");
  for (const name of Object.keys(SAID).filter((each) => why[each] !== undefined && why[each] !== null)) {
    list.append(
      Object.assign(node("dt"), { textContent: `${SAID[name][0]}: ${number(why[name])}` }),
      Object.assign(node("dd"), { textContent: SAID[name][1] }),
    );
  }
  for (const name of each) {
    list.append(
      Object.assign(node("dt"), { textContent: EACH[name][0] }),
      Object.assign(node("dd"), { textContent: EACH[name][1] }),
    );
  }
  return [...parts, list];
}

const sides = (value) => (Array.isArray(value) ? value : [value.left, value.right]);
const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value.toFixed(2) : "none");

function row(kind, cells) {
  const tr = node("tr");
  cells.forEach((text, index) => {
    const cell = node(index ? kind : "th");
    cell.textContent = text;
    cell.scope = kind === "th" ? "col" : index ? "" : "row";
    tr.append(cell);
  });
  return tr;
}

function node(name, kind = "") {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  return element;
}
