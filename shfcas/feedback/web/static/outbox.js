// The outbox: answers that the server has not acknowledged yet. They survive the tab, and are sent once, in order.

import { Refused, waitAfter } from "./api.js";
import { drop, names, put, take } from "./storage.js";

const LATER = new Set([408, 425, 429]); // refusals that are temporary

/**
 * Queue of unsent answers.
 * States: `saved` (empty), `saving`, `waiting` (will retry), `signed-out`.
 * Events: `change`, and `sent` with {kind, body, answer}, or with {kind, body, error} after a final refusal.
 */
export class Outbox extends EventTarget {
  #send;
  #prefix;
  #refused;
  #timer = null;
  #busy = false;
  #failures = 0;

  /**
   * @param {string} owner run and annotator: each pair has an outbox of its own
   * @param {(kind: string, body: object) => Promise<object>} send
   */
  constructor(owner, send) {
    super();
    this.#send = send;
    this.#prefix = `shfcas/outbox/${owner}/`;
    this.#refused = `shfcas/refused/${owner}/`;
    this.state = this.size ? "saving" : "saved";
    this.problem = "";
    addEventListener("online", () => this.deliver());
  }

  get size() {
    return names(this.#prefix).length;
  }

  /** Unsent entries, oldest first. */
  get entries() {
    return names(this.#prefix).map(take).filter(Boolean);
  }

  /** Number of answers that the server refused; they are kept and not sent again. */
  get refused() {
    return names(this.#refused).length;
  }

  /** Adds an entry. `about` is a note for the page itself and is not sent. */
  add(kind, body, about) {
    const last = names(this.#prefix).at(-1);
    const order = Math.max(Date.now(), last ? Number(last.slice(this.#prefix.length)) + 1 : 0);
    put(this.#prefix + String(order).padStart(16, "0"), { kind, body, about });
    this.deliver();
  }

  /** Sends the unsent entries now, one at a time. */
  async deliver() {
    clearTimeout(this.#timer);
    if (this.#busy) return;
    this.#busy = true;
    try {
      for (let name; (name = names(this.#prefix)[0]) !== undefined; ) {
        if (this.state !== "waiting") this.#change("saving");
        if (!(await this.#deliverOne(name))) return;
      }
      this.#change("saved");
    } finally {
      this.#busy = false;
    }
  }

  async #deliverOne(name) {
    const entry = take(name);
    if (entry === null) {
      drop(name);
      return true;
    }
    try {
      const answer = await this.#send(entry.kind, entry.body);
      drop(name);
      this.#failures = 0;
      this.state = "saving";
      this.dispatchEvent(new CustomEvent("sent", { detail: { ...entry, answer } }));
      return true;
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        this.#change("signed-out");
        return false;
      }
      if (error instanceof Refused && error.status < 500 && !LATER.has(error.status) && error.status !== 403) {
        put(name.replace(this.#prefix, this.#refused), { ...entry, error: error.message });
        drop(name);
        this.dispatchEvent(new CustomEvent("sent", { detail: { ...entry, error } }));
        return true;
      }
      this.#timer = setTimeout(() => this.deliver(), waitAfter(error, this.#failures++));
      this.#change("waiting", error instanceof Refused ? error.message : "");
      return false;
    }
  }

  #change(state, problem = "") {
    this.state = state;
    this.problem = problem;
    this.dispatchEvent(new Event("change"));
  }
}
