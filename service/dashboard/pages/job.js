// One job: how far it is, what happened to it, what it printed, what it made.

import { enc, get, post, query, request } from "../api.js";
import { graph, ran, taskName, timeline } from "../charts.js";
import { h, show } from "../dom.js";
import { count, duration, plural } from "../format.js";
import { follow as poll } from "../live.js";
import { act, button, code, copyButton, confirm, empty, icon, jobLink, labels, meter, page, section, status, table, time, trouble, words } from "../parts.js";
import { fileList, growing, params } from "../preview.js";
import { editAndRedrive } from "../redrive.js";

const OVER = ["completed", "failed", "cancelled"];
/** Workers store what an attempt printed each two seconds. */
const LOG_MS = 1000;
const TASKS = 100;
/** A second click within so long belongs to the first. */
const DOUBLE_MS = 1000;

export function open(view) {
  const [id] = view.args;
  view.title(`Job ${id.slice(-8)}`);
  const state = { job: null, attempts: [], tasks: null, step: null, params: null, log: 0, logTurn: 0, logOf: "", logTag: "", logTask: "", revivedUntil: 0, error: null };
  const logs = growing("Log");
  const base = `/v1/jobs/${enc(id)}`;

  async function refresh() {
    try {
      const [job, { attempts }] = await Promise.all([get(base), get(`${base}/attempts`)]);
      const isRevived = state.job?.status === "failed" && job.status !== "failed";
      Object.assign(state, { job, attempts, error: null });
      if (isRevived) revive();
    } catch (error) {
      if (!state.job) show(view.root, trouble(error));
      throw error;
    }
    view.title(`${state.job.type} · ${words(state.job.status)}`);
    draw();
    await Promise.all([readLog(), readTasks(), readParams()]);
    // A failed one may be redriven, from wherever.
    if (OVER.includes(state.job.status) && state.job.status !== "failed") following.stop();
  }

  /** Its stream had ended, and who redrives a job may change its params. */
  function revive() {
    Object.assign(state, { params: null, revivedUntil: Date.now() + DOUBLE_MS });
    refollow();
  }

  async function readLog() {
    const { attempts, logTask } = state;
    const isRunning = attempts.some(runs);
    // A log is whole once its attempt has ended, and never changes after.
    const key = attempts.filter((one) => one.has_log).map((one) => `${one.task_id}${one.number}`).join() + logTask;
    if (!isRunning && key === state.logOf) return;
    const turn = ++state.logTurn;
    const answer = await request("GET", query(`${base}/logs`, { task: logTask }));
    const tag = answer.headers.get("etag") + logTask;
    const text = tag === state.logTag ? await answer.body?.cancel() : await answer.text();
    if (turn !== state.logTurn) return; // It was asked again meanwhile.
    if (text !== undefined) {
      const settle = logs.show(text, `… the beginning is left out; see ${base}/logs\n`);
      Object.assign(state, { log: text.length, logTag: tag });
      draw();
      settle();
    }
    if (!isRunning) state.logOf = key;
  }

  async function readParams() {
    if (state.params) return;
    try {
      state.params = params(await (await request("GET", `${base}/params`)).text());
    } catch (error) {
      if (error.status !== 404) throw error;
      state.params = () => h("p", { class: "quiet" }, error.message);
    }
    draw();
  }

  async function readTasks() {
    if (!state.job.steps.length) return;
    state.tasks = await get(`${base}/tasks?limit=${TASKS}`);
    draw();
  }

  const follow = () => view.follow(`${base}/events`, {
    refresh,
    onEvent(type, data) {
      if (type !== "progress" || !state.job || !data) return;
      const { fraction = null, message = "" } = data.progress ?? data;
      state.job = { ...state.job, progress: { fraction, message } };
      draw();
    },
  });

  async function acted(work, done) {
    const isDone = await act(work, done);
    refollow();
    return isDone;
  }

  function refollow() {
    following.stop();
    following = follow();
  }

  function actions(job) {
    const found = [];
    if (!view.may("submit")) return found;
    if (!OVER.includes(job.status)) {
      found.push(button("Cancel", {
        icon: "stop", key: "cancel", disabled: Boolean(job.stopping),
        // It takes the place of Redrive: a second click there is not meant for it.
        onclick: () => Date.now() > state.revivedUntil && confirm("Cancel this job?", job.status === "processing" ? "It is asked to stop, and ended by force after its grace." : "It has not begun, and will not.", "Cancel the job", () => acted(() => post(`${base}/cancel`), "It will stop")),
      }));
    }
    if (job.status === "failed") {
      found.push(button("Redrive", { icon: "retry", kind: "primary", key: "redrive", title: "Give it a new budget of attempts", onclick: () => acted(() => post(`${base}/retry`), "It has a new budget of attempts") }));
      if (!job.steps.length) {
        found.push(button("Edit and redrive", { icon: "retry", key: "edit", onclick: () => editAndRedrive(job, refollow) }));
      }
    }
    found.push(h("a", { class: "button", href: `/submit?type=${enc(job.type)}`, "data-key": "again" }, icon("submit"), h("span", null, "Submit another")));
    return found;
  }

  function draw() {
    const { job, attempts } = state;
    const files = section("Files", { key: "files", aside: job.files.length ? plural(job.files.length, "file") : null },
      job.files.length ? fileList(job.files) : h("p", { class: "quiet" }, "It wrote no files."));
    show(view.root, page(
      h("span", { class: "job-title" }, job.type, h("span", { role: "status" }, status(job.status, job.stopping ? `stopping: ${job.stopping}` : ""))),
      { sub: [h("span", { class: "mono" }, job.id), copyButton(job.id, "Copy the id")], actions: actions(job) },
      banner(job),
      progress(job),
      facts(job),
      h("div", { class: `columns wide ${job.status}` },
        h("div", { class: "stack" },
          job.files.length > 0 && files,
          job.steps.length > 1 && section("Steps", { key: "steps", aside: `${job.steps.filter((one) => one.state === "succeeded").length} of ${job.steps.length} done` },
            graph(job.steps, (name) => { state.step = state.step === name ? null : name; draw(); }, state.step)),
          job.steps.length === 1 && chunks(job.steps[0]),
          section("Attempts", { key: "attempts", aside: plural(attempts.length, "attempt") }, attempts.length
            ? timeline(job, attempts)
            : empty("Not started", job.pending_reason ? `It waits: ${job.pending_reason}.` : job.queue_position !== null ? `${job.queue_position ? `${count(job.queue_position)} before it` : "It is next"} in queue ${job.queue}.` : "")),
          section("Log", { key: "log", aside: logAside() },
            h("div", { hidden: !state.log, "data-key": "text" }, logs.draw()),
            !state.log && h("p", { class: "quiet" }, attempts.some(runs) ? "Nothing was printed until now." : "Nothing was printed.")),
          state.tasks && tasks()),
        h("div", { class: "stack" },
          section("Result", { key: "result" }, result(job)),
          section("Params", { key: "params", aside: download(`${base}/params`, `${id}-params.json`, "Download the params") }, state.params?.() ?? h("p", { class: "quiet" }, "Loading…")),
          !job.files.length && files)),
    ));
  }

  function logAside() {
    const names = [...new Set(state.attempts.filter((one) => one.has_log || runs(one)).map((one) => one.task_id))];
    return [
      names.length > 1 && h("label", { class: "select small" }, h("span", { class: "hidden" }, "Task"),
        h("select", { value: state.logTask, onchange: (event) => { state.logTask = event.target.value; readLog().catch(() => {}); } },
          h("option", { value: "" }, "All tasks"), names.slice(0, 200).map((name) => h("option", { value: name, selected: name === state.logTask }, taskName(name))))),
      state.log > 0 && download(`${base}/logs`, `${id}.log`, "Download the log"),
    ];
  }

  function tasks() {
    const all = state.tasks.tasks.filter((one) => state.step === null || one.step === state.step);
    return section("Tasks and what they made", { key: "tasks", aside: state.step ? `step ${state.step}` : null },
      table(["Task", "State", "Type", "Worker", ["Read", "num"], "Made"], all.map((one) => h("tr", { "data-key": one.task_id },
        h("td", { class: "mono", title: one.task_id }, taskName(one.task_id)),
        h("td", null, status(one.state)),
        h("td", null, one.type),
        h("td", { class: "faint", title: one.node }, one.worker ?? "–"),
        h("td", { class: "num", title: one.inputs.map((input) => input.uri).join("\n") }, one.inputs.length ? count(one.inputs.length) : "–"),
        h("td", null, one.files.length ? one.files.map((file) => file.ephemeral ? h("span", { class: "faint" }, file.name, " ") : h("a", { href: file.href, download: file.name }, file.name, " ")) : one.error ? h("span", { class: "bad clamp", title: one.error }, one.error) : "–"),
      )), { label: "Tasks" }),
      state.tasks.next_after !== null && h("p", { class: "quiet" }, `The first ${TASKS}. All of them: GET ${base}/tasks, or drayman lineage.`));
  }

  let following = follow();
  const reading = poll("", { refresh: readLog, pollMs: LOG_MS });
  return () => { following.stop(); reading.stop(); };
}

const runs = (attempt) => attempt.outcome === "running";

function download(href, name, label) {
  return h("a", { href, download: name, class: "button ghost small", title: label, "aria-label": label }, icon("down"));
}

function banner(job) {
  if (job.error && job.status !== "completed") {
    const goesOn = job.status === "processing";
    const when = job.status === "failed" ? `It failed for good after ${plural(job.attempts, "attempt")}.` : `Attempt ${job.error.attempt} failed${goesOn ? "; another runs now" : ""}.`;
    const why = job.error.cause === "error" || job.error.cause === "discarded" ? "Why" : `Cause: ${job.error.cause}`;
    return h("div", { class: `banner ${job.status === "failed" ? "bad" : "wait"}`, "data-key": "banner", role: "status" },
      h("b", null, goesOn ? "Before" : why), h("p", { class: "prose" }, job.error.message),
      h("small", null, when, job.next_attempt_at && [" It is tried again ", time(job.next_attempt_at), "."]));
  }
  if (job.status === "cancelled") {
    return h("div", { class: "banner off", "data-key": "banner" }, job.reason === "expired" ? "It had not started by its deadline." : "It was cancelled.");
  }
  if (job.pending_reason && !OVER.includes(job.status)) {
    return h("div", { class: "banner wait", "data-key": "banner", role: "status" }, h("b", null, "It waits"), h("p", null, job.pending_reason));
  }
  return null;
}

function progress(job) {
  if (OVER.includes(job.status) || !job.progress) return null;
  const { fraction, message } = job.progress;
  return h("div", { class: "progress", "data-key": "progress" },
    h("div", null, h("span", null, message || "Running"), fraction !== null && h("b", null, `${Math.floor(fraction * 100)} %`)),
    fraction !== null && meter(fraction, "Progress"));
}

function chunks(step) {
  if (!step.chunks) return null;
  return section("Chunks", { key: "chunks", aside: `${count(step.done)} of ${count(step.chunks)} done` },
    h("div", { class: "inset" }, meter(step.done / step.chunks, "Chunks done", step.failed ? "bad" : "run"),
      h("p", { class: "faint" }, `${count(step.running)} running${step.failed ? `, ${count(step.failed)} failed` : ""}`)));
}

function facts(job) {
  const fact = (name, value) => value !== null && value !== undefined && value !== false && h("div", { "data-key": name }, h("dt", null, name), h("dd", null, value));
  const eta = job.eta && job.status === "pending" && `starts in about ${duration(job.eta.seconds)}`;
  const named = labels(job.labels, 32);
  // A redrive gives a new budget, but the numbers of attempts go on.
  const tries = job.steps.length || job.attempts > job.max_attempts ? count(job.attempts) : `${job.attempts} of ${job.max_attempts}`;
  return h("dl", { class: "facts panel", "data-key": "facts" },
    fact("Queue", h("a", { href: `/jobs?queue=${enc(job.queue)}` }, job.queue)),
    fact("Submitted", time(job.submitted_at)),
    job.run_at && job.status === "scheduled" && fact("Starts", time(job.run_at)),
    fact("Started", time(job.started_at, eta || "not yet")),
    (job.finished_at || job.status === "processing") && fact(job.finished_at ? "Ran" : "Running", job.started_at ? duration(ran(job)) : null),
    fact(job.steps.length ? "Attempts of its tasks" : "Attempts", `${tries}${job.recoveries ? `, ${plural(job.recoveries, "recovery", "recoveries")}` : ""}`),
    fact("Priority", job.priority || null),
    fact("Tenant", job.tenant),
    job.schedule && fact("Schedule", h("a", { href: `/schedules/${enc(job.schedule)}` }, job.schedule)),
    job.parent && fact("Submitted by", jobLink(job.parent)),
    job.expires_at && !job.started_at && fact("Expires", time(job.expires_at)),
    job.code && fact("Code", h("span", { class: "mono", title: job.code }, job.code.slice(0, 12))),
    named.length > 0 && fact("Labels", h("span", { class: "chips" }, named)));
}

function result(job) {
  if (job.status !== "completed") return h("p", { class: "quiet" }, OVER.includes(job.status) ? "There is none." : "It comes when the job is completed.");
  if (job.result === null) {
    return h("p", { class: "quiet" }, "Nothing, or too much to show here. ", h("a", { href: job.links.result, download: `${job.id}.json` }, "Download"));
  }
  return code(typeof job.result === "string" ? job.result : JSON.stringify(job.result, null, 2), "Copy the result");
}
