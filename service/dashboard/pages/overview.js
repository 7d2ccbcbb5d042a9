// How things are: how fast, how late, how much waits, who works, what fails.

import { get } from "../api.js";
import { endings, ran, sparkline } from "../charts.js";
import { h, show } from "../dom.js";
import { count, duration, plural, rate } from "../format.js";
import { curl, empty, jobLink, meter, page, section, status, table, time, trouble } from "../parts.js";

/** Samples of this long are kept for the small lines, over reloads too. */
const KEEP_MS = 10 * 60 * 1000;
/** Kinds of dead letters that are shown. */
const CAUSES = 6;
const KEPT = "drayman-samples";

export function open(view) {
  view.title("Overview");
  const samples = kept();
  const following = view.follow("/v1/events", {
    async refresh() {
      try {
        const [overview, { queues }, { counts }, { jobs }] = await Promise.all([
          get("/v1/overview"), get("/v1/queues"), get("/v1/dead-letters/counts"), get("/v1/jobs?limit=8"),
        ]);
        note(samples, overview, queues, counts);
        show(view.root, draw(overview, queues, counts, jobs, samples));
      } catch (error) {
        if (!view.root.childElementCount) show(view.root, trouble(error));
        throw error;
      }
    },
    besideMs: 2500,
  });
  return () => following.stop();
}

function kept() {
  try {
    const found = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
    return found.filter((one) => Date.now() - one.at < KEEP_MS);
  } catch {
    return [];
  }
}

const sum = (list, of) => list.reduce((total, one) => total + of(one), 0);

function note(samples, { workers, recent }, queues, counts) {
  samples.push({
    at: Date.now(),
    rate: sum(queues, (one) => one.drain_rate),
    wait: recent.wait_s?.p95 ?? null,
    backlog: sum(queues, (one) => one.ready + one.parked),
    busy: workers.running,
    dead: sum(counts, (one) => one.count),
  });
  while (samples.length && Date.now() - samples[0].at > KEEP_MS) samples.shift();
  sessionStorage.setItem(KEPT, JSON.stringify(samples));
}

function draw(overview, queues, counts, jobs, samples) {
  const { workers, recent } = overview;
  const line = (name, label) => samples.length > 1 && sparkline(samples.map((one) => one[name]), label);
  const last = samples.at(-1);
  const slots = workers.running + workers.free;
  const oldest = Math.max(0, ...queues.map((one) => one.oldest_age_s));
  const failed = sum(recent.ended, (one) => one[1]), ended = sum(recent.ended, (one) => one[0] + one[1] + one[2]);
  const isNew = !jobs.length && !ended;
  return page("Overview", { sub: isNew ? "Nothing was submitted yet." : null },
    h("div", { class: "tiles panel" },
      tile("Throughput", rate(last.rate), "tasks finished, last minute", line("rate", "Throughput of the last minutes")),
      tile("Wait", recent.wait_s ? duration(recent.wait_s.p50) : "–", recent.wait_s ? `95 % within ${duration(recent.wait_s.p95)}` : "until a job starts", line("wait", "Wait of the last minutes")),
      tile("Backlog", count(last.backlog), last.backlog ? `oldest ${duration(oldest)}` : "nothing waits", line("backlog", "Backlog of the last minutes"), "/queues"),
      tile("Workers", `${count(workers.running)}`, `running on ${plural(workers.alive, "worker")}${slots ? `, ${count(workers.free)} free` : ""}`, line("busy", "Running attempts of the last minutes"), "/workers"),
      tile("Failures", count(last.dead), last.dead ? `${plural(last.dead, "dead letter")}${failed ? `, ${count(failed)} lately` : ""}` : "no dead letters", line("dead", "Dead letters of the last minutes"), "/dead-letters", last.dead ? "bad" : "")),
    isNew ? section("Begin", {}, empty("Submit a first job", "From the form (press c), or from anywhere that speaks HTTP:", curl("/v1/jobs", { type: "…", params: {} }))) :
    section("Ended jobs", { aside: legend() }, endings(recent)),
    h("div", { class: "columns" },
      section("Queues", { aside: h("a", { href: "/queues" }, "All queues"), key: "queues" }, queueList(queues)),
      section("Why jobs failed", { aside: h("a", { href: "/dead-letters" }, "Dead letters"), key: "dead" }, causes(counts))),
    jobs.length > 0 && section("Newest jobs", { aside: h("a", { href: "/jobs" }, "All jobs"), key: "jobs" }, newest(jobs)));
}

function tile(label, value, more, line, href, tone = "") {
  const inside = [h("h2", null, label), h("p", { class: `value ${tone}` }, value), h("p", { class: "more" }, more), h("div", { class: "line" }, line)];
  return href ? h("a", { class: "tile", href, "data-key": label }, inside) : h("div", { class: "tile", "data-key": label }, inside);
}

function legend() {
  return h("span", { class: "legend" }, ["completed", "failed", "cancelled"].map((name) => status(name)));
}

function queueList(queues) {
  const top = [...queues].sort((a, b) => b.ready + b.leased - a.ready - a.leased).slice(0, 6);
  const most = Math.max(1, ...top.map((one) => one.ready + one.leased + one.parked));
  return h("ul", { class: "bars" }, top.map((one) => h("li", { "data-key": one.name },
    h("a", { href: `/jobs?queue=${encodeURIComponent(one.name)}` }, one.name),
    meter((one.ready + one.leased + one.parked) / most, `${one.name}: how much waits or runs`, one.paused ? "off" : "run"),
    h("span", { class: "num" }, one.paused ? "paused" : `${count(one.ready + one.parked)} waiting, ${count(one.leased)} running`))));
}

function causes(counts) {
  if (!counts.length) return empty("No dead letters", "A job whose attempts are used up comes to stand here, with all that went wrong.");
  const most = counts[0].count;
  return h("ul", { class: "bars" }, counts.slice(0, CAUSES).map((one) => h("li", { "data-key": `${one.queue}/${one.type}/${one.cause}` },
    h("a", { href: `/dead-letters?${new URLSearchParams({ type: one.type, queue: one.queue, cause: one.cause })}` }, one.type),
    meter(one.count / most, `${one.type}: dead letters`, "bad"),
    h("span", { class: "num" }, `${count(one.count)} · ${one.cause}`),
    one.error && h("span", { class: "why", title: one.error }, one.error))));
}

function newest(jobs) {
  return table(["Status", "Type", "Job", ["Ran", "num"], ["Submitted", "num"]], jobs.map((job) =>
    h("tr", { "data-key": job.id },
      h("td", null, status(job.status)), h("td", null, job.type), h("td", null, jobLink(job.id)),
      h("td", { class: "num" }, job.started_at ? duration(ran(job)) : "–"), h("td", { class: "num" }, time(job.submitted_at)))), { label: "Newest jobs" });
}
