// What pages are put together from.

import { Refused } from "./api.js";
import { h, s, show } from "./dom.js";
import { ago, exact, shortId } from "./format.js";

const ICONS = {
  overview: "M4 13h6V4H4zM14 20h6V11h-6zM4 20h6v-3H4zM14 7h6V4h-6z",
  jobs: "M4 6h16M4 12h16M4 18h10",
  queues: "M5 5h14v4H5zM5 13h14M5 17h14",
  dead: "M12 8v5M12 16.5v.01M4.500 19h15L12 5z",
  schedules: "M12 7v5l3 2M12 3.500a8.500 8.500 0 1 0 0 17 8.500 8.500 0 0 0 0-17z",
  workers: "M5 5h14v5H5zM5 14h14v5H5zM8.500 7.500v.01M8.500 16.500v.01",
  submit: "M12 5v14M5 12h14",
  search: "M11 4.500a6.500 6.500 0 1 0 0 13 6.500 6.500 0 0 0 0-13zM20 20l-4.300-4.300",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2.500v2M12 19.500v2M2.500 12h2M19.500 12h2M5.300 5.300l1.400 1.400M17.300 17.300l1.400 1.400M18.700 5.300l-1.400 1.400M6.700 17.300l-1.400 1.400",
  keyboard: "M3 7h18v10H3zM7 10.500v.01M11 10.500v.01M15 10.500v.01M8 14h8",
  out: "M14 4h5v16h-5M4 12h10M10.500 8.500L14 12l-3.500 3.500",
  menu: "M4 7h16M4 12h16M4 17h16",
  more: "M6 12v.01M12 12v.01M18 12v.01",
  copy: "M9 9h10v11H9zM5 15V4h10",
  file: "M6 3.500h8l4 4v13H6zM14 3.500v4h4",
  open: "M13 5h6v6M19 5l-9 9M17 14v5H5V7h5",
  down: "M12 4v11M7.500 11L12 15.500 16.500 11M5 20h14",
  pause: "M9 6v12M15 6v12",
  play: "M8 5.500v13l10-6.500z",
  stop: "M7 7h10v10H7z",
  retry: "M19 12a7 7 0 1 1-2-4.900M19 4v4h-4",
  drain: "M6 4h12l-4.500 7v8l-3-2v-6z",
  trash: "M5 7h14M10 4h4M7 7l1 13h8l1-13",
  close: "M6 6l12 12M18 6L6 18",
  back: "M14.500 5.500L8 12l6.500 6.500",
  link: "M9 15l6-6M10.500 6.500l1.500-1.500a4 4 0 0 1 6 6l-1.500 1.500M13.500 17.500L12 19a4 4 0 0 1-6-6l1.500-1.500",
};

export function icon(name, title) {
  const path = s("path", { d: ICONS[name] });
  const props = { viewBox: "0 0 24 24", class: "icon" };
  return title
    ? s("svg", { ...props, role: "img", "aria-label": title }, path)
    : s("svg", { ...props, "aria-hidden": "true" }, path);
}

export const TONES = {
  completed: "good", succeeded: "good",
  failed: "bad", dead: "bad", crashed: "bad", discarded: "bad",
  processing: "run", running: "run", leased: "run",
  pending: "wait", ready: "wait", waiting: "wait", interrupted: "wait", backing_off: "wait", snoozed: "wait", parked: "wait",
  scheduled: "later",
  cancelled: "off", stopped: "off", skipped: "off",
};

/** A status as a coloured word; the dot's shape differs too, for those who see no colours. */
export function status(name, more = "") {
  const tone = TONES[name] ?? "off";
  return h("span", { class: `status ${tone}` }, h("i", { "aria-hidden": "true" }), words(name), more && h("small", null, more));
}

/** A status or state in words; a task that is leased runs, as far as anybody who looks is concerned. */
export const words = (name) => (name === "leased" ? "running" : name.replace("_", " "));

/** A moment, as long ago as it is. It keeps up by itself. */
export function time(moment, empty = "–") {
  if (!moment) return h("span", { class: "faint" }, empty);
  return h("time", { datetime: moment, title: exact(moment) }, ago(moment));
}

setInterval(() => {
  const now = Date.now();
  for (const node of document.querySelectorAll("time[datetime]")) {
    const text = ago(node.dateTime, now);
    if (node.textContent !== text) node.textContent = text;
  }
}, 1000);

export function button(label, { icon: name, onclick, kind = "", title, disabled, type = "button", key } = {}) {
  return h(
    "button",
    { type, class: `button ${kind}`, onclick, title, disabled, "data-key": key, "aria-label": label ? null : title },
    name && icon(name), label && h("span", null, label),
  );
}

export function jobLink(id) {
  return h("a", { href: `/jobs/${id}`, class: "mono", title: id }, shortId(id));
}

export function labels(found, max = 3) {
  const all = Object.entries(found);
  const shown = all.slice(0, max).map(([name, value]) =>
    h("a", { class: "chip", href: `/jobs?label=${encodeURIComponent(`${name}=${value}`)}`, title: `${name}=${value}` },
      h("b", null, name), value));
  return all.length > max ? [...shown, h("span", { class: "chip faint" }, `+${all.length - max}`)] : shown;
}

/** How full something is, 0 to 1. */
export function meter(fraction, label, tone = "run") {
  const value = Math.max(0, Math.min(1, fraction || 0));
  return h("span", {
    class: `meter ${tone}`, role: "progressbar", "aria-label": label,
    "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(value * 100)),
  }, h("span", { style: { transform: `scaleX(${value})` } }));
}

/** What stands where nothing is yet, and what would bring something. */
export function empty(title, text, command) {
  return h("div", { class: "empty" }, h("h3", null, title), text && h("p", null, text), command && code(command));
}

export function code(text, label = "Copy") {
  return h("div", { class: "code" }, h("pre", { tabindex: "0" }, h("code", null, text)), copyButton(text, label));
}

export function copyButton(text, label = "Copy") {
  return button("", {
    icon: "copy", kind: "ghost small", title: label,
    onclick: async () => {
      try {
        await navigator.clipboard.writeText(text);
        toast("Copied");
      } catch {
        toast("The browser did not allow to copy", "bad");
      }
    },
  });
}

export function curl(path, body) {
  const lines = [`curl ${location.origin}${path}`, `  -H "Authorization: Bearer $TOKEN"`];
  if (body) lines.push(`  -d '${JSON.stringify(body)}'`);
  return lines.join(" \\\n");
}

export function page(title, { sub, actions } = {}, ...children) {
  return [
    h("header", { class: "page-head" },
      h("div", null, h("h1", { tabindex: "-1" }, title), sub && h("div", { class: "sub" }, sub)),
      actions && h("div", { class: "actions" }, actions)),
    ...children,
  ];
}

export function section(title, { aside, key, kind = "" } = {}, ...children) {
  return h("section", { class: `panel ${kind}`, "data-key": key, "aria-label": title },
    h("header", null, h("h2", null, title), aside && h("div", { class: "aside" }, aside)), ...children);
}

/** A table; where it is narrow each row is a card, whose lines say which column they are of. */
export function table(columns, rows, { label } = {}) {
  const names = columns.map((one) => (Array.isArray(one) ? one[0] : one));
  for (const row of rows) [...row.children].forEach((cell, i) => { cell.dataset.label = names[i]; });
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", null,
      h("thead", null, h("tr", null, columns.map((one) => {
        const [text, kind] = Array.isArray(one) ? one : [one, ""];
        return h("th", { scope: "col", class: kind }, text || h("span", { class: "hidden" }, "Actions"));
      }))),
      h("tbody", null, rows)));
}

// --- telling, asking --------------------------------------------------------------------------

const toasts = h("div", { class: "toasts", role: "status", "aria-live": "polite", popover: "manual" });

export function toast(text, tone = "") {
  if (!toasts.isConnected) document.body.append(toasts);
  const one = h("div", { class: `toast ${tone}` }, text);
  toasts.append(one);
  // Shown anew it lies above a dialog that was opened since.
  toasts.hidePopover();
  toasts.showPopover();
  while (toasts.children.length > 4) toasts.firstChild.remove();
  setTimeout(() => one.remove(), tone === "bad" ? 9000 : 4000);
}

/** Return what went wrong, in words. */
export function reasonOf(error) {
  if (!(error instanceof Refused)) {
    console.error(error);
    return "Something in this page broke; reload it.";
  }
  if (error.status === 403) return `Not allowed: ${error.message}.`;
  return error.message.charAt(0).toUpperCase() + error.message.slice(1);
}

/** Do something for a button, and tell how it went. Returns whether it went well. */
export async function act(work, done) {
  try {
    const said = await work();
    if (done) toast(typeof done === "function" ? done(said) : done);
    return true;
  } catch (error) {
    toast(reasonOf(error), "bad");
    return false;
  }
}

/** Open a dialog with `content(close)`; focus goes back where it was. */
export function dialog(title, content, { kind = "" } = {}) {
  const before = document.activeElement;
  const close = () => node.close();
  const node = h("dialog", { class: kind, "aria-label": title, onclose: () => { node.remove(); before?.focus?.(); } },
    h("header", null, h("h2", null, title), button("", { icon: "close", kind: "ghost small", title: "Close", onclick: close })));
  node.append(...[content(close)].flat());
  node.addEventListener("click", (event) => { if (event.target === node) close(); });
  document.body.append(node);
  node.showModal();
  (node.querySelector("input, select, textarea") ?? node.querySelector("footer .button"))?.focus();
  return close;
}

/** Ask before something that cannot be undone. */
export function confirm(title, text, label, work) {
  dialog(title, (close) => [
    h("p", null, text),
    h("footer", null,
      button("Keep", { onclick: close }),
      button(label, { kind: "danger", onclick: async () => { if ((await work()) !== false) close(); } })),
  ], { kind: "small" });
}

/** What a page shows when it could not be read. */
export function trouble(error) {
  const isGone = error.status === 404;
  return h("div", { class: "empty" },
    h("h3", null, isGone ? "There is no such thing" : error.status === 403 ? "This token may not see it" : "It could not be read"),
    h("p", null, reasonOf(error)),
    isGone && h("p", null, h("a", { href: "/jobs" }, "All jobs")));
}

export { show };
