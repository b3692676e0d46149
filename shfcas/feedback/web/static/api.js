// Requests to the server.

const TIMEOUT = 20_000; // milliseconds

/** Refusal by the server; `status` is the HTTP status, `retryAfter` the seconds until it wants to be asked again. */
export class Refused extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Failure to reach the server, or a reply that cannot be read. */
export class Unreachable extends Error {}

const meta = (name, page = document) => page.querySelector(`meta[name="${name}"]`)?.content ?? "";
let csrf = meta("csrf");

export const pageVersion = meta("page-version");
export const signedInAs = meta("annotator");
export const run = meta("run"); // browser storage is kept per run: this address may serve another run tomorrow

/** Path of the page behind a proxy, such as `/labels`; empty without one. */
export const root = new URL("..", import.meta.url).pathname.replace(/\/$/, "");

export const get = (path) => ask(path, {});

/** Fetches the next comparison. The session may belong to another annotator by now, so the reply names its own. */
export async function next(held) {
  const answer = await get(`/api/next?${held.map((id) => `held=${encodeURIComponent(id)}`).join("&")}`);
  mustBeOurs(answer.run, answer.name);
  return answer;
}

/** Posts JSON. After a 403, the CSRF token of this page may be old: it is fetched again, once. */
export async function post(path, body) {
  const request = () => ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: JSON.stringify(body),
  });
  try {
    return await request();
  } catch (error) {
    if (error.status !== 403 || !(await renew())) throw error;
    return await request();
  }
}

/** Fetches the guidelines as DOM nodes. */
export async function guidelines() {
  const page = await html("/guidelines");
  return [...(page.getElementById("text")?.childNodes ?? [])].map((node) => document.adoptNode(node));
}

/** Fetches the CSRF token of the current session; returns true if it changed. */
async function renew() {
  const page = await html("/");
  mustBeOurs(meta("run", page), meta("annotator", page));
  const fresh = meta("csrf", page);
  const changed = fresh !== "" && fresh !== csrf;
  if (changed) csrf = fresh;
  return changed;
}

/** Stops this page if someone else has signed in to this browser: answers begun here are neither theirs nor lost. */
function mustBeOurs(itsRun, name) {
  if (signedInAs && (itsRun !== run || name !== signedInAs)) throw new Refused(401, "someone else has signed in");
}

async function html(path) {
  const response = await reach(path, {});
  if (!response.ok) throw new Refused(response.status, `${path}: ${response.status}`);
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

async function ask(path, options) {
  const response = await reach(path, options);
  let answer;
  try {
    answer = await response.json();
  } catch {
    if (response.ok || response.status >= 500) throw new Unreachable("the server's reply cannot be read");
    answer = {};
  }
  if (!response.ok) {
    const seconds = Number(response.headers.get("Retry-After") ?? NaN);
    const message = answer?.error ?? `the server replied ${response.status}`;
    throw new Refused(response.status, message, seconds > 0 ? seconds : null);
  }
  return answer;
}

async function reach(path, options) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), TIMEOUT);
  try {
    return await fetch(root + path, { ...options, signal: stop.signal, credentials: "same-origin", cache: "no-store" });
  } catch {
    throw new Unreachable("the server cannot be reached");
  } finally {
    clearTimeout(timer);
  }
}

/** Returns the milliseconds until the next attempt: as the server asks, or longer with each failure. */
export function waitAfter(error, failures, longest = 30_000) {
  const spread = 1 + Math.random() / 2; // so that many browsers do not come back at once
  if (error instanceof Refused && error.retryAfter) return Math.min(10 * longest, 1000 * error.retryAfter) * spread;
  return Math.min(longest, 750 * 2 ** failures) * spread;
}

/** Returns a random UUID. `crypto.randomUUID` exists only over HTTPS and on localhost, these random bits everywhere. */
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
