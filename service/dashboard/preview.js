// The files of a job, and a look at those that browsers show without running anything.
//
// Rule: what a job wrote is never a page of ours. PDFs, images and videos are shown as exactly
// that, by a type that is set here; everything else is text, or a download.

import { request } from "./api.js";
import { h } from "./dom.js";
import { bytes } from "./format.js";
import { code, dialog, icon, reasonOf } from "./parts.js";

const IMAGES = /^image\/(png|jpeg|gif|webp|avif|svg\+xml|bmp)$/;
const VIDEOS = /^(video\/(mp4|webm|ogg)|audio\/(mpeg|mp4|ogg|wav|webm))$/;
const TEXTS = /^(text\/|application\/(json|x-ndjson|xml|yaml|toml|javascript|sql))|[+](json|xml)$/;
const TEXT_BYTES = 256 * 1024;
const PDF_BYTES_MAX = 128 * 1024 * 1024;
const LOG_CHARS_MAX = 400000;
const PARAMS_CHARS_MAX = 64 * 1024;
/** So near its end counts as at its end. */
const NEAR_PX = 8;

function kindOf(file) {
  const type = file.media_type.split(";")[0].trim().toLowerCase();
  if (file.ephemeral) return null;
  if (type === "application/pdf") return file.bytes <= PDF_BYTES_MAX ? "pdf" : null;
  if (IMAGES.test(type)) return "image";
  if (VIDEOS.test(type)) return "video";
  if (TEXTS.test(type)) return "text";
  return null;
}

/** All files; the first that can be is shown at once. */
export function fileList(files) {
  const first = files.find((file) => ["pdf", "video", "image"].includes(kindOf(file)));
  return h("div", { class: "files" },
    h("ul", null, files.slice(0, 200).map((file) => {
      const kind = kindOf(file);
      return h("li", { "data-key": file.name },
        kind ? h("button", { type: "button", class: "link", title: `Look at ${file.name}`, onclick: () => look(file, kind) }, icon("file"), file.name) : h("span", { class: "name" }, icon("file"), file.name),
        h("span", { class: "faint num" }, bytes(file.bytes)),
        file.ephemeral
          ? h("span", { class: "faint", title: "Kept for other tasks of the job only" }, "ephemeral")
          : h("a", { href: file.href, download: file.name, class: "button ghost small", title: `Download ${file.name}`, "aria-label": `Download ${file.name}` }, icon("down")));
    })),
    first && h("div", { class: "preview", "data-own": true, "data-key": first.sha256 }, preview(first, kindOf(first))));
}

function look(file, kind) {
  dialog(file.name, () => [
    h("div", { class: "preview large" }, preview(file, kind)),
    h("footer", null, h("span", { class: "faint" }, `${file.media_type} · ${bytes(file.bytes)}`),
      h("a", { class: "button", href: file.href, download: file.name }, icon("down"), "Download")),
  ], { kind: "large" });
}

function preview(file, kind) {
  if (kind === "image") return h("img", { src: file.href, alt: file.name, loading: "lazy" });
  if (kind === "video") return h("video", { src: file.href, controls: true, preload: "metadata", "aria-label": file.name });
  if (kind === "pdf") return pdf(file);
  return text(file);
}

function pdf(file) {
  const place = h("div", { class: "pdf", "aria-busy": "true" }, h("p", { class: "quiet" }, "Loading…"));
  request("GET", file.href).then(async (answer) => {
    // Its type is said here, so whatever the bytes are, no browser takes them for a page. Not with
    // `sandbox` on the frame: browsers then start no PDF viewer, which has a sandbox of its own.
    const url = URL.createObjectURL(new Blob([await answer.arrayBuffer()], { type: "application/pdf" }));
    place.replaceChildren(
      h("a", { class: "button ghost small", href: url, target: "_blank", rel: "noopener" }, icon("open"), "Open in a tab"),
      // Its toolbar says which page of how many it is.
      h("iframe", { src: `${url}#navpanes=0&view=FitH`, title: file.name }));
    place.removeAttribute("aria-busy");
  }).catch((error) => place.replaceChildren(h("p", { class: "error" }, reasonOf(error))));
  return place;
}

function text(file) {
  const place = h("pre", { class: "log", tabindex: "0", "aria-label": file.name }, "Loading…");
  const headers = file.bytes > TEXT_BYTES ? { Range: `bytes=0-${TEXT_BYTES - 1}` } : {};
  request("GET", file.href, { headers }).then(async (answer) => {
    place.textContent = await answer.text();
    if (file.bytes > TEXT_BYTES) place.append(`\n… ${bytes(file.bytes - TEXT_BYTES)} more`);
  }).catch((error) => { place.textContent = reasonOf(error); });
  return place;
}

/**
 * A text that grows. `draw()` is for the page; `show(text, leftOut)` takes all of it, and what to
 * say if its beginning is left out. Who reads in it goes on seeing the same lines, and who is at its
 * end what is new, once what `show` returns was called with the page drawn.
 */
export function growing(label) {
  const words = document.createTextNode("");
  const left = h("span", { class: "faint" });
  const place = h("pre", { class: "log", tabindex: "0", "aria-label": label, "data-own": true, "data-key": "log" }, left);
  place.append(words);
  let from = 0;

  function show(text, leftOut) {
    const isAtEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - NEAR_PX;
    const most = Math.max(0, text.length - LOG_CHARS_MAX);
    const start = most && (text.indexOf("\n", most) + 1 || most);
    const before = place.scrollHeight, top = place.scrollTop;
    const grew = start >= from && text.startsWith(words.data, from) && start - from <= words.length;
    left.textContent = start ? leftOut : "";
    if (grew) words.deleteData(0, start - from);
    // What went at the beginning moves what is read: the same lines stay in sight.
    const moved = grew ? before - place.scrollHeight : 0;
    if (grew) words.appendData(text.slice(start + words.length));
    else words.data = text.slice(start);
    from = start;
    return () => { place.scrollTop = isAtEnd ? place.scrollHeight : Math.max(0, top - moved); };
  }

  // One that is in the page stays there: it would forget where it was scrolled to.
  return { show, draw: () => (place.isConnected ? place.cloneNode(false) : place) };
}

/** Return what draws params: with their numbers as they were written; of large ones the beginning. */
export function params(text) {
  let shown = text;
  if (text.length <= PARAMS_CHARS_MAX) {
    const exact = (_, value, { source } = {}) => typeof value === "number" && source && JSON.rawJSON ? JSON.rawJSON(source) : value;
    shown = JSON.stringify(JSON.parse(text, exact), null, 2);
  }
  if (shown.length <= PARAMS_CHARS_MAX) return () => code(shown, "Copy the params");
  const some = `${shown.slice(0, PARAMS_CHARS_MAX)}\n… the rest is left out; download them`;
  return () => h("div", { class: "code" }, h("pre", { tabindex: "0" }, h("code", null, some)));
}
