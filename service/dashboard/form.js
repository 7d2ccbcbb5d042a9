// A form for whatever a JSON Schema describes: what pydantic makes of job types, that is, and JSON
// by hand for the rest.
//
// Each field is `{node, read(), fail(path, reason), focus()}`: `read` returns its value, undefined
// where it was left out, or throws a `NotReady`; `fail` shows a reason at the field it is about.

import { request } from "./api.js";
import { h } from "./dom.js";
import { button, icon, reasonOf } from "./parts.js";

export class NotReady extends Error {
  constructor(field, reason) {
    super(reason);
    this.field = field;
  }
}

let numbers = 0;

/** The form of an object's schema. `value` is what it begins with. */
export function schemaForm(schema, value) {
  return object(resolve(schema, schema), { root: schema, value, path: [], isRequired: true, isTop: true });
}

/**
 * The form and the same as JSON, as one field: `swap` is the button that turns one into the other.
 * Without a schema there is only JSON. What no field is for stays as it was.
 */
export function editor(schema, value = {}) {
  const area = h("textarea", { class: "mono", rows: "12", spellcheck: "false", "aria-label": "Params as JSON" });
  const error = h("p", { class: "error", role: "alert", id: `f${++numbers}-error` });
  area.setAttribute("aria-describedby", error.id);
  const place = h("div", null);
  const swap = schema && button("As JSON", { kind: "ghost small", onclick: turn });
  let form = null;
  let rest = {};

  function tell(text) {
    error.textContent = text;
    if (text) area.setAttribute("aria-invalid", "true");
    else area.removeAttribute("aria-invalid");
  }

  function asForm(now) {
    form = schemaForm(schema, now);
    rest = Object.fromEntries(Object.entries(now).filter(([name]) => !Object.hasOwn(schema.properties ?? {}, name)));
    place.replaceChildren(form.node);
  }

  function asJson(now) {
    form = null;
    area.value = JSON.stringify(now, null, 2);
    place.replaceChildren(area, error);
  }

  function written() {
    let found;
    try {
      found = JSON.parse(area.value.trim() || "{}");
    } catch {
      tell("This is no JSON; text stands in double quotes.");
      throw new NotReady("", "is no JSON");
    }
    if (found === null || typeof found !== "object" || Array.isArray(found)) {
      tell("Params are an object: {\"name\": value}.");
      throw new NotReady("", "is no object");
    }
    return found;
  }

  function read() {
    tell("");
    return form ? { ...rest, ...form.read() } : written();
  }

  function turn() {
    let now = {};
    try {
      now = read();
    } catch (problem) {
      if (!(problem instanceof NotReady)) throw problem;
      if (!form) return;
    }
    if (form) asJson(now);
    else asForm(now);
    swap.querySelector("span").textContent = form ? "As JSON" : "As a form";
  }

  if (schema) asForm(value);
  else asJson(value);
  return {
    node: h("div", null, place), swap, read,
    fail(path, reason) {
      if (form) return form.fail(path, reason);
      tell([error.textContent, path.length ? `${path.join(".")}: ${reason}` : reason].filter(Boolean).join("; "));
      return true;
    },
    focus: () => (form ?? area).focus(),
  };
}

function resolve(schema, root) {
  let found = schema, told = {};
  for (let i = 0; i < 20 && found?.$ref; i++) {
    const { $ref, ...beside } = found;
    told = { ...beside, ...told };
    found = $ref.startsWith("#/") ? $ref.slice(2).split("/").reduce((at, part) => at?.[part.replace(/~1/g, "/").replace(/~0/g, "~")], root) : {};
  }
  found = { ...found, ...told };
  if (found.allOf?.length === 1) {
    const { allOf, ...beside } = found;
    return { ...resolve(allOf[0], root), ...beside };
  }
  return found;
}

/** Split `T | null` into T and whether null is allowed. */
function nullable(schema, root) {
  const options = schema.anyOf ?? schema.oneOf;
  if (options) {
    const kept = options.filter((one) => one.type !== "null");
    if (kept.length === 1 && kept.length < options.length) {
      const { anyOf, oneOf, ...beside } = schema;
      return [{ ...resolve(kept[0], root), ...beside }, true];
    }
  }
  if (Array.isArray(schema.type) && schema.type.includes("null")) {
    const types = schema.type.filter((one) => one !== "null");
    return [{ ...schema, type: types.length === 1 ? types[0] : types }, true];
  }
  return [schema, false];
}

function make(raw, at) {
  const [schema, isNullable] = nullable(resolve(raw, at.root), at.root);
  const more = { ...at, isNullable };
  if (schema.const !== undefined) return choice({ ...schema, enum: [schema.const] }, more);
  if (schema.enum) return choice(schema, more);
  if (schema.type === "boolean") return flag(schema, more);
  if (schema.type === "integer" || schema.type === "number") return number(schema, more);
  if (schema.type === "string") return text(schema, more);
  if (schema.type === "array" && schema.items && !schema.prefixItems) return list(schema, more);
  if (schema.type === "object" && schema.properties) return more.isRequired && !isNullable ? object(schema, more) : optional(schema, more);
  if (schema.type === "object" && typeof schema.additionalProperties === "object") return pairs(schema, more);
  return json(schema, more);
}

const nameOf = (schema, at) => schema.label ?? at.name ?? schema.title ?? "value";

/** Label, help and error around one control. */
function field(schema, at, control, read, { isGroup = false, set = null } = {}) {
  const id = `f${++numbers}`;
  const error = h("p", { class: "error", id: `${id}-error`, role: "alert" });
  const help = schema.description && h("p", { class: "help", id: `${id}-help` }, schema.description);
  control.id ||= id;
  control.setAttribute("aria-describedby", [help && `${id}-help`, `${id}-error`].filter(Boolean).join(" "));
  if (at.isRequired && !isGroup) control.setAttribute("aria-required", "true");
  const mark = at.isRequired ? null : h("span", { class: "faint" }, "optional");
  const node = h("div", { class: "field" },
    h("div", { class: "label" }, isGroup ? h("span", { id: `${id}-label` }, nameOf(schema, at)) : h("label", { for: control.id }, nameOf(schema, at)), mark),
    control, help, error);
  if (isGroup) control.setAttribute("aria-labelledby", `${id}-label`);
  return {
    node, set,
    read() {
      error.textContent = "";
      control.removeAttribute("aria-invalid");
      return read();
    },
    fail(path, reason) {
      error.textContent = path.length ? `${path.join(".")}: ${reason}` : reason;
      control.setAttribute("aria-invalid", "true");
      return true;
    },
    focus: () => (control.matches("input, select, textarea") ? control : control.querySelector("input, select, textarea, button") ?? control).focus(),
  };
}

const where = (at) => at.path.join(".");

function missing(at) {
  if (at.isRequired && !at.isNullable) throw new NotReady(where(at), "is needed");
  return at.isRequired ? null : undefined;
}

function begin(schema, at) {
  return at.value !== undefined ? at.value : schema.default;
}

function text(schema, at) {
  const value = begin(schema, at) ?? "";
  const isLong = (schema.maxLength ?? 0) > 1000 || String(value).length > 80;
  const kinds = { date: "date", time: "time", email: "email", password: "password" };
  const common = { value, spellcheck: "false", autocomplete: "off", placeholder: schema.examples?.[0] ?? (schema.format === "date-time" ? "2026-11-26T09:00:00Z" : null), maxlength: schema.maxLength && schema.maxLength < 1e5 ? schema.maxLength : null };
  const control = isLong ? h("textarea", { rows: "3", ...common }) : h("input", { type: kinds[schema.format] ?? "text", ...common });
  const found = field(schema, at, control, () => {
    if (control.value === "") return missing(at);
    return control.value === schema.default && !at.isRequired ? undefined : control.value;
  });
  if (/upload/i.test(schema.description ?? "")) control.after(uploader((uri) => { control.value = uri; }));
  return found;
}

/** Put a file into the store, and its URI into the field. */
function uploader(done) {
  const told = h("span", { class: "faint", role: "status" });
  const picker = h("input", {
    type: "file", class: "hidden", tabindex: "-1", "aria-hidden": "true",
    async onchange() {
      const [file] = picker.files;
      if (!file) return;
      const name = file.name.replace(/[^A-Za-z0-9._-]/g, "_");
      told.textContent = `Uploading ${name} …`;
      try {
        const { uri } = await (await request("PUT", `/v1/uploads/${encodeURIComponent(name)}`, { body: file })).json();
        told.textContent = `${name} is uploaded`;
        done(uri);
      } catch (error) {
        told.textContent = reasonOf(error);
      }
    },
  });
  return h("div", { class: "upload" }, button("Upload a file", { icon: "file", kind: "small", onclick: () => picker.click() }), picker, told);
}

function number(schema, at) {
  const isWhole = schema.type === "integer";
  const low = schema.minimum ?? schema.exclusiveMinimum, high = schema.maximum ?? schema.exclusiveMaximum;
  const range = low !== undefined && high !== undefined ? `${low} to ${high}` : low !== undefined ? `from ${low}` : high !== undefined ? `to ${high}` : "";
  const control = h("input", { type: "text", inputmode: isWhole ? "numeric" : "decimal", value: begin(schema, at) ?? "", placeholder: range || null, autocomplete: "off" });
  return field(schema, at, control, () => {
    const typed = control.value.trim();
    if (typed === "") return missing(at);
    const value = Number(typed);
    if (!Number.isFinite(value) || (isWhole && !Number.isInteger(value))) throw new NotReady(where(at), isWhole ? "write a whole number" : "write a number");
    return value === schema.default && !at.isRequired ? undefined : value;
  });
}

function choice(schema, at) {
  const value = begin(schema, at);
  const all = schema.enum, hasNone = at.isNullable || (value === undefined && !at.isRequired);
  const control = h("select", null,
    (hasNone || value === undefined) && h("option", { value: "", selected: value === undefined || value === null }, hasNone ? "–" : "Choose …"),
    all.map((one, i) => h("option", { value: String(i), selected: one === value }, String(one))));
  return field(schema, at, control, () => {
    if (control.value === "") return missing(at);
    const found = all[Number(control.value)];
    return found === schema.default && !at.isRequired ? undefined : found;
  });
}

function flag(schema, at) {
  const control = h("input", { type: "checkbox", checked: Boolean(begin(schema, at)), role: "switch" });
  const found = field(schema, at, control, () => (control.checked === (schema.default ?? false) && !at.isRequired ? undefined : control.checked));
  found.node.classList.add("flag");
  return found;
}

function json(schema, at) {
  const value = begin(schema, at);
  const control = h("textarea", { rows: "3", class: "mono", spellcheck: "false", placeholder: "JSON", value: value === undefined || value === null ? "" : JSON.stringify(value, null, 2) });
  return field(schema, at, control, () => {
    if (!control.value.trim()) return missing(at);
    try {
      return JSON.parse(control.value);
    } catch {
      throw new NotReady(where(at), "is no JSON; text stands in double quotes");
    }
  });
}

function object(schema, at) {
  const required = new Set(schema.required ?? []);
  const start = at.value ?? (at.isTop ? {} : schema.default ?? {});
  const fields = Object.entries(schema.properties ?? {}).map(([name, one]) =>
    [name, make(one, { root: at.root, name, value: start?.[name], path: [...at.path, name], isRequired: required.has(name) })]);
  const error = h("p", { class: "error", role: "alert" });
  const inside = fields.length ? fields.map(([, one]) => one.node) : h("p", { class: "quiet" }, "It takes no params.");
  const node = at.isTop
    ? h("div", { class: "fields" }, inside, error)
    : h("fieldset", null, h("legend", null, nameOf(schema, at)), schema.description && h("p", { class: "help" }, schema.description), inside, error);
  return {
    node,
    read() {
      error.textContent = "";
      const found = {}, wrong = [];
      for (const [name, one] of fields) {
        try {
          const value = one.read();
          if (value !== undefined) found[name] = value;
        } catch (problem) {
          if (!(problem instanceof NotReady)) throw problem;
          one.fail([], problem.message);
          wrong.push(problem);
        }
      }
      if (wrong.length) throw wrong[0];
      return found;
    },
    fail([name, ...rest], reason) {
      const found = fields.find(([one]) => one === name);
      if (found) return found[1].fail(rest, reason);
      error.textContent = name === undefined ? reason : `${[name, ...rest].join(".")}: ${reason}`;
      return true;
    },
    focus: () => fields[0]?.[1].focus(),
  };
}

/** An object that may be left out. */
function optional(schema, at) {
  let inner = null;
  const place = h("div", null);
  const toggle = button("", { icon: "submit", kind: "small", onclick: () => { inner ? drop() : put(undefined); } });
  const error = h("p", { class: "error", role: "alert" });
  function label() {
    toggle.replaceChildren(icon(inner ? "close" : "submit"), h("span", null, inner ? `Without ${nameOf(schema, at)}` : `Add ${nameOf(schema, at)}`));
    toggle.removeAttribute("aria-label");
  }
  function put(value) {
    inner = object(schema, { ...at, value });
    place.replaceChildren(inner.node);
    label();
  }
  function drop() {
    inner = null;
    place.replaceChildren();
    label();
  }
  label();
  const value = begin(schema, at);
  if (value !== undefined && value !== null) put(value);
  return {
    node: h("div", { class: "field" }, place, h("div", null, toggle), schema.description && !inner && h("p", { class: "help" }, schema.description), error),
    read: () => { error.textContent = ""; return inner ? inner.read() : at.isRequired ? null : undefined; },
    fail: (path, reason) => { if (inner) return inner.fail(path, reason); error.textContent = reason; return true; },
    focus: () => (inner ?? { focus: () => toggle.focus() }).focus(),
  };
}

/** A row each, with a button to add one and buttons to take one away. */
function rows(schema, at, makeRow, beginning, collect) {
  const all = [];
  const place = h("div", { class: "rows" });
  const max = schema.maxItems ?? schema.maxProperties ?? 1000;
  const adder = button("Add", { icon: "submit", kind: "small", onclick: () => { put(undefined).focus(); } });
  const group = h("div", { role: "group" }, place, adder);
  function put(value) {
    const row = makeRow(value, all.length);
    const line = h("div", { class: "line" }, row.node, button("", { icon: "close", kind: "ghost small", title: "Take it away", onclick: () => { all.splice(all.indexOf(row), 1); line.remove(); adder.disabled = false; adder.focus(); } }));
    all.push(row);
    place.append(line);
    adder.disabled = all.length >= max;
    return row;
  }
  for (const value of beginning) put(value);
  const least = schema.minItems ?? 0;
  if (at.isRequired) while (all.length < Math.min(least, 5)) put(undefined);
  const untouched = JSON.stringify(schema.default);
  const found = field(schema, at, group, () => {
    if (!all.length && at.isNullable) return at.isRequired ? null : undefined;
    const value = collect(all);
    if (!at.isRequired && (JSON.stringify(value) === untouched || (!all.length && schema.default === undefined))) return undefined;
    return value;
  }, { isGroup: true });
  const failAll = found.fail;
  found.fail = (path, reason) => {
    const row = all[Number(path[0])];
    return path.length && row && !schema.additionalProperties ? row.fail(path.slice(1), reason) : failAll(path, reason);
  };
  return found;
}

/** Read every row; what is wrong with one is shown there. */
function each(all, read) {
  let first = null;
  const found = all.map((row) => {
    try {
      return read(row);
    } catch (problem) {
      if (!(problem instanceof NotReady)) throw problem;
      row.fail([], problem.message);
      first ??= problem;
      return undefined;
    }
  });
  if (first) throw new NotReady(first.field, "see above");
  return found;
}

function list(schema, at) {
  const start = begin(schema, at) ?? [];
  const rowOf = (value, index) => make(schema.items, { root: at.root, name: `${at.name} ${index + 1}`, value, path: [...at.path, index], isRequired: true });
  return rows(schema, at, rowOf, start, (all) => each(all, (row) => row.read()));
}

function pairs(schema, at) {
  const start = Object.entries(begin(schema, at) ?? {});
  const rowOf = (pair) => {
    const key = h("input", { type: "text", value: pair?.[0] ?? "", placeholder: "name", "aria-label": "Name", autocomplete: "off" });
    const value = make(schema.additionalProperties, { root: at.root, name: "value", value: pair?.[1], path: at.path, isRequired: true });
    return { node: h("div", { class: "pair" }, h("div", { class: "field" }, h("div", { class: "label" }, "name"), key), value.node), read: () => [key.value, value.read()], fail: value.fail, focus: () => key.focus() };
  };
  return rows(schema, at, rowOf, start, (all) => Object.fromEntries(each(all, (row) => row.read())));
}
