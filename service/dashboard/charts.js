// Drawn by hand: a sparkline, bars over time, attempts on a time line, steps as a graph.

import { h, s } from "./dom.js";
import { count, duration, hour, plural, seconds } from "./format.js";
import { TONES, words } from "./parts.js";

/** A line over the last values, the newest at the right. `null` is a gap. */
export function sparkline(values, label) {
  const width = 120, height = 28, last = Math.max(1, values.length - 1);
  const top = Math.max(...values.map((value) => value ?? 0), 1e-9);
  const parts = [];
  let part = [];
  values.forEach((value, i) => {
    if (value === null) { if (part.length) parts.push(part); part = []; return; }
    part.push(`${((i / last) * width).toFixed(1)} ${(height - 2 - (value / top) * (height - 4)).toFixed(1)}`);
  });
  if (part.length) parts.push(part);
  const line = parts.map((points) => `M${points.length === 1 ? [points[0], points[0]].join("L") : points.join("L")}`).join("");
  const area = parts.map((points) => `M${points[0].split(" ")[0]} ${height}L${points.join("L")}L${points.at(-1).split(" ")[0]} ${height}Z`).join("");
  return s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    s("path", { class: "area", d: area }), s("path", { class: "line", d: line }));
}

const STATUSES = ["completed", "failed", "cancelled"];

/** Jobs that ended, in each bin of time. */
export function endings(recent) {
  const { bin_s: binS } = recent;
  const begin = new Date(recent.begin).getTime(), since = new Date(recent.since).getTime();
  const sums = recent.ended.map((counts) => counts.reduce((a, b) => a + b));
  const top = niceTop(Math.max(...sums, 1));
  const width = 720, height = 150, slot = width / recent.ended.length, gap = 2.5;
  const bars = [];
  recent.ended.forEach((counts, i) => {
    let y = height;
    const at = begin + i * binS * 1000;
    const told = STATUSES.map((name, k) => counts[k] && `${count(counts[k])} ${name}`).filter(Boolean).join(", ");
    const cell = s("g", null, s("title", null, `${hour(at)}: ${told || "none"}`),
      s("rect", { class: "cell", x: i * slot, y: 0, width: slot, height }));
    counts.forEach((number, k) => {
      if (!number) return;
      const size = Math.max(2, (number / top) * height);
      y -= size;
      cell.append(s("rect", { class: TONES[STATUSES[k]], x: (i * slot + gap / 2).toFixed(2), y: y.toFixed(2), width: (slot - gap).toFixed(2), height: Math.max(1, size - (y + size < height ? 1 : 0)).toFixed(2), rx: 1.5 }));
    });
    bars.push(cell);
  });
  const hidden = Math.max(0, Math.min(1, (since - begin) / (recent.ended.length * binS * 1000)));
  const all = sums.reduce((a, b) => a + b, 0);
  const marks = [0, 0.25, 0.5, 0.75, 1].map((part) => begin + part * recent.ended.length * binS * 1000);
  return h("figure", { class: "chart" },
    h("div", { class: "plot" },
      h("div", { class: "scale", "aria-hidden": "true" }, h("span", null, count(top)), h("span", null, count(top / 2)), h("span", null, "0")),
      s("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `${plural(all, "job")} ended within ten minutes` },
        s("path", { class: "grid", d: `M0 .5H${width}M0 ${height / 2}H${width}M0 ${height - 0.5}H${width}` }),
        hidden > 0 && s("rect", { class: "unknown", x: 0, y: 0, width: hidden * width, height }),
        bars)),
    h("div", { class: "hours", "aria-hidden": "true" }, marks.map((at) => h("span", null, hour(at)))),
    hidden > 0.05 && h("figcaption", null, "The newest jobs only: so many end that earlier ones are not counted here."));
}

function niceTop(value) {
  const size = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 4, 5, 10].find((one) => one * size >= value) ?? 10;
  return Math.max(2, step * size);
}

/** Attempts as strips on one line of time, from submission to the end. */
export function timeline(job, attempts, now = Date.now()) {
  const begin = new Date(job.submitted_at).getTime();
  const ends = attempts.map((one) => (one.ended_at ? new Date(one.ended_at).getTime() : now));
  const end = Math.max(begin + 1, job.finished_at ? new Date(job.finished_at).getTime() : now, ...(job.finished_at ? ends : []));
  const span = end - begin;
  const place = (at) => Math.max(0, Math.min(1, (at - begin) / span));
  const tasks = [...new Set(attempts.map((one) => one.task_id))];
  const isOne = tasks.length <= 1;
  const ordered = [...attempts].sort((a, b) => (a.leased_at < b.leased_at ? -1 : 1));
  const rows = ordered.slice(0, 200).map((one) => {
    const from = new Date(one.started_at ?? one.leased_at).getTime();
    const to = one.ended_at ? new Date(one.ended_at).getTime() : job.finished_at ? end : now;
    const tone = TONES[one.outcome] ?? "off";
    const width = Math.max(0.008, place(to) - place(from)), left = Math.min(place(from), 1 - width);
    const took = duration(Math.max(0, to - from) / 1000);
    const why = one.cause && one.cause !== "error" ? one.cause : "";
    const name = isOne ? `Attempt ${one.number}` : taskName(one.task_id) + (one.number > 1 ? ` · ${one.number}` : "");
    return h("li", { "data-key": `${one.task_id}-${one.number}` },
      h("span", { class: "who", title: `${one.task_id} on ${one.worker}` }, name),
      h("span", { class: "lane" }, h("i", { class: tone, style: { left: `${left * 100}%`, width: `${width * 100}%` } })),
      h("span", { class: "what" }, h("b", { class: tone }, words(one.outcome)), ` ${took}`, why && ` · ${why}`),
      one.error && h("p", { class: "why" }, one.error));
  });
  return h("div", { class: "timeline" },
    h("ol", null, rows),
    h("div", { class: "axis", "aria-hidden": "true" }, h("span", null, "submitted"), h("span", null, duration(span / 2000)), h("span", null, duration(span / 1000))),
    attempts.length > 200 && h("p", { class: "faint" }, `The first 200 of ${plural(attempts.length, "attempt")}.`));
}

export const taskName = (id) => id.replace(/^.*\//, "");

/** Steps in columns, by what they need. `onpick(name)` when one is chosen. */
export function graph(steps, onpick, picked) {
  const { columns, edges } = layout(steps);
  const boxW = 160, boxH = 52, gapX = 44, gapY = 16, pad = 8;
  const tall = Math.max(...columns.map((column) => column.length));
  const width = columns.length * (boxW + gapX) - gapX + 2 * pad;
  const height = tall * (boxH + gapY) - gapY + 2 * pad;
  const places = new Map();
  columns.forEach((column, i) => column.forEach((name, j) => {
    places.set(name, { x: pad + i * (boxW + gapX), y: height / 2 + (j - column.length / 2) * (boxH + gapY) + gapY / 2 });
  }));
  const lines = edges.map(([from, to, isDone]) => {
    const a = places.get(from), b = places.get(to);
    // What is no box is a line through the column.
    const x1 = a.x + boxW, y1 = a.y + boxH / 2, x2 = b.x, y2 = b.y + boxH / 2, mid = (x1 + x2) / 2;
    const through = typeof to === "object" ? `H${x2 + boxW}` : "";
    return s("path", { class: `edge ${isDone ? "done" : ""}`, d: `M${x1} ${y1}C${mid} ${y1} ${mid} ${y2} ${x2} ${y2}${through}` });
  });
  const boxes = steps.map((step) => {
    const tone = TONES[step.state] ?? "off";
    const chunks = step.chunks === null ? step.type : `${step.done}/${step.chunks} ${step.failed ? `· ${step.failed} failed` : "chunks"}`;
    const share = step.chunks ? step.done / step.chunks : 0;
    const choose = () => onpick(step.name);
    const { x, y } = places.get(step.name);
    return s("g", {
      class: `step ${tone} ${picked === step.name ? "picked" : ""}`, transform: `translate(${x} ${y})`, "data-key": step.name,
      tabindex: "0", role: "button", "aria-pressed": String(picked === step.name), "aria-label": `${step.name}: ${step.state}, ${chunks}`,
      onclick: choose, onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); } },
    },
      s("title", null, `${step.name}: ${step.type}, ${step.state}`),
      s("rect", { class: "box", width: boxW, height: boxH, rx: 8 }),
      s("circle", { cx: 16, cy: 19, r: 4 }),
      s("text", { class: "name", x: 28, y: 23 }, clip(step.name, 18)),
      s("text", { class: "more", x: 16, y: 41 }, clip(chunks, 24)),
      share > 0 && share < 1 && s("rect", { class: "share", x: 8, y: boxH - 4, width: (boxW - 16) * share, height: 2, rx: 1 }));
  });
  return h("div", { class: "graph scroll", tabindex: "0", role: "region", "aria-label": "Steps" },
    s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, style: { "min-width": `${Math.round(width * 0.72)}px` } }, lines, boxes));
}

/** Which steps stand in which column, and the lines between neighbours; long ones get places too. */
function layout(steps) {
  const byName = new Map(steps.map((step) => [step.name, step]));
  const level = new Map();
  const depth = (name) => {
    if (!level.has(name)) {
      level.set(name, 0);
      level.set(name, Math.max(-1, ...byName.get(name).needs.filter((one) => byName.has(one)).map(depth)) + 1);
    }
    return level.get(name);
  };
  const columns = [], edges = [], before = new Map();
  const put = (name, at) => (columns[at] ??= []).push(name);
  for (const step of steps) put(step.name, depth(step.name));
  for (const step of steps) {
    for (const need of step.needs.filter((one) => byName.has(one))) {
      const isDone = byName.get(need).state === "succeeded";
      let from = need;
      for (let at = level.get(need) + 1; at < level.get(step.name); at++) {
        const place = { at };
        put(place, at);
        edges.push([from, place, isDone]);
        before.set(place, [from]);
        from = place;
      }
      edges.push([from, step.name, isDone]);
      before.set(step.name, [...(before.get(step.name) ?? []), from]);
    }
  }
  // Each stands about where those before it stand, so that fewer lines cross.
  const row = new Map();
  for (const column of columns) {
    const mean = (name) => {
      const all = before.get(name) ?? [];
      return all.length ? all.reduce((sum, one) => sum + row.get(one), 0) / all.length : 0;
    };
    column.sort((a, b) => mean(a) - mean(b));
    column.forEach((name, i) => row.set(name, i - (column.length - 1) / 2));
  }
  return { columns, edges };
}

const clip = (text, max) => (text.length > max ? `${text.slice(0, max - 1)}…` : text);

/** How long a job has run, or ran. */
export function ran(job, now = Date.now()) {
  if (!job.started_at) return null;
  return Math.max(0, seconds(job.started_at, job.finished_at ?? now));
}
