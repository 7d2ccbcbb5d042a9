// Submitting a job: pick a type, fill in what its schema asks for.

import { get, post } from "../api.js";
import { h, show } from "../dom.js";
import { duration, plural } from "../format.js";
import { editor, NotReady, schemaForm } from "../form.js";
import { button, code, curl, empty, page, reasonOf, section, trouble } from "../parts.js";

export function open(view) {
  view.title("Submit a job");
  if (!view.may("submit")) {
    show(view.root, page("Submit a job", {}, h("div", { class: "panel" }, empty("Not with this token", "It may look, but not submit. An operator makes one that may: drayman token create --scope submit,read."))));
    return null;
  }
  get("/v1/types").then(({ types }) => begin(view, types), (error) => show(view.root, trouble(error)));
  return null;
}

function begin(view, types) {
  const root = h("div", { "data-own": true });
  show(view.root, page("Submit a job", { sub: `${plural(types.length, "job type")}.` }));
  view.root.append(root);
  if (!types.length) {
    root.append(h("div", { class: "panel" }, empty("No job types", "Write one in Python and start Drayman with it:", "drayman up --jobs my_jobs")));
    return;
  }
  const filter = h("input", { type: "search", placeholder: "Find a type", "aria-label": "Find a job type", oninput: () => list(), onkeydown: (event) => { if (event.key === "Enter" && found()[0]) { event.preventDefault(); pick(found()[0]); } } });
  const picks = h("ul", { class: "picks" });
  const place = h("div", { class: "stack" });
  let picked = null;
  /** Those whose name or summary has what is typed; those whose name has it come first. */
  function found() {
    const wanted = filter.value.trim().toLowerCase();
    const isNamed = (one) => one.name.toLowerCase().includes(wanted);
    const all = types.filter((one) => isNamed(one) || one.summary.toLowerCase().includes(wanted));
    return [...all.filter(isNamed), ...all.filter((one) => !isNamed(one))];
  }
  function list() {
    const all = found();
    const group = (name, some) => some.length > 0 && [h("li", { class: "heading", "data-key": name }, h("h2", null, name)), some.map(row)];
    show(picks, !all.length ? h("li", { class: "quiet" }, "No type has this in its name.")
      // What is looked for stands together, the best first: Enter picks it.
      : filter.value.trim() ? all.map(row)
      : [group("Your own", all.filter((one) => !one.builtin)), group("Built in", all.filter((one) => one.builtin))]);
  }
  function row(one) {
    return h("li", { "data-key": one.name },
      h("button", { type: "button", "data-row": true, "aria-pressed": String(picked === one), onclick: () => pick(one) }, h("b", null, one.name), h("span", { class: "faint" }, one.summary)));
  }
  function pick(one) {
    picked = one;
    history.replaceState(null, "", `/submit?type=${encodeURIComponent(one.name)}`);
    list();
    const made = form(view, one);
    place.replaceChildren(made.node);
    // Where there is no room for both, a keyboard on the screen would hide what was just picked.
    if (matchMedia("(max-width: 980px)").matches) place.scrollIntoView({ block: "start" });
    else made.focus();
  }
  root.append(h("div", { class: "columns submit" }, h("div", { class: "panel" }, h("div", { class: "inset" }, filter), picks), place));
  list();
  const first = types.find((one) => one.name === view.params.type);
  if (first) {
    pick(first);
    return;
  }
  place.append(h("div", { class: "panel" }, view.params.type
    ? empty("There is no such type", `None is named ${view.params.type}. The list shows those there are.`)
    : empty("Pick a type", "Its form comes here, and with it the same request as curl.")));
  if (!matchMedia("(max-width: 980px)").matches) filter.focus();
}

function form(view, type) {
  const params = editor(type.params_schema);
  const summary = h("div", { class: "banner bad", role: "alert", tabindex: "-1", hidden: true, id: "form-error" });
  const preview = h("div", null);
  const options = schemaForm(OPTIONS(type));
  const send = button("Submit", { type: "submit", kind: "primary" });

  function tell(reasons) {
    summary.hidden = !reasons.length;
    summary.replaceChildren(...reasons.slice(0, 8).map((one) => h("p", null, one)));
    if (reasons.length) summary.focus({ preventScroll: true });
  }

  function read() {
    const more = options.read();
    const labels = more.labels;
    if (labels && !Object.keys(labels).length) delete more.labels;
    return { type: type.name, params: params.read(), ...more };
  }

  async function submitted(event) {
    event.preventDefault();
    tell([]);
    let wanted;
    try {
      wanted = read();
    } catch (problem) {
      if (!(problem instanceof NotReady)) throw problem;
      tell(["Some fields are not right yet: they say what they want."]);
      reach();
      return;
    }
    send.disabled = true;
    try {
      // A key, so that a second click or a repeated request makes no second job.
      const job = await post("/v1/jobs", wanted, { headers: { "Idempotency-Key": crypto.randomUUID() } });
      view.go(`/jobs/${job.id}`);
    } catch (error) {
      refused(error);
    }
    send.disabled = false;
  }

  function refused(error) {
    const rest = [];
    for (const { field, reason } of error.errors ?? []) {
      const path = field.split(".");
      if (path[0] === "params") params.fail(path.slice(1), reason);
      else if (path[0] in OPTIONS(type).properties) options.fail(path, reason);
      else rest.push(`${field}: ${reason}`);
    }
    const isAtFields = error.errors?.length && !rest.length;
    tell(rest.length ? rest : [isAtFields ? `Not taken: ${plural(error.errors.length, "field")} to put right.` : reasonOf(error)]);
    reach();
  }

  function reach() {
    // What is folded away must be seen, if that is where the fault is.
    const wrong = node.querySelector("[aria-invalid=true]");
    wrong?.closest("details")?.setAttribute("open", "");
    (wrong?.matches("input, select, textarea") ? wrong : wrong?.querySelector("input, select, textarea"))?.focus();
  }

  function asCurl() {
    try {
      preview.replaceChildren(code(curl("/v1/jobs", read())));
    } catch (problem) {
      if (!(problem instanceof NotReady)) throw problem;
      preview.replaceChildren(h("p", { class: "quiet" }, "Fill in the form first: this then shows the same request."));
    }
  }

  const about = [`queue ${type.queue}`, plural(type.max_attempts, "attempt"), type.timeout_s && `stopped after ${duration(type.timeout_s)}`].filter(Boolean).join(" · ");
  const node = h("form", { onsubmit: submitted, novalidate: true },
    section(type.name, { aside: params.swap },
      h("div", { class: "inset" }, h("p", { class: "prose" }, type.summary), h("p", { class: "faint" }, about)),
      h("div", { class: "inset" }, summary, params.node),
      h("details", { class: "inset" }, h("summary", null, "Queue, priority, time, labels"), options.node),
      h("details", { class: "inset", ontoggle: asCurl }, h("summary", null, "As curl"), preview),
      h("footer", null, send)));
  return { node, focus: () => params.focus() };
}

/** What of a submission is not the type's own, as the API takes it. */
const OPTIONS = (type) => ({
  type: "object",
  properties: {
    queue: { type: "string", label: "Queue", examples: [type.queue] },
    priority: { type: "integer", minimum: -1000, maximum: 1000, default: 0, label: "Priority", description: "Higher starts first." },
    delay_s: { type: "number", minimum: 0, label: "Wait before it starts (seconds)" },
    timeout_s: { type: "number", exclusiveMinimum: 0, label: "Stop an attempt after (seconds)", ...(type.timeout_s ? { examples: [type.timeout_s] } : {}) },
    max_attempts: { type: "integer", minimum: 1, maximum: 100, label: "Attempts", examples: [type.max_attempts] },
    labels: { type: "object", additionalProperties: { type: "string" }, label: "Labels", description: "Words of your own to find the job by." },
  },
});
