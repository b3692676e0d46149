// The annotator's comparisons and answers: fetched ahead, answered, undone. No DOM here.

import { next, pageVersion, post, Refused, uuid, waitAfter } from "./api.js";
import { put, take } from "./storage.js";

const HELD = 5; // comparisons held at a time, so that a lost connection does not stop the work
const REMEMBERED = 20; // answers that can be undone, also after a reload
const POLL = 15_000; // milliseconds
const RECENT = 30; // answers that the pace is computed from
const PAUSE = 300; // seconds; longer times count as a break

/** Comparisons of one annotator. Events: `task` (another comparison is on top), `change` (the rest), `signed-out`. */
export class Desk extends EventTarget {
  #outbox;
  #owner;
  #history;
  #fetching = false;
  #again = false; // `fill` was called during a request
  #timer = null;
  #failures = 0;
  #shown = null; // {id, seconds, since}
  #recent = [];
  #stopped = false;
  #delivered = 0;
  #awaited = new Set(); // items of undone answers whose comparison this page lacks

  constructor(owner, outbox) {
    super();
    this.#owner = owner;
    this.#outbox = outbox;
    this.#history = take(this.#name) ?? [];
    this.tasks = [];
    this.progress = null;
    this.exhausted = false; // the server had no more comparisons at the last request
    this.unreachable = false;
    this.problem = ""; // the server's reason for giving no comparison
    outbox.addEventListener("sent", (event) => this.#sent(event.detail));
    outbox.addEventListener("change", () => {
      if (outbox.state === "saved" && !this.tasks.length) this.fill();
    });
    addEventListener("online", () => this.fill());
    document.addEventListener("visibilitychange", () => this.#clock());
  }

  get #name() {
    return `shfcas/history/${this.#owner}`;
  }

  /** The comparison to answer, or null. */
  get task() {
    return this.tasks[0] ?? null;
  }

  /** The last answer that still counts, or null. */
  get last() {
    return this.#history.at(-1) ?? null;
  }

  /** Counts of this annotator, unsent answers included. */
  get mine() {
    if (!this.progress) return null;
    let { mine: done, mine_left: left } = this.progress;
    for (const { kind, about } of this.#outbox.entries) {
      const sign = kind === "undo" ? -1 : 1;
      if (about === "repeat") continue; // the first answer was counted
      left -= sign;
      if (about !== "skip" && about !== "flag") done += sign;
    }
    return { done: Math.max(done, 0), left: Math.max(left, this.tasks.length) };
  }

  /** Answers per hour, from the time spent on the last ones; null before there are three. */
  get pace() {
    if (this.#recent.length < 3) return null;
    const seconds = this.#recent.reduce((sum, each) => sum + Math.min(each, PAUSE), 0);
    return (3600 * this.#recent.length) / Math.max(seconds, 1);
  }

  answer(choice, strength, comment) {
    const task = this.tasks.shift();
    if (!task) return;
    const seconds = this.#seconds();
    const id = uuid();
    const about = task.repeat ? "repeat" : choice;
    this.#remember({ id, item: task.id, choice, strength, comment, seconds, about, why: null, task });
    this.#recent = [...this.#recent, seconds].slice(-RECENT);
    this.#outbox.add("judgement", {
      id,
      item: task.id,
      shown: task.shown,
      choice,
      strength,
      comment,
      seconds: Math.round(seconds * 10) / 10,
      page_version: pageVersion,
    }, about);
    this.exhausted = false;
    this.#turn();
    this.fill();
  }

  /** Undoes the last answer and returns it, or null. Its comparison returns at once if this page still has it. */
  undo() {
    const last = this.#history.pop();
    if (!last) return null;
    this.#remember();
    this.#recent.pop();
    this.#outbox.add("undo", { id: uuid(), undoes: last.id }, last.about);
    if (last.task) this.#putBack(last.task, last.seconds);
    else {
      this.#awaited.add(last.item); // answered before a reload: the comparison comes with the reply
      this.dispatchEvent(new Event("change"));
    }
    return last;
  }

  /** Fetches why the comparison of the last answer was asked, once the answer is saved. The server notes it. */
  async look() {
    const { last } = this;
    if (!last?.saved || last.why) return;
    const { why } = await post("/api/why", { answer: last.id });
    last.why = why;
    this.#remember();
  }

  /** Fetches comparisons until `HELD` are here. */
  async fill() {
    clearTimeout(this.#timer);
    this.#again = this.#fetching;
    if (this.#fetching || this.#stopped) return;
    this.#fetching = true;
    try {
      while (this.tasks.length < HELD) {
        const held = [...this.tasks.map((task) => task.id), ...this.#unsent()];
        const before = this.#outbox.size ? null : this.#delivered;
        const answer = await next(held);
        if (this.#stopped) return;
        this.#failures = 0;
        this.unreachable = false;
        this.problem = "";
        if (this.#outbox.state === "waiting") this.#outbox.deliver();
        // Counts from before or during a delivery are out of date.
        if (!this.progress || (before === this.#delivered && !this.#outbox.size)) this.progress = answer.progress;
        this.exhausted = !answer.task;
        if (!answer.task) break;
        // An undo brought it back during the request, or it was answered.
        if (this.#has(answer.task.id)) break;
        this.tasks.push(answer.task);
        if (this.tasks.length === 1) this.#turn();
        else this.dispatchEvent(new Event("change"));
      }
      if (!this.tasks.length) this.#timer = setTimeout(() => this.fill(), POLL);
    } catch (error) {
      const signedOut = error instanceof Refused && error.status === 401;
      if (signedOut) this.dispatchEvent(new Event("signed-out"));
      else this.#timer = setTimeout(() => this.fill(), waitAfter(error, this.#failures++));
      this.unreachable = !(error instanceof Refused);
      this.problem = this.unreachable || signedOut ? "" : error.message;
    } finally {
      this.#fetching = false;
      this.dispatchEvent(new Event("change"));
      if (this.#again) this.fill();
    }
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  #unsent() {
    return this.#outbox.entries.filter(({ kind }) => kind === "judgement").map(({ body }) => body.item);
  }

  #has(id) {
    return this.tasks.some((task) => task.id === id) || this.#unsent().includes(id);
  }

  #sent({ kind, body, answer, error }) {
    this.#delivered++;
    if (answer?.progress) this.progress = answer.progress;
    if (this.unreachable || this.problem) this.fill(); // the server may have recovered
    if (kind === "judgement") {
      const entry = this.#history.find((each) => each.id === body.id);
      if (entry && answer) entry.saved = true;
      if (error) this.#history = this.#history.filter((each) => each.id !== body.id);
      this.#remember();
    } else if (answer?.task && this.#awaited.delete(answer.task.id)) {
      // `fill` may have fetched it in between.
      this.tasks = this.tasks.filter((task) => task.id !== answer.task.id);
      this.#putBack(answer.task, 0);
    }
    this.dispatchEvent(new Event("change"));
  }

  #putBack(task, seconds) {
    this.#clock();
    this.tasks.unshift(task);
    this.#turn(seconds);
  }

  /** Starts the next comparison, or none. */
  #turn(seconds = 0) {
    this.#shown = this.task && { id: this.task.id, seconds, since: document.hidden ? null : performance.now() };
    // Comparisons with an expired lease may be with someone else by now.
    const now = Date.now();
    this.tasks = this.tasks.filter((task, index) => !index || !(Date.parse(task.lease_expires) < now));
    this.dispatchEvent(new Event("task"));
  }

  /** Seconds that the comparison was visible; a tab in the background does not count. */
  #seconds() {
    this.#clock();
    return this.#shown?.seconds ?? 0;
  }

  #clock() {
    const shown = this.#shown;
    if (!shown) return;
    const now = performance.now();
    if (shown.since !== null) shown.seconds += (now - shown.since) / 1000;
    shown.since = document.hidden ? null : now;
  }

  #remember(entry) {
    if (entry) this.#history.push(entry);
    this.#history = this.#history.slice(-REMEMBERED); // the texts of the tasks may be long
    put(this.#name, this.#history.map((each) => ({ ...each, task: undefined })));
  }
}
