// The server, as the page sees it.

const PATIENCE = 20_000; // milliseconds

/** The server was reached and said no; `status` is that of HTTP. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The server was not reached, or did not answer as it should. */
export class Unreachable extends Error {}

const meta = (name, page = document) => page.querySelector(`meta[name="${name}"]`)?.content ?? "";
let csrf = meta("csrf");

export const pageVersion = meta("page-version");
export const signedInAs = meta("annotator");
export const run = meta("run"); // what this browser keeps belongs to it: another one may be served here tomorrow

export const get = (path) => ask(path, {});

/** The next comparison; whose it is depends on the session, which may be another person's by now. */
export async function next(held) {
  const answer = await get(`/api/next?${held.map((id) => `held=${encodeURIComponent(id)}`).join("&")}`);
  mustBeOurs(answer.run, answer.name);
  return answer;
}

/** A 403 may mean that the token of this page is an old one: it is fetched again, once. */
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

/** The guidelines, as the nodes of their page. */
export async function guidelines() {
  const page = await html("/guidelines");
  return [...(page.getElementById("text")?.childNodes ?? [])].map((node) => document.adoptNode(node));
}

/** Fetches the token that belongs to the present session; whether it is another one. */
async function renew() {
  const page = await html("/");
  mustBeOurs(meta("run", page), meta("annotator", page));
  const fresh = meta("csrf", page);
  const changed = fresh !== "" && fresh !== csrf;
  if (changed) csrf = fresh;
  return changed;
}

/** A browser has one session: when somebody else signs in, what was begun here must neither be theirs nor be lost. */
function mustBeOurs(itsRun, name) {
  if (signedInAs && (itsRun !== run || name !== signedInAs)) throw new Refused(401, "somebody else has signed in");
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
    if (response.ok || response.status >= 500) throw new Unreachable("the server's answer cannot be read");
    answer = {};
  }
  if (!response.ok) throw new Refused(response.status, answer?.error ?? `the server says ${response.status}`);
  return answer;
}

async function reach(path, options) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), PATIENCE);
  try {
    return await fetch(path, { ...options, signal: stop.signal, credentials: "same-origin", cache: "no-store" });
  } catch {
    throw new Unreachable("the server cannot be reached");
  } finally {
    clearTimeout(timer);
  }
}

/** A random UUID. `crypto.randomUUID` is there only over HTTPS and on this machine; these bits are everywhere. */
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
