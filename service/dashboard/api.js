// Calls of the HTTP API. The browser sends the cookie by itself; no token is ever held here.

/** An answer that refuses, or none at all (status 0). `errors` are those of single fields. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    this.status = status;
    this.title = problem.title ?? "";
    this.errors = problem.errors ?? [];
    this.retryAfter = problem.retry_after_s ?? null;
  }
}

const watchers = new Set();
let isReachable = true, answeredAt = new Date();

/** When Drayman answered last. */
export const lastAnswer = () => answeredAt;

/** Call `told` with whether the server answers whenever that changes, "unauthorized", "unavailable". */
export function onReach(told) {
  watchers.add(told);
}

function reached(now) {
  if (now) answeredAt = new Date();
  if (now === isReachable) return;
  isReachable = now;
  for (const told of watchers) told(now);
}

export async function request(method, path, { body, json, headers = {}, signal } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: json === undefined ? headers : { "Content-Type": "application/json", ...headers },
      body: json === undefined ? body : JSON.stringify(json),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unanswered();
  }
  const isProblem = answer.headers.get("content-type")?.includes("json");
  // A proxy says that nobody is behind it.
  if (!isProblem && answer.status >= 502) throw unanswered();
  reached(true);
  if (answer.ok) return answer;
  const problem = isProblem ? await answer.json().catch(() => ({})) : {};
  // Who signs in with a wrong token may still be signed in with another.
  if (answer.status === 401 && path !== "/v1/session") for (const told of watchers) told("unauthorized");
  if (problem.type === "/problems/unavailable") for (const told of watchers) told("unavailable");
  throw new Refused(answer.status, problem);
}

function unanswered() {
  reached(false);
  return new Refused(0, { title: "No answer", detail: "Drayman does not answer. Is it running?" });
}

export async function get(path, options) {
  return (await request("GET", path, options)).json();
}

export async function post(path, json, options) {
  const answer = await request("POST", path, json === undefined ? options : { json, ...options });
  return answer.status === 204 ? null : answer.json();
}

/** Return `path?name=value`, without the names whose value is empty. */
export function query(path, values) {
  const kept = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return kept.length ? `${path}?${new URLSearchParams(kept)}` : path;
}

export const enc = encodeURIComponent;
