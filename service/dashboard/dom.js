// Making elements, and bringing what is shown up to date.
//
// Rule 1: text is text: nothing here, and nothing that uses it, parses HTML. Rule 2: pages draw
// all they show anew and `patch` carries over what differs, so that focus, what is typed, what is
// open and where it was scrolled to survive every update.

const SVG = "http://www.w3.org/2000/svg";
const SAFE_LINK = /^(\/(?!\/)|#|blob:)/;

/** Make an HTML element. Properties that begin with "on" are listeners; `null` leaves one out. */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** Make an SVG element. */
export function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) listen(node, name.slice(2), value);
    else if (name === "value" || name === "checked") node[name] = value;
    else if (name === "style") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else if ((name === "href" || name === "src") && !SAFE_LINK.test(value)) continue;
    else node.setAttribute(name, value === true ? "" : value);
  }
  add(node, children);
  return node;
}

function add(node, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false || child === "") continue;
    if (Array.isArray(child)) add(node, child);
    else node.append(child instanceof Node ? child : String(child));
  }
}

function listen(node, type, handler) {
  node.handlers ??= {};
  if (!(type in node.handlers)) node.addEventListener(type, (event) => node.handlers[type]?.(event));
  node.handlers[type] = handler;
}

/** Let `node` show `children`. */
export function show(node, ...children) {
  const wanted = document.createElement("div");
  add(wanted, children);
  patchChildren(node, wanted);
}

function patch(old, wanted) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== wanted.data) old.data = wanted.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // What a person opened stays open.
    if (!wanted.hasAttribute(name) && !(name === "open" && old.matches("details, dialog"))) {
      old.removeAttribute(name);
    }
  }
  for (const { name, value } of wanted.attributes) {
    if (name === "open" && old.matches("details")) continue;
    // As an attribute the policy refuses it.
    if (name === "style") old.style.cssText = value;
    else if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const [type, handler] of Object.entries(wanted.handlers ?? {})) listen(old, type, handler);
  // It looks after what is in it by itself.
  if (old.hasAttribute("data-own")) return;
  patchChildren(old, wanted);
  if (old.matches("input, select, textarea") && document.activeElement !== old) {
    if (old.value !== wanted.value) old.value = wanted.value;
    if (old.checked !== wanted.checked) old.checked = wanted.checked;
  }
}

function patchChildren(old, wanted) {
  const keyed = new Map();
  for (const child of old.children) if (child.dataset?.key) keyed.set(child.dataset.key, child);
  let at = old.firstChild;
  for (const child of [...wanted.childNodes]) {
    const key = child.dataset?.key;
    let same = key ? keyed.get(key) : at;
    if (!key) while (same && same.dataset?.key) same = same.nextSibling;
    if (same && same.nodeName === child.nodeName && same.nodeType === child.nodeType) {
      if (same === at) at = at.nextSibling;
      else old.insertBefore(same, at);
      patch(same, child);
    } else {
      old.insertBefore(child, at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}
