// Jobs that are submitted again and again: which, when next, and by what.

import { enc, get, post, query, request } from "../api.js";
import { h, show } from "../dom.js";
import { NotReady, schemaForm } from "../form.js";
import { count, exactIn } from "../format.js";
import { act, button, code, confirm, dialog, empty, jobLink, page, reasonOf, section, table, time, trouble } from "../parts.js";

const TICKS = 12;
const PAGE = 1000;

export function open(view) {
  const [name] = view.args;
  view.title(name ?? "Schedules");
  const mayAct = view.may("submit");
  const following = view.follow("", {
    async refresh() {
      try {
        if (name) drawOne(await get(query(`/v1/schedules/${enc(name)}`, { tenant: view.params.tenant, next: TICKS })));
        else drawAll(await everyOne());
      } catch (error) {
        if (!view.root.childElementCount) show(view.root, trouble(error));
        throw error;
      }
    },
    pollMs: 5000,
  });
  const at = (one, what = "") => query(`/v1/schedules/${enc(one.name)}${what}`, { tenant: one.tenant });
  const here = (one) => query(`/schedules/${enc(one.name)}`, { tenant: one.tenant });
  const acted = (work, told) => act(work, told).then((isDone) => { following.changed(); return isDone; });

  const levers = (one, kind) => mayAct && [
    button("Run now", { icon: "play", kind, title: "Submit its job now", onclick: () => acted(() => post(at(one, "/run")), "Its job is submitted") }),
    one.paused
      ? button("Resume", { icon: "retry", kind, onclick: () => acted(() => post(at(one, "/resume")), `${one.name} fires again`) })
      : button("Pause", { icon: "pause", kind, onclick: () => acted(() => post(at(one, "/pause")), `${one.name} fires no more for now`) }),
  ];

  function drawAll(all) {
    show(view.root, page("Schedules", { actions: mayAct && button("New schedule", { icon: "submit", kind: "primary", onclick: create }) },
      all.length ? h("div", { class: "panel" }, table(["Name", "When", "Next", "Last", ["Fired", "num"], ""], all.map((one) =>
        h("tr", { "data-key": `${one.tenant}/${one.name}` },
          h("td", null, h("a", { href: here(one), "data-row": true }, h("b", null, one.name)), h("span", { class: "faint" }, ` ${one.job.type ?? ""}`), one.paused && h("span", { class: "tag wait" }, "paused")),
          h("td", null, h("code", null, one.cron), h("span", { class: "faint" }, ` ${one.timezone}`)),
          h("td", null, time(one.next[0], one.paused ? "paused" : "over")),
          h("td", null, one.last_job ? [jobLink(one.last_job), " ", time(one.last_at)] : "–"),
          h("td", { class: "num" }, count(one.fired), one.skipped ? h("span", { class: "faint" }, `, ${count(one.skipped)} skipped`) : null),
          h("td", { class: "end" }, levers(one, "small")))), { label: "Schedules" }))
        : h("div", { class: "panel" }, empty("No schedules", "A schedule submits a job at each tick of a cron line, and makes up for ticks that a restart missed.", `drayman schedule put nightly --cron "0 2 * * *" shop.invoice customer=Ada`))));
  }

  function drawOne(one) {
    show(view.root, page(one.name, {
      sub: [h("code", null, one.cron), ` ${one.timezone}`, one.paused ? " · paused" : ""],
      actions: [levers(one, ""), mayAct && button("Delete", { icon: "trash", kind: "ghost", onclick: () => confirm(`Delete ${one.name}?`, "It fires no more. Jobs that it submitted go on.", "Delete", async () => {
        if (await act(() => request("DELETE", at(one)), `${one.name} is gone`)) view.go("/schedules");
      }) })],
    },
      h("div", { class: "columns" },
        section("Next ticks", { aside: one.timezone }, one.next.length
          ? h("ol", { class: "ticks" }, one.next.map((tick) => h("li", { "data-key": tick }, h("span", null, exactIn(tick, one.timezone)), time(tick))))
          : h("p", { class: "quiet" }, one.paused ? "It is paused." : "It is over.")),
        h("div", { class: "stack" },
          section("How", {}, h("dl", { class: "facts" },
            fact("Missed ticks", { none: "are left out", latest: "the latest is made up for", all: "all are made up for" }[one.catch_up]),
            fact("Overlap", one.overlap === "skip" ? "skipped while the last job runs" : "allowed"),
            fact("Jitter", one.jitter_s ? `up to ${one.jitter_s} s` : "none"),
            fact("Fired", `${count(one.fired)}${one.skipped ? `, ${count(one.skipped)} skipped` : ""}`),
            fact("Last job", one.last_job ? jobLink(one.last_job) : "none yet"),
            fact("Tenant", one.tenant))),
          section("What it submits", {}, code(JSON.stringify(one.job, null, 2)))))));
  }

  async function create() {
    let types;
    try {
      ({ types } = await get("/v1/types"));
    } catch (error) {
      act(() => Promise.reject(error));
      return;
    }
    const head = schemaForm(HEAD(types));
    const place = h("div", null);
    const error = h("div", { class: "banner bad", role: "alert", hidden: true });
    let params = null;
    function picked() {
      const type = types.find((one) => one.name === head.node.querySelector("select").selectedOptions[0].textContent);
      params = type ? schemaForm(type.params_schema) : null;
      place.replaceChildren(...(params ? [h("h3", null, "Params"), params.node] : []));
    }
    head.node.querySelector("select").addEventListener("change", picked);
    picked();
    dialog("New schedule", (close) => h("form", {
      novalidate: true,
      async onsubmit(event) {
        event.preventDefault();
        error.hidden = true;
        try {
          const { name, type, ...how } = head.read();
          const job = { type, params: params.read() };
          await request("PUT", `/v1/schedules/${enc(name)}`, { json: { ...how, job } });
          close();
          following.changed();
        } catch (problem) {
          if (problem instanceof NotReady) return;
          const rest = [];
          for (const { field, reason } of problem.errors ?? []) {
            const path = field.split(".");
            if (path[0] === "job" && path[1] === "params") params.fail(path.slice(2), reason);
            else if (path[0] in HEAD(types).properties) head.fail(path, reason);
            else rest.push(`${field}: ${reason}`);
          }
          error.hidden = Boolean(problem.errors?.length && !rest.length);
          error.textContent = rest.join("; ") || reasonOf(problem);
        }
      },
    }, error, head.node, place, h("footer", null, button("Not now", { onclick: close }), button("Create", { type: "submit", kind: "primary" }))));
  }
  return () => following.stop();
}

async function everyOne() {
  const found = [];
  let after = null;
  do {
    const page = await get(query("/v1/schedules", { after, limit: PAGE }));
    found.push(...page.schedules);
    after = page.next_after;
  } while (after !== null);
  return found;
}

const fact = (name, value) => h("div", null, h("dt", null, name), h("dd", null, value));

const HEAD = (types) => ({
  type: "object",
  required: ["name", "cron", "type"],
  properties: {
    type: { enum: types.map((one) => one.name), label: "Job type" },
    name: { type: "string", minLength: 1, label: "Name", examples: ["nightly-report"], description: "a-z, 0-9, '.', '_' and '-'." },
    cron: { type: "string", minLength: 1, label: "Cron line", examples: ["0 2 * * *"], description: "Minute, hour, day of month, month, day of week; or @daily and the like." },
    timezone: { type: "string", default: "UTC", label: "Time zone", examples: ["Europe/Berlin"] },
    catch_up: { enum: ["none", "latest", "all"], default: "latest", label: "Missed ticks made up for" },
    overlap: { enum: ["allow", "skip"], default: "allow", label: "While its last job is unfinished" },
  },
});
