// The annotation page: sign-in; connects desk, outbox, keys and view.

import { get, guidelines, post, run, signedInAs } from "./api.js";
import { Desk } from "./desk.js";
import * as keys from "./keys.js";
import { onlyTab } from "./only_tab.js";
import { Outbox } from "./outbox.js";
import { put, take } from "./storage.js";
import { $, showAnswers, showLast, showProgress, showSignIns, showStatus, showTask, showWhy } from "./view.js";

let desk = null;
let outbox = null;
let flagging = false;
let undone = null;
let current = null; // the item on the screen, whose comment is in the field
const drafts = new Map(); // comments by item, for items that return after an undo
let marked = take("shfcas/differences") ?? false;

const SCREENS = ["sign-in", "elsewhere", "done", "waiting", "work"];

/** Shows one screen with its controls, and hides the others. */
function showScreen(name) {
  for (const id of SCREENS) $(id).hidden = id !== name;
  $("choices").hidden = name !== "work";
  $("nav").hidden = name === "sign-in";
}

// Signing in

async function start() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname);
    return signIn(token);
  }
  if (signedInAs) return work(signedInAs);
  askForToken();
}

function askForToken(problem = "") {
  $("sign-in-error").textContent = problem;
  showScreen("sign-in");
  $("token").focus();
}

async function signIn(token) {
  try {
    await post("/api/sign-in", { token: token.trim().replace(/^.*#token=/, "") });
    // The reloaded page has the session's data.
    location.replace(location.pathname);
  } catch (error) {
    askForToken(error.status ? `That did not work: ${error.message}.`.replace("..", ".") : "The server cannot be reached.");
  }
}

// Working

function work(name) {
  $("who").textContent = ` ${name}`;
  const owner = `${run}/${name}`;
  outbox = new Outbox(owner, (kind, body) => post(kind === "undo" ? "/api/undo" : "/api/judgements", body));
  desk = new Desk(owner, outbox);
  outbox.addEventListener("change", () => (outbox.state === "signed-out" ? signedOut() : refresh()));
  desk.addEventListener("signed-out", signedOut);
  desk.addEventListener("task", showNext);
  desk.addEventListener("change", refresh);
  for (const event of ["online", "offline"]) addEventListener(event, refresh);
  showScreen("waiting");
  onlyTab(owner, {
    free: () => {
      showScreen(desk.task ? "work" : "waiting");
      outbox.deliver();
      desk.fill();
    },
    taken: () => {
      desk.stop();
      showScreen("elsewhere");
    },
    takeOver: $("take-over"),
  });
}

function signedOut() {
  desk.stop();
  refresh();
  // Every pending request reports this. Someone who is already typing a token is not disturbed.
  if ($("sign-in").hidden) askForToken("You are signed out. Sign in again to send your answers.");
}

function showNext() {
  const { task } = desk;
  drafts.set(current, $("comment").value);
  current = task?.id ?? null;
  $("comment").value = drafts.get(current) ?? "";
  if ($("comment").value) openRemark(false, false);
  else closeRemark();
  if (task) {
    showScreen("work");
    showTask(task, (desk.mine?.done ?? 0) + 1, marked);
    scrollTo(0, 0);
    $("heading").focus({ preventScroll: true });
  }
  refresh();
}

function refresh() {
  showStatus(desk, outbox);
  showProgress(desk, outbox);
  showLast(desk.last, undone);
  if ($("why").open) lookWhy();
  if (desk.task || !$("sign-in").hidden || !$("elsewhere").hidden) return;
  const name = desk.exhausted ? "done" : "waiting";
  const isNew = $(name).hidden;
  showScreen(name);
  $("waiting").textContent = waitingText();
  if (isNew && name === "done") $("done-heading").focus();
}

function waitingText() {
  if (desk.unreachable) return "The server cannot be reached. The page tries again by itself.";
  if (desk.problem) return `The server says: ${desk.problem}. The page tries again by itself.`;
  return "Loading comparisons.";
}

function answer(choice, strength = null) {
  if (!desk?.task || $("work").hidden) return;
  const comment = $("comment").value.trim();
  $("comment").value = "";
  undone = null;
  desk.answer(choice, strength, comment);
}

function undo() {
  if (!desk?.last || !$("elsewhere").hidden) return;
  undone = desk.last;
  drafts.set(undone.item, undone.comment);
  desk.undo();
  refresh();
}

// Comments and flags

function openRemark(flag, focus = true) {
  flagging = flag;
  $("remark").hidden = false;
  $("send-flag").hidden = !flag;
  $("comment-label").textContent = flag ? "What is wrong with this comparison?" : "Comment, sent with your answer";
  $("comment-help").textContent = flag ? "Nobody will be asked about it again." : "Esc leaves the field.";
  showOpen();
  if (focus) $("comment").focus();
}

function closeRemark() {
  flagging = false;
  $("remark").hidden = true;
  showOpen();
}

function showOpen() {
  const open = !$("remark").hidden;
  $("comment-button").setAttribute("aria-expanded", String(open && !flagging));
  $("flag-button").setAttribute("aria-expanded", String(open && flagging));
}

function leaveRemark() {
  if (flagging || !$("comment").value.trim()) closeRemark();
  $("heading").focus({ preventScroll: true });
}

$("comment").addEventListener("keydown", (event) => {
  if (event.key === "Escape") leaveRemark();
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) flagging ? answer("flag") : leaveRemark();
  else return;
  event.preventDefault();
});

// Panes

async function toggleGuidelines() {
  const pane = $("guidelines");
  pane.hidden = !pane.hidden;
  document.body.classList.toggle("with-guidelines", !pane.hidden);
  $("guidelines-button").setAttribute("aria-expanded", String(!pane.hidden));
  if (pane.hidden) return $("guidelines-button").focus({ preventScroll: true });
  pane.focus({ preventScroll: true });
  if ($("guidelines-text").childNodes.length) return;
  try {
    $("guidelines-text").replaceChildren(...(await guidelines()));
  } catch {
    $("guidelines-text").textContent = "The guidelines cannot be loaded right now.";
    setTimeout(() => $("guidelines-text").replaceChildren(), 5000);
  }
}

function toggleDifferences() {
  if (!desk?.task) return;
  marked = !marked;
  put("shfcas/differences", marked);
  showAnswers(desk.task, marked);
}

function toggleFixed(on = !document.body.classList.contains("fixed-width")) {
  document.body.classList.toggle("fixed-width", on);
  $("fixed").setAttribute("aria-pressed", String(on));
  put("shfcas/fixed-width", on);
}

function why() {
  if (!desk) return;
  $("why").showModal();
  lookWhy();
}

async function lookWhy() {
  showWhy(desk.last);
  try {
    await desk.look();
    showWhy(desk.last);
  } catch (error) {
    showWhy(desk.last, error.status ? `The server says: ${error.message}.` : "The server cannot be reached.");
  }
}

async function signIns() {
  if (!$("sign-ins").open) $("sign-ins").showModal();
  try {
    showSignIns((await get("/api/sessions")).sessions, endSignIn);
    $("sign-ins-error").textContent = "";
  } catch (error) {
    $("sign-ins-error").textContent = error.status ? `The server says: ${error.message}.` : "The server cannot be reached.";
  }
}

async function endSignIn(session) {
  if (session.here) return signOut();
  await post("/api/sessions/end", { session: session.id }).catch(() => {});
  signIns();
}

async function signOut() {
  try {
    await post("/api/sign-out", {});
  } catch (error) {
    if (error.status !== 401) {
      // Only the server can end the session: the cookie is out of reach of scripts.
      $("sign-ins-error").textContent = "You are still signed in: the server cannot be reached. Try again.";
      if (!$("sign-ins").open) signIns();
      return;
    }
  }
  location.replace(location.pathname);
}

/** Scrolls both answers, unless the focus is on an element with its own keys; returns true if it did. */
function scroll(event) {
  const steps = { ArrowDown: 60, ArrowUp: -60, PageDown: 0.9, PageUp: -0.9, " ": event.shiftKey ? -0.9 : 0.9 };
  const step = steps[event.key];
  if (step === undefined || $("work").hidden || event.target.closest(".pane, button, a, summary, .guidelines")) return false;
  for (const id of ["left", "right"]) {
    $(id).scrollBy({ top: Math.abs(step) < 1 ? step * $(id).clientHeight : step });
  }
  // On a phone, the whole page scrolls instead.
  return $("left").scrollHeight > $("left").clientHeight || $("right").scrollHeight > $("right").clientHeight;
}

const ACTIONS = {
  left: () => answer("left"),
  right: () => answer("right"),
  "left-clearly": () => answer("left", "clearly"),
  "right-clearly": () => answer("right", "clearly"),
  "left-slightly": () => answer("left", "slightly"),
  "right-slightly": () => answer("right", "slightly"),
  tie: () => answer("tie"),
  both_bad: () => answer("both_bad"),
  skip: () => answer("skip"),
  flag: () => desk?.task && openRemark(true),
  comment: () => desk?.task && openRemark(false),
  undo,
  why,
  differences: toggleDifferences,
  fixed: () => toggleFixed(),
  guidelines: toggleGuidelines,
  keys: () => $("keys").showModal(),
};

const BUTTONS = {
  "flag-button": () => (flagging ? leaveRemark() : openRemark(true)),
  "comment-button": () => ($("remark").hidden || flagging ? openRemark(false) : leaveRemark()),
  "close-remark": leaveRemark,
  "send-flag": () => answer("flag"),
  undo,
  "why-button": why,
  differences: toggleDifferences,
  fixed: () => toggleFixed(),
  "guidelines-button": toggleGuidelines,
  "close-guidelines": toggleGuidelines,
  "keys-button": ACTIONS.keys,
  "sign-ins-button": signIns,
  "sign-out": signOut,
};
for (const [id, act] of Object.entries(BUTTONS)) $(id).addEventListener("click", act);
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => answer(button.dataset.choice, button.dataset.strength || null));
}
$("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn($("token").value);
});
$("keys-on").checked = keys.areOn();
$("keys-on").addEventListener("change", () => keys.turn($("keys-on").checked));
keys.list($("key-list"));
keys.listen((action) => ($("nav").hidden ? null : ACTIONS[action]?.()), scroll);
toggleFixed(take("shfcas/fixed-width") ?? false);
// A sign-in link opened in a tab with this page changes only the hash, without a reload.
addEventListener("hashchange", () => location.hash && start());
start();
