// The display of a comparison, of the last answer and of the status. It only reads the desk.

import { differences } from "./diff.js";
import { isDurable } from "./storage.js";
import { normalized, showText } from "./text.js";

export const $ = (id) => document.getElementById(id);

const ROLES = { system: "System", user: "User", assistant: "Assistant", tool: "Tool" };
const GRANULARITY = {
  words: "",
  lines: "These answers are long: whole lines are marked.",
  ends: "These answers are too long to compare: everything between the equal start and the equal end is marked.",
  nothing: "These answers are too long to compare.",
};

/** Returns the text of a choice: `A clearly better`. */
export function choiceText(choice, strength) {
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
  const left = normalized(task.left.text);
  const right = normalized(task.right.text);
  const marks = marked ? differences(left, right) : { left: [], right: [], by: "words" };
  showText($("left"), left, marks.left);
  showText($("right"), right, marks.right);
  $("differences").setAttribute("aria-pressed", String(marked));
  $("differences-note").textContent = marked && left === right ? "The two answers are identical." : GRANULARITY[marks.by];
}

function showPrompt(prompt) {
  if (typeof prompt === "string") {
    const text = node("div", "text");
    text.dir = "auto";
    showText(text, normalized(prompt));
    $("prompt").replaceChildren(text);
    return;
  }
  $("prompt").replaceChildren(...prompt.map(turn));
}

function turn({ role, content }) {
  const text = node("div", "text");
  text.dir = "auto";
  showText(text, normalized(content));
  const label = node(role === "system" ? "summary" : "h3", "role");
  if (ROLES[role]) label.textContent = ROLES[role];
  else showText(label, normalized(String(role)));
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
  $("pace").textContent = desk.pace ? `${count(Math.round(desk.pace))} per hour${timeLeft(mine.left / desk.pace)}` : "";
  $("everyone").textContent = `all: ${count(progress.settled)} of ${count(progress.total)} settled`;
  $("done-text").textContent = outbox.size
    ? `You have answered ${count(mine.done)}. ${kept(outbox.size)}; leave the page open until they are saved.`
    : `You have answered ${count(mine.done)}. All answers are saved.`;
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

/** Shows the status. The text changes only with the status, because screen readers read it aloud. */
export function showStatus(desk, outbox) {
  const lost = isDurable() ? "" : " This browser cannot store answers: keep the tab open.";
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
  const answer = undone ?? last;
  const text = answer ? choiceText(answer.choice, answer.strength) : "";
  $("last-kind").textContent = undone ? "Undone:" : "Last answer:";
  if ($("last-text").textContent !== text) $("last-text").textContent = text;
  $("last").hidden = !text;
  $("undo").disabled = !last;
  $("why-button").disabled = !last;
}

const PROMPT_SCORES = {
  kendall_distance: [
    "Kendall distance of the prompt",
    "How differently reward model and policy rank all answers to this prompt: 0 is the same order, 1 the reverse.",
  ],
  mean_abs_pacs: ["Mean |PACS| of the prompt", "How much they disagree about an answer to this prompt, on average."],
};
const ANSWER_SCORES = {
  pacs: ["PACS", "Above 0, the reward model rates the answer higher than the policy does; below 0, lower."],
  rewards: ["Reward", "The reward model's score; higher is better."],
  logprobs: ["Log-probability", "Of the answer, under the policy."],
};

/** Shows why the last comparison was asked, with the scores by side, or why that cannot be shown. */
export function showWhy(last, problem = "") {
  const parts = [];
  const add = (text) => parts.push(Object.assign(node("p"), { textContent: text }));
  if (!last) add("You have answered nothing yet.");
  else {
    add(`Your last answer: ${choiceText(last.choice, last.strength)}.`);
    const why = last.why;
    if (problem) add(problem);
    else if (!last.saved) add("The scores appear when the answer is saved.");
    else if (!why) add("Loading the scores.");
    else if (!Object.keys(why).length) add("There are no scores for this comparison.");
    else parts.push(...scores(why));
  }
  $("why-text").replaceChildren(...parts);
}

/** Shows the browsers in which the annotator is signed in; `end` is called with the one to sign out. */
export function showSignIns(sessions, end) {
  const time = (seconds) => new Date(1000 * seconds).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const items = sessions.map((session) => {
    const item = node("li");
    const text = node("span");
    text.textContent = `${session.device}, since ${time(session.begin)}, last used ${time(session.used)}`;
    if (session.here) text.textContent += " (this browser)";
    const button = node("button", "quiet");
    button.type = "button";
    button.textContent = "Sign out";
    button.setAttribute("aria-label", `Sign out ${session.device}${session.here ? ", this browser" : ""}`);
    button.addEventListener("click", () => end(session));
    item.append(text, button);
    return item;
  });
  if (!items.length) items.push(Object.assign(node("li"), { textContent: "A proxy has signed you in." }));
  $("sign-ins-list").replaceChildren(...items);
}

function scores(why) {
  const parts = [];
  const names = Object.keys(ANSWER_SCORES).filter((name) => why[name]);
  if (names.length) {
    const table = node("table");
    table.append(
      row("th", ["", "A", "B"]),
      ...names.map((name) => row("td", [ANSWER_SCORES[name][0], ...sides(why[name]).map(number)])),
    );
    parts.push(table);
  }
  const list = node("dl", "meanings");
  const define = (term, meaning) =>
    list.append(Object.assign(node("dt"), { textContent: term }), Object.assign(node("dd"), { textContent: meaning }));
  for (const [name, [title, meaning]] of Object.entries(PROMPT_SCORES)) {
    if ((why[name] ?? null) !== null) define(`${title}: ${number(why[name])}`, meaning);
  }
  for (const name of names) define(...ANSWER_SCORES[name]);
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
