// Every queue: what waits, how fast it goes, and the levers there are.

import { enc, get, post, request } from "../api.js";
import { h, show } from "../dom.js";
import { bytes, count, duration, plural, rate } from "../format.js";
import { act, button, confirm, dialog, meter, page, section, table, trouble } from "../parts.js";

export function open(view) {
  view.title("Queues");
  const isAdmin = view.may("admin");
  let config = null;
  const following = view.follow("/v1/events", {
    async refresh() {
      try {
        const [{ queues }, found] = await Promise.all([get("/v1/queues"), isAdmin && !config ? get("/v1/config") : config]);
        config = found;
        show(view.root, draw(queues));
      } catch (error) {
        if (!view.root.childElementCount) show(view.root, trouble(error));
        throw error;
      }
    },
  });

  const lever = (name, what, done) => () => act(() => post(`/v1/queues/${enc(name)}/${what}`), done).then(() => following.changed());

  function draw(queues) {
    return page("Queues", { sub: `${plural(queues.length, "queue")}. Pausing stops new starts; draining refuses new submissions.` },
      h("div", { class: "cards" }, queues.map(card)),
      config && limits(config));
  }

  function card(one) {
    const waiting = one.ready + one.parked;
    const fact = (name, value, href) => h("div", null, h("dt", null, name), h("dd", null, href ? h("a", { href }, value) : value));
    const jobs = (status) => `/jobs?queue=${enc(one.name)}&status=${status}`;
    return h("section", { class: `panel queue ${one.paused ? "paused" : ""}`, "data-key": one.name, "aria-label": `Queue ${one.name}` },
      h("header", null,
        h("h2", null, h("a", { href: `/jobs?queue=${enc(one.name)}` }, one.name)),
        one.paused && h("span", { class: "tag wait" }, "paused"),
        one.draining && h("span", { class: "tag wait" }, "draining"),
        isAdmin && h("div", { class: "aside" },
          one.paused
            ? button("Resume", { icon: "play", kind: "small", onclick: lever(one.name, "resume", `${one.name} goes on`) })
            : button("Pause", { icon: "pause", kind: "small", onclick: lever(one.name, "pause", `Nothing more starts from ${one.name}`) }),
          one.draining
            ? button("Take again", { icon: "drain", kind: "small", onclick: lever(one.name, "fill", `${one.name} takes submissions again`) })
            : button("Drain", { icon: "drain", kind: "small", onclick: () => confirm(`Drain ${one.name}?`, "Submissions to it are refused with 503 until you let it take them again. What is in it is done.", "Drain", lever(one.name, "drain", `${one.name} takes nothing new`)) }),
          button("Limits", { kind: "small ghost", onclick: () => edit(one) }))),
      one.pending_reason && h("p", { class: "banner wait" }, one.pending_reason),
      h("div", { class: "depth" },
        meter(one.depth / Math.max(1, one.depth_max), `${one.name}: unfinished jobs of its limit`, one.depth > 0.8 * one.depth_max ? "bad" : "run"),
        h("p", { class: "faint" }, `${count(one.depth)} of ${count(one.depth_max)} unfinished jobs, ${bytes(one.bytes)} of ${bytes(one.bytes_max)}`)),
      h("dl", { class: "numbers" },
        fact("Waiting", count(waiting), jobs("pending")),
        fact("Running", count(one.leased), jobs("processing")),
        fact("Scheduled", count(one.scheduled), jobs("scheduled")),
        fact("Will retry", count(one.backing_off)),
        fact("Dead", count(one.dead), `/dead-letters?queue=${enc(one.name)}`),
        fact("Rate", rate(one.drain_rate)),
        fact("Runs", duration(one.run_s)),
        fact("Oldest waits", waiting ? duration(one.oldest_age_s) : "–"),
        fact("New starts in", one.eta ? `${duration(one.eta.seconds)}` : "–"),
        fact("Workers", count(one.workers))));
  }

  function edit(one) {
    const set = config.queues?.[one.name] ?? {};
    const field = (name, label, help, value) => h("div", { class: "field" }, h("label", { for: `limit-${name}` }, label), h("input", { id: `limit-${name}`, name, type: "number", min: "1", step: "1", value: value ?? "", placeholder: "as it is by default" }), h("p", { class: "help" }, help));
    const error = h("p", { class: "error", role: "alert" });
    dialog(`Limits of ${one.name}`, (close) => h("form", {
      async onsubmit(event) {
        event.preventDefault();
        error.textContent = "";
        const wanted = Object.fromEntries([...new FormData(event.target)].map(([name, text]) => [name, text === "" ? undefined : Number(text)]));
        try {
          // Read anew: only what was looked at is replaced.
          const answer = await request("GET", "/v1/config");
          const whole = await answer.json();
          whole.queues = { ...whole.queues, [one.name]: { ...whole.queues?.[one.name], ...wanted } };
          config = await (await request("PUT", "/v1/config", { json: whole, headers: { "If-Match": answer.headers.get("etag") } })).json();
          close();
          following.changed();
        } catch (problem) {
          error.textContent = problem.errors?.map((one) => `${one.field}: ${one.reason}`).join("; ") || problem.message;
        }
      },
    },
      field("depth_max", "Unfinished jobs", "Beyond that, submissions to it are refused.", set.depth_max ?? one.depth_max),
      field("bytes_max", "Bytes of their params", "What they may take in the manager's memory.", set.bytes_max ?? one.bytes_max),
      error,
      h("footer", null, button("Keep as it is", { onclick: close }), button("Set", { type: "submit", kind: "primary" }))));
  }
  return () => following.stop();
}

function limits(config) {
  const all = Object.entries(config.limits ?? {}), tenants = Object.entries(config.tenants ?? {});
  if (!all.length && !tenants.length) return null;
  return h("div", { class: "columns" },
    all.length > 0 && section("Limits by key", { key: "limits" }, table(["Key", ["At once", "num"], ["A second", "num"]], all.map(([name, one]) =>
      h("tr", { "data-key": name }, h("td", { class: "mono" }, name), h("td", { class: "num" }, one.concurrency ?? "–"), h("td", { class: "num" }, one.rate ?? "–"))), { label: "Limits by key" })),
    tenants.length > 0 && section("Tenants", { key: "tenants" }, table(["Tenant", ["Weight", "num"]], tenants.map(([name, one]) =>
      h("tr", { "data-key": name }, h("td", null, name), h("td", { class: "num" }, one.weight ?? 1))), { label: "Tenants" })));
}
