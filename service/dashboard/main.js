// Begins everything: who is signed in, which page the address means, what the keyboard does.
//
// A page is a module with `open(view)`: it draws into `view.root` and returns what ends it.

import { get, lastAnswer, onReach, post, request } from "./api.js";
import { h, show } from "./dom.js";
import { count, moment } from "./format.js";
import { follow } from "./live.js";
import { act, button, dialog, empty, icon, toast } from "./parts.js";
import * as dead from "./pages/dead.js";
import * as job from "./pages/job.js";
import * as jobs from "./pages/jobs.js";
import * as login from "./pages/login.js";
import * as overview from "./pages/overview.js";
import * as queues from "./pages/queues.js";
import * as schedules from "./pages/schedules.js";
import * as submit from "./pages/submit.js";
import * as workers from "./pages/workers.js";

const PAGES = [
  [/^\/$/, overview, "overview"],
  [/^\/jobs$/, jobs, "jobs"],
  [/^\/jobs\/([^/]+)$/, job, "jobs"],
  [/^\/queues$/, queues, "queues"],
  [/^\/dead-letters$/, dead, "dead"],
  [/^\/schedules$/, schedules, "schedules"],
  [/^\/schedules\/([^/]+)$/, schedules, "schedules"],
  [/^\/workers$/, workers, "workers"],
  [/^\/submit$/, submit, "submit"],
];
const MENU = [
  ["overview", "/", "Overview", "o"],
  ["jobs", "/jobs", "Jobs", "j"],
  ["queues", "/queues", "Queues", "q"],
  ["dead", "/dead-letters", "Dead letters", "d"],
  ["schedules", "/schedules", "Schedules", "s"],
  ["workers", "/workers", "Workers", "w"],
];

const app = document.getElementById("app");
const state = { session: null, at: "", live: "polling", dead: 0, waiting: 0, end: null, badges: null };

// --- addresses --------------------------------------------------------------------------------

function go(path, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", path);
  render();
}

addEventListener("popstate", render);
document.addEventListener("click", (event) => {
  if (!event.target.closest?.(".side, .bottom")) document.body.classList.remove("menu-open");
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  if (link.hasAttribute("download") || link.target || link.origin !== location.origin) return;
  if (!PAGES.some(([pattern]) => pattern.test(link.pathname))) return;
  event.preventDefault();
  document.body.classList.remove("menu-open");
  if (link.href !== location.href) go(link.pathname + link.search);
});

// --- the frame --------------------------------------------------------------------------------

const root = h("main", { id: "main", tabindex: "-1" });
const side = h("nav", { class: "side", "aria-label": "Main" });
const away = h("p", { class: "away", role: "status" });
const bottom = h("nav", { class: "bottom", "aria-label": "Main, short" });
const frame = [
  h("a", { class: "skip", href: "#main", onclick: (event) => { event.preventDefault(); root.focus(); } }, "Skip to content"),
  side, bottom, away, root,
];

const AWAY_MS = 2000;
const LIVE = {
  live: ["good", "Live"],
  polling: ["good", "Up to date"],
  away: ["bad", "No answer"],
  unready: ["bad", "Manager away"],
};
/** What the bar at the top says, if anything. */
const AWAY = {
  away: () => `No answer since ${moment(lastAnswer())}; what you see is old.`,
  unready: () => "The queue manager is away; what you see is old. Jobs are still taken, and start when it is back.",
};

function drawFrame() {
  const item = ([name, href, label, key], tail) =>
    h("a", { href, "aria-current": state.at === name ? "page" : null, title: `${label} (g ${key})` }, icon(name), h("span", null, label), tail);
  const number = (value, tone, what) => (value ? h("em", { class: `badge ${tone}`, title: what }, count(value)) : null);
  const badge = (name) => name === "dead" ? number(state.dead, "bad", "jobs that failed for good") : name === "queues" ? number(state.waiting, "", "tasks that wait") : null;
  const [tone, text] = LIVE[state.live];
  show(side,
    h("a", { class: "brand", href: "/" }, mark(), h("span", null, "Drayman")),
    h("div", { class: "menu" }, MENU.map((one) => item(one, badge(one[0])))),
    may("submit") && h("a", { class: "button primary wide", href: "/submit", "aria-current": state.at === "submit" ? "page" : null, title: "Submit a job (c)" }, icon("submit"), h("span", null, "Submit a job")),
    h("div", { class: "foot" },
      h("div", { class: `live ${tone}`, role: "status", "aria-live": "polite" }, h("i", { "aria-hidden": "true" }), text),
      h("div", { class: "who", title: `scopes: ${state.session.scopes.join(", ")}` }, state.session.tenant, h("small", null, state.session.scopes.join(", "))),
      h("div", { class: "tools" },
        button("", { icon: "sun", kind: "ghost small", title: "Light or dark", onclick: turnTheme }),
        button("", { icon: "keyboard", kind: "ghost small", title: "Keyboard (?)", onclick: help }),
        h("a", { class: "button ghost small", href: "/docs", title: "The HTTP API", "aria-label": "The HTTP API" }, icon("file")),
        button("", { icon: "out", kind: "ghost small", title: "Sign out", onclick: signOut }))));
  const few = MENU.filter(([name]) => ["overview", "jobs", "queues", "dead"].includes(name));
  show(bottom, few.map((one) => item(one, badge(one[0]))),
    h("button", { type: "button", onclick: () => document.body.classList.toggle("menu-open"), "aria-label": "All pages" }, icon("menu"), h("span", null, "More")));
}

function mark() {
  return h("span", { class: "mark", "aria-hidden": "true" });
}

function may(scope) {
  return state.session.scopes.includes(scope) || state.session.scopes.includes("admin");
}

function turnTheme() {
  const isDark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = isDark ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("drayman-theme", theme);
}

async function signOut() {
  await act(() => request("DELETE", "/v1/session"));
  location.assign("/");
}

/** What the menu tells beside its words. */
async function refreshBadges() {
  const [{ counts }, { queues: all }] = await Promise.all([get("/v1/dead-letters/counts"), get("/v1/queues")]);
  state.dead = counts.reduce((sum, one) => sum + one.count, 0);
  state.waiting = all.reduce((sum, one) => sum + one.ready, 0);
  drawFrame();
}

function toldLive(now) {
  if (state.live === now) return;
  state.live = now;
  away.textContent = AWAY[now]?.() ?? "";
  if (state.session) drawFrame();
}

let isProbing = false;

/**
 * One request may fail for itself, some pages ask for nothing by themselves, and some answers need
 * no manager: look until all is there.
 */
async function probe() {
  if (isProbing) return;
  isProbing = true;
  for (let now = ""; now !== "polling";) {
    now = await request("GET", "/readyz").then(() => "polling", (error) => (error.status === 0 ? "away" : "unready"));
    toldLive(now);
    if (now !== "polling") await new Promise((again) => setTimeout(again, AWAY_MS));
  }
  isProbing = false;
}

// --- pages ------------------------------------------------------------------------------------

function render() {
  if (!state.session) return;
  const found = PAGES.find(([pattern]) => pattern.test(location.pathname));
  state.end?.();
  state.end = null;
  state.at = found?.[2] ?? "";
  root.className = state.at;
  root.replaceChildren();
  drawFrame();
  const params = Object.fromEntries(new URLSearchParams(location.search));
  const view = {
    root, params, may, go,
    args: found ? location.pathname.match(found[0]).slice(1).map(decodeURIComponent) : [],
    title: (text) => { document.title = `${text} · Drayman`; },
    follow: (stream, how) => follow(stream, { ...how, told: (now) => isProbing || toldLive(now) }),
  };
  if (!found) {
    show(root, empty("There is no such page", "The menu shows those there are."));
    return;
  }
  state.end = found[1].open(view) ?? null;
  scrollTo(0, 0);
  root.focus({ preventScroll: true });
}

// --- the keyboard -----------------------------------------------------------------------------

const KEYS = [
  ["/", "Search jobs"],
  ["j  k", "Next, previous row"],
  ["Enter", "Open the row"],
  ["c", "Submit a job"],
  ...MENU.map(([, , label, key]) => [`g ${key}`, label]),
  ["t", "Light or dark"],
  ["?", "This list"],
  ["Esc", "Close, leave a field"],
];

function help() {
  dialog("Keyboard", () => h("dl", { class: "keys" }, KEYS.map(([keys, text]) =>
    h("div", null, h("dt", null, keys.split(/\s+/).map((key) => h("kbd", null, key))), h("dd", null, text)))));
}

let before = "", beforeAt = 0;
document.addEventListener("keydown", (event) => {
  if (!state.session || event.metaKey || event.ctrlKey || event.altKey) return;
  const target = event.target;
  if (target.closest?.("input, select, textarea, [contenteditable]")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  const isSecond = before === "g" && event.timeStamp - beforeAt < 1200;
  before = event.key;
  beforeAt = event.timeStamp;
  const found = isSecond && MENU.find((one) => one[3] === event.key);
  if (found) go(found[1]);
  else if (event.key === "/") {
    const field = root.querySelector("input[type=search]");
    if (field) field.focus();
    else go("/jobs?focus=1");
  } else if (event.key === "?") help();
  else if (event.key === "t") turnTheme();
  else if (event.key === "c" && may("submit")) go("/submit");
  else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  else return;
  event.preventDefault();
});

function step(by) {
  const rows = [...root.querySelectorAll("[data-row]")];
  const at = rows.findIndex((row) => row === document.activeElement || row.contains(document.activeElement));
  const next = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : at + by];
  if (next) next.focus();
  else if (at >= 0) root.dispatchEvent(new CustomEvent("past-end", { detail: by }));
}

// --- the beginning ----------------------------------------------------------------------------

const WRONG_LINK = "This link is not valid: its token is not known here. Drayman may have been started on another store since.";

/** Take the token out of the address, if it is there. */
function tokenOfLink() {
  const hash = new URLSearchParams(location.hash.slice(1)), search = new URLSearchParams(location.search);
  const token = hash.get("token") ?? search.get("token");
  if (token === null) return null;
  search.delete("token");
  history.replaceState(null, "", location.pathname + (search.size ? `?${search}` : ""));
  return token;
}

function askForToken(reason) {
  state.end?.();
  state.end = null;
  state.badges?.stop();
  state.session = null;
  login.show(app, reason, signIn);
}

async function signIn(token) {
  state.session = await post("/v1/session", { token });
  begin();
}

function begin() {
  app.replaceChildren(...frame);
  render();
  state.badges?.stop();
  state.badges = follow("", { refresh: refreshBadges, pollMs: 5000 });
}

async function start() {
  onReach((now) => {
    if (now === "unauthorized" && state.session) askForToken("The session is over: the token was revoked, or the browser was told to forget it.");
    else if ((now === false || now === "unavailable") && state.session) probe();
  });
  addEventListener("hashchange", () => {
    const other = tokenOfLink();
    if (other !== null) enter(other);
  });
  await enter(tokenOfLink());
}

/** Sign in with the link's token; without one, or with a wrong one, go on with the session there is. */
async function enter(token) {
  let isWrong = false;
  try {
    if (token) {
      try {
        await signIn(token);
        return;
      } catch (error) {
        if (error.status !== 401) throw error;
        isWrong = true;
      }
    }
    if (!state.session) {
      state.session = await get("/v1/session");
      begin();
    }
    if (isWrong) toast(`${WRONG_LINK} You stay signed in as before.`, "bad");
  } catch (error) {
    if (error.status === 401) askForToken(isWrong ? WRONG_LINK : "");
    else if (error.status === 0) {
      if (!state.session) login.waiting(app);
      setTimeout(enter, AWAY_MS, token);
    }
    else throw error;
  }
}

start();
