// All jobs, running and finished: filtered, searched, as long a list as there is.

import { get, query } from "../api.js";
import { ran } from "../charts.js";
import { h, show } from "../dom.js";
import { count, duration, shortId } from "../format.js";
import { button, curl, empty, icon, labels, meter, status, time, trouble } from "../parts.js";
import { virtualList } from "../virtual.js";

const STATUSES = ["scheduled", "pending", "processing", "completed", "failed", "cancelled"];
const PAGE = 100;
/** Rows kept at most; beyond that a filter is of more use than scrolling. */
const ROWS_MAX = 100000;
const UUID = /^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$/i;
const FILTERS = ["status", "type", "queue", "label", "tenant"];

export function open(view) {
  view.title("Jobs");
  const filter = Object.fromEntries(FILTERS.map((name) => [name, view.params[name] ?? ""]));
  let items = [], next = null, isFirst = true, known = { types: [], queues: [] }, error = null;
  /** Counts filters: what was asked for an earlier one is thrown away. */
  let era = 0;

  const list = virtualList({ rowOf: row, more, label: "Jobs", rowHeight: () => (matchMedia("(max-width: 720px)").matches ? 64 : 45) });
  const head = h("div", { class: "toolbar" });
  const note = h("div", { class: "note", role: "status", "aria-live": "polite" });
  const rest = h("div", null);
  show(view.root, h("header", { class: "page-head" }, h("h1", { tabindex: "-1" }, "Jobs")));
  view.root.append(head, note, h("div", { class: "panel list" }, list.node), rest);

  async function load() {
    const mine = era;
    const page = await get(query("/v1/jobs", { ...filter, limit: PAGE }));
    if (mine !== era) return;
    const isNew = isFirst;
    let added = [];
    if (isNew) {
      items = page.jobs;
      next = page.next_after;
    } else {
      // What is new goes on top, what is known is brought up to date where it stands; and within
      // the page that was read, whatever no longer matches is gone.
      const fresh = new Map(page.jobs.map((job) => [job.id, job]));
      const known = new Set(items.map((job) => job.id));
      added = page.jobs.filter((job) => !known.has(job.id));
      const last = page.next_after === null ? items.length - 1 : items.findLastIndex((job) => fresh.has(job.id));
      items = items.map((job) => fresh.get(job.id) ?? job).filter((job, i) => i > last || fresh.has(job.id));
      items = [...added, ...items];
      if (page.next_after === null) next = null;
    }
    isFirst = false;
    error = null;
    draw(isNew ? 0 : added.length);
  }

  async function more() {
    if (next === null || items.length >= ROWS_MAX) return;
    const mine = era, after = next;
    const page = await get(query("/v1/jobs", { ...filter, limit: 5 * PAGE, after }));
    if (mine !== era || after !== next) return;
    const known = new Set(items.map((job) => job.id));
    items = [...items, ...page.jobs.filter((job) => !known.has(job.id))];
    next = page.next_after;
    draw();
  }

  function set(changes) {
    Object.assign(filter, changes);
    items = [];
    next = null;
    isFirst = true;
    era += 1;
    history.replaceState(null, "", query("/jobs", filter));
    drawHead();
    following.stop();
    following = start();
  }

  function broke(problem) {
    error = problem;
    draw();
  }

  function draw(above = 0) {
    list.set(items, next === null || items.length >= ROWS_MAX, above);
    const isFiltered = FILTERS.some((name) => filter[name]);
    show(note, error ? "" : isFirst ? "" : `${count(items.length)}${next === null ? "" : "+"} ${items.length === 1 ? "job" : "jobs"}${isFiltered ? (items.length === 1 && next === null ? " matches" : " match") : ""}`);
    const isNothing = !isFirst && !items.length && next === null;
    show(rest, error ? trouble(error) : !isFirst && !items.length && next !== null ? h("p", { class: "quiet", role: "status" }, "Looking further back …") : isNothing && (isFiltered
      ? empty("No job matches", "History keeps finished jobs as long as the operator said. Try fewer filters.")
      : empty("No jobs yet", "Submit one from the form (press c), or with:", curl("/v1/jobs", { type: "…", params: {} }))));
    list.node.parentElement.hidden = !items.length;
  }

  function drawHead() {
    const chip = (name, value) => h("button", { type: "button", class: "chip on", onclick: () => set({ [name]: "" }), title: `Without ${name}` }, h("b", null, name), value, icon("close"));
    show(head,
      search({ known: () => known, knowing, listed: () => items, set }),
      h("div", { class: "segments", role: "group", "aria-label": "Status" },
        ["", ...STATUSES].map((name) => h("button", { type: "button", "aria-pressed": String(filter.status === name), onclick: () => set({ status: name }) }, name || "all"))),
      h("label", { class: "select" }, h("span", { class: "hidden" }, "Type"), select("Any type", known.types.map((one) => one.name), filter.type, (type) => set({ type }))),
      h("label", { class: "select" }, h("span", { class: "hidden" }, "Queue"), select("Any queue", known.queues.map((one) => one.name), filter.queue, (queue) => set({ queue }))),
      ["label", "tenant"].filter((name) => filter[name]).map((name) => chip(name, filter[name])),
      FILTERS.some((name) => filter[name]) && button("Clear", { kind: "ghost small", onclick: () => set(Object.fromEntries(FILTERS.map((name) => [name, ""]))) }));
  }

  function pastEnd(event) {
    const rows = [...list.node.querySelectorAll("[data-row]")];
    const at = rows.indexOf(document.activeElement);
    const index = Number(rows[at]?.dataset.row) + event.detail;
    if (index >= 0 && index < items.length) list.reach(index);
  }

  const knowing = Promise.all([get("/v1/types"), get("/v1/queues")]).then(([types, queues]) => {
    known = { ...types, ...queues };
    drawHead();
  }, () => {});
  drawHead();
  view.root.addEventListener("past-end", pastEnd);
  // Not with the status: of what leaves it one wants to hear, too.
  const start = () => view.follow(query("/v1/events", { ...filter, status: "" }), {
    refresh: () => load().catch((problem) => { if (isFirst) broke(problem); throw problem; }),
  });
  let following = start();
  if (view.params.focus) head.querySelector("input").focus();
  return () => { following.stop(); list.stop(); view.root.removeEventListener("past-end", pastEnd); };
}

function select(none, names, value, onpick) {
  const all = value && !names.includes(value) ? [...names, value] : names;
  return h("select", { value, onchange: (event) => onpick(event.target.value) },
    h("option", { value: "", selected: !value }, none), all.map((name) => h("option", { value: name, selected: name === value }, name)));
}

/** One field for ids, labels, types and queues: it says what it took the words for. */
function search({ known, knowing, listed, set }) {
  const offers = h("ul", { class: "offers", role: "listbox", id: "offers", hidden: true, "data-own": true });
  function found(text) {
    const word = text.trim(), low = word.toLowerCase();
    if (!word) return [];
    if (UUID.test(word)) return [["Job", shortId(word), { open: word }]];
    const isEnd = /^[0-9a-f-]{6,}$/.test(low);
    const ends = isEnd ? listed().filter((job) => job.id.endsWith(low)).slice(0, 3).map((job) => ["Job", `${shortId(job.id)} ${job.type}`, { open: job.id }]) : [];
    const label = /^([^=\s]+)=(.*)$/.exec(word);
    const all = label ? [["Label", word, { label: word }]] : ends;
    const place = (one) => one.name.toLowerCase().indexOf(low);
    const types = known().types.filter((one) => place(one) >= 0).sort((a, b) => place(a) - place(b));
    all.push(...types.slice(0, 5).map((one) => ["Type", one.name, { type: one.name }]));
    all.push(...known().queues.filter((one) => one.name.toLowerCase().includes(low)).slice(0, 3).map((one) => ["Queue", one.name, { queue: one.name }]));
    all.push(...STATUSES.filter((name) => name.startsWith(low)).map((name) => ["Status", name, { status: name }]));
    return all;
  }
  let at = 0;
  function offer(event) {
    const all = found(event.target.value);
    at = Math.min(at, Math.max(0, all.length - 1));
    const text = event.target.value.trim();
    offers.hidden = !text;
    event.target.setAttribute("aria-expanded", String(Boolean(text)));
    offers.replaceChildren(...(all.length ? all.map(([kind, name, change], i) =>
      h("li", { role: "option", id: `offer-${i}`, "aria-selected": String(i === at), onmousedown: (down) => { down.preventDefault(); take(event.target, change); } }, h("b", null, kind), name))
      : [h("li", { role: "option", "aria-selected": "false", class: "faint" }, "Write a whole id, or the end of one that is listed here; name=value for a label; or part of a type, a queue or a status")]));
    if (all.length) event.target.setAttribute("aria-activedescendant", `offer-${at}`);
    else event.target.removeAttribute("aria-activedescendant");
  }
  function take(field, change) {
    field.value = "";
    offers.hidden = true;
    field.setAttribute("aria-expanded", "false");
    if (change.open) { field.blur(); history.pushState(null, "", `/jobs/${change.open}`); dispatchEvent(new PopStateEvent("popstate")); } else set(change);
  }
  async function pressed(event) {
    if (event.key === "Enter") {
      const field = event.target, { value } = field;
      await knowing; // Some type faster than the names come.
      const one = found(value)[at];
      if (one && field.value === value) take(field, one[2]);
      return;
    }
    const all = found(event.target.value);
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      at = (at + (event.key === "ArrowDown" ? 1 : -1) + all.length) % Math.max(1, all.length);
      offer(event);
    } else if (event.key === "Escape") offers.hidden = true;
  }
  return h("div", { class: "search", "data-key": "search", "data-own": true },
    icon("search"),
    h("input", {
      type: "search", placeholder: "Search: id, label=value, type, queue", "aria-label": "Search jobs", role: "combobox", "aria-expanded": "false",
      "aria-controls": "offers", autocomplete: "off", spellcheck: "false",
      oninput: (event) => { at = 0; offer(event); }, onkeydown: pressed, onblur: () => { offers.hidden = true; },
    }),
    h("kbd", { "aria-hidden": "true" }, "/"), offers);
}

function row(job, index) {
  const fraction = job.status === "processing" ? job.progress?.fraction : null;
  const told = job.error && job.status !== "completed" ? job.error.message : job.progress?.message || (job.pending_reason ?? "");
  return h("div", { role: "listitem", "data-key": job.id, "aria-posinset": String(index + 1), "aria-setsize": "-1" },
    h("a", { class: "row", href: `/jobs/${job.id}`, "data-row": String(index) },
      h("span", { class: "c-status" }, status(job.status, job.stopping ? "stopping" : job.next_attempt_at ? "will retry" : "")),
      h("span", { class: "c-type" }, h("b", null, job.type), h("span", { class: "mono faint", title: job.id }, shortId(job.id))),
      h("span", { class: "c-told" }, fraction !== null && fraction !== undefined && meter(fraction, "Progress"), h("span", { class: `told ${job.status === "failed" ? "bad" : ""}`, title: told }, told), h("span", { class: "chips" }, chips(job))),
      h("span", { class: "c-queue faint" }, job.queue),
      h("span", { class: "c-ran num" }, job.started_at ? duration(ran(job)) : "–"),
      h("span", { class: "c-time num" }, time(job.submitted_at))));
}

function chips(job) {
  // A link within a link is none: here they only tell.
  return labels(job.labels, 2).map((one) => {
    const plain = h("span", { class: "chip", title: one.title });
    plain.append(...one.childNodes);
    return plain;
  });
}
