// Submitting a job: pick a type, fill in what its schema asks for.

import { get, post } from "../api.js";
import { h, show } from "../dom.js";
import { duration, plural } from "../format.js";
import { NotReady, schemaForm } from "../form.js";
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
  const filter = h("input", { type: "search", placeholder: "Find a type", "aria-label": "Find a job type", oninput: () => list() });
  const picks = h("ul", { class: "picks" });
  const place = h("div", { class: "stack" });
  let picked = null;
  function list() {
    const wanted = filter.value.trim().toLowerCase();
    const found = types.filter((one) => `${one.name} ${one.summary}`.toLowerCase().includes(wanted));
    show(picks, found.length ? found.map((one) => h("li", { "data-key": one.name },
      h("button", { type: "button", "data-row": true, "aria-pressed": String(picked === one), onclick: () => pick(one) }, h("b", null, one.name), h("span", { class: "faint" }, one.summary)))) : h("li", { class: "quiet" }, "No type has this in its name."));
  }
  function pick(one) {
    picked = one;
    history.replaceState(null, "", `/submit?type=${encodeURIComponent(one.name)}`);
    list();
    place.replaceChildren(...form(view, one));
    if (matchMedia("(max-width: 900px)").matches) place.scrollIntoView({ block: "start" });
  }
  root.append(h("div", { class: "columns submit" }, h("div", { class: "panel" }, h("div", { class: "inset" }, filter), picks), place));
  list();
  const first = types.find((one) => one.name === view.params.type);
  if (first) pick(first);
  else place.append(h("div", { class: "panel" }, empty("Pick a type", "Its form comes here. The same over HTTP:", curl("/v1/jobs", { type: types[0].name, params: {} }))));
}

function form(view, type) {
  let params = schemaForm(type.params_schema), isJson = false;
  const area = h("textarea", { class: "mono", rows: "12", spellcheck: "false", "aria-label": "Params as JSON", "aria-describedby": "form-error" });
  const place = h("div", null, params.node);
  const summary = h("div", { class: "banner bad", role: "alert", tabindex: "-1", hidden: true, id: "form-error" });
  const preview = h("div", null);
  const options = schemaForm(OPTIONS(type));
  const swap = button("As JSON", { kind: "ghost small", onclick: () => turn() });
  const send = button("Submit", { type: "submit", kind: "primary" });

  function turn() {
    tell([]);
    try {
      if (isJson) {
        const value = area.value.trim() ? JSON.parse(area.value) : {};
        params = schemaForm(type.params_schema, value);
        place.replaceChildren(params.node);
      } else {
        let value = {};
        try { value = params.read(); } catch (problem) { if (!(problem instanceof NotReady)) throw problem; }
        area.value = JSON.stringify(value, null, 2);
        place.replaceChildren(area);
      }
      isJson = !isJson;
      swap.querySelector("span").textContent = isJson ? "As a form" : "As JSON";
    } catch {
      tell(["The params are no valid JSON yet."]);
    }
  }

  function tell(reasons) {
    summary.hidden = !reasons.length;
    summary.replaceChildren(...reasons.slice(0, 8).map((one) => h("p", null, one)));
    if (reasons.length) summary.focus({ preventScroll: true });
  }

  function read() {
    const more = options.read();
    const labels = more.labels;
    if (labels && !Object.keys(labels).length) delete more.labels;
    return { type: type.name, params: isJson ? JSON.parse(area.value || "{}") : params.read(), ...more };
  }

  async function submitted(event) {
    event.preventDefault();
    tell([]);
    let wanted;
    try {
      wanted = read();
    } catch (problem) {
      if (problem instanceof NotReady) { tell(["Some fields are not right yet: they say what they want."]); reach(); } else tell(["The params are no valid JSON."]);
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
      if (path[0] === "params" && !isJson) params.fail(path.slice(1), reason);
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
    } catch {
      preview.replaceChildren(h("p", { class: "quiet" }, "Fill in the form first: this then shows the same request."));
    }
  }

  const about = [`queue ${type.queue}`, plural(type.max_attempts, "attempt"), type.timeout_s && `stopped after ${duration(type.timeout_s)}`].filter(Boolean).join(" · ");
  const node = h("form", { onsubmit: submitted, novalidate: true },
    section(type.name, { aside: swap },
      h("div", { class: "inset" }, h("p", { class: "prose" }, type.summary), h("p", { class: "faint" }, about)),
      h("div", { class: "inset" }, summary, place),
      h("details", { class: "inset" }, h("summary", null, "Queue, priority, time, labels"), options.node),
      h("details", { class: "inset", ontoggle: asCurl }, h("summary", null, "As curl"), preview),
      h("footer", null, send)));
  return [node];
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
