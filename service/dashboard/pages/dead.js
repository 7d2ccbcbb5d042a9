// Dead letters: what failed for good, by cause; looked into, tried again, or let go.

import { get, post, query } from "../api.js";
import { h, show } from "../dom.js";
import { count, plural, shortId } from "../format.js";
import { editAndRedrive } from "../redrive.js";
import { act, button, confirm, dialog, empty, labels, page, section, time, trouble } from "../parts.js";

const PAGE = 50;
const NAMES = ["queue", "type", "cause"];
const keyOf = (one) => NAMES.map((name) => one[name]).join("\n");

export function open(view) {
  view.title("Dead letters");
  const filter = Object.fromEntries(NAMES.map((name) => [name, view.params[name] ?? ""]));
  let counts = [];
  /** What is open: its jobs, and where the next page begins. */
  const opened = new Map();
  const mayAct = view.may("submit");

  const following = view.follow("/v1/events?status=failed", {
    async refresh() {
      try {
        ({ counts } = await get(query("/v1/dead-letters/counts", filter)));
        // A link from elsewhere names one group: that is what one came to see.
        if (counts.length === 1 && !opened.size && NAMES.some((name) => filter[name])) opened.set(keyOf(counts[0]), null);
        await Promise.all(counts.filter((one) => opened.has(keyOf(one))).map((one) => read(one)));
        draw();
      } catch (error) {
        if (!view.root.childElementCount) show(view.root, trouble(error));
        throw error;
      }
    },
  });

  const only = (one) => ({ queue: one.queue, type: one.type, cause: one.cause });

  async function read(one, more = false) {
    const known = opened.get(keyOf(one));
    const limit = more ? PAGE : Math.max(PAGE, Math.min(500, known?.jobs.length ?? 0));
    const found = await get(query("/v1/dead-letters", { ...only(one), limit, after: more ? known.next : "" }));
    opened.set(keyOf(one), { jobs: more ? [...known.jobs, ...found.jobs] : found.jobs, next: found.next_after });
  }

  async function toggle(one) {
    const key = keyOf(one);
    if (opened.has(key)) opened.delete(key);
    else await act(() => read(one));
    draw();
  }

  const acted = (work, told) => act(work, told).then((isDone) => { following.changed(); return isDone; });

  function redrive(one) {
    dialog(`Redrive ${plural(one.count, "job")}?`, (close) => h("form", {
      async onsubmit(event) {
        event.preventDefault();
        const rate = Number(new FormData(event.target).get("rate")) || null;
        if (await acted(() => post("/v1/dead-letters/redrive", { filter: whole(one), rate }), ({ redriven }) => `${plural(redriven, "job")} will be tried again`)) close();
      },
    },
      h("p", null, "Each gets a new budget of attempts. What had succeeded is not done again."),
      h("div", { class: "field" }, h("label", { for: "rate" }, "So many a second"),
        h("input", { id: "rate", name: "rate", type: "number", min: "0.001", step: "any", placeholder: "all at once" }),
        h("p", { class: "help" }, "Slower spares whatever they depend on.")),
      h("footer", null, button("Not now", { onclick: close }), button("Redrive", { type: "submit", kind: "primary" }))), { kind: "small" });
  }

  /** The filter of a group, or of all that is shown. */
  const whole = (one) => Object.fromEntries(NAMES.filter((name) => one[name]).map((name) => [name, one[name]]));

  function purge(one) {
    confirm(`Purge ${plural(one.count, "dead letter")}?`, "They can be tried again no more. History keeps them.", "Purge",
      () => acted(() => post("/v1/dead-letters/purge", { filter: whole(one) }), ({ purged }) => `${plural(purged, "dead letter")} purged`));
  }

  function draw() {
    const all = counts.reduce((sum, one) => sum + one.count, 0);
    const everything = { ...filter, count: all };
    const isFiltered = NAMES.some((name) => filter[name]);
    show(view.root, page("Dead letters", {
      sub: all ? `${plural(all, "job")} failed for good, in ${plural(counts.length, "group")}.` : null,
      actions: mayAct && all > 0 && [
        button(isFiltered ? "Redrive these" : "Redrive all", { icon: "retry", onclick: () => redrive(everything) }),
        button(isFiltered ? "Purge these" : "Purge all", { icon: "trash", kind: "ghost", onclick: () => purge(everything) }),
      ],
    },
      isFiltered && h("div", { class: "toolbar" }, NAMES.filter((name) => filter[name]).map((name) => h("span", { class: "chip on" }, h("b", null, name), filter[name])), h("a", { href: "/dead-letters", class: "button ghost small" }, "All dead letters")),
      counts.length
        ? h("div", { class: "panel groups" }, counts.map(group))
        : section("", { kind: "bare" }, empty("No dead letters", "A job whose attempts are used up, or that said it can never work, comes to stand here with every error it met. Nothing is tried again until somebody redrives it."))));
  }

  function group(one) {
    const key = keyOf(one), found = opened.get(key), isOpen = opened.has(key);
    const id = `group-${counts.indexOf(one)}`;
    return h("section", { "data-key": key, class: "group" },
      h("header", null,
        h("button", { type: "button", class: "fold", "aria-expanded": String(isOpen), "aria-controls": id, "data-row": true, onclick: () => toggle(one) },
          h("span", { class: "arrow", "aria-hidden": "true" }),
          h("b", { class: "bad num" }, count(one.count)), h("span", { class: "name" }, one.type), h("span", { class: "tag" }, one.cause), h("span", { class: "faint" }, `queue ${one.queue}`),
          !isOpen && one.error && h("span", { class: "why", title: one.error }, one.error)),
        mayAct && h("div", { class: "aside" },
          button("Redrive", { icon: "retry", kind: "small", onclick: () => redrive(one) }),
          button("", { icon: "trash", kind: "ghost small", title: one.count === 1 ? "Purge this one" : `Purge these ${count(one.count)}`, onclick: () => purge(one) }))),
      h("div", { id, hidden: !isOpen }, found && [
        h("ul", { class: "letters" }, found.jobs.map((job) => h("li", { "data-key": job.id },
          h("a", { class: "mono", href: `/jobs/${job.id}`, title: job.id }, shortId(job.id)),
          h("span", { class: "prose clamp", title: job.error?.message }, job.error?.message ?? "no reason is known"),
          h("span", { class: "chips" }, labels(job.labels, 2)),
          h("span", { class: "faint num" }, plural(job.attempts, "attempt"), " · ", time(job.finished_at)),
          mayAct && h("span", { class: "levers" }, !job.steps.length && button("Edit and redrive", { kind: "ghost small", onclick: () => editAndRedrive(job, following.changed) }), button("Redrive", { icon: "retry", kind: "ghost small", title: "Redrive this one", onclick: () => acted(() => post(`/v1/jobs/${job.id}/retry`), "It has a new budget of attempts") }))))),
        found.next !== null && button("Show more", { kind: "ghost small", onclick: () => act(() => read(one, true)).then(draw) }),
      ]));
  }
  return () => following.stop();
}
