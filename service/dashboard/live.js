// Staying up to date: a stream of events where there is one, gentle polling where there is none.
//
// Rule 1: events only say that something changed: pages read again what they show, so that a lost
// event can never leave a wrong page. Rule 2: nothing is asked while nobody looks at the tab. Rule 3:
// where so much happens that to hear of each thing costs more than to look now and then, it looks.

import { request } from "./api.js";

const GAP_MS = 600;
const POLL_MS = 2500;
const POLL_BESIDE_STREAM_MS = 10000;
const RETRY_MS = [1000, 2000, 5000, 10000, 30000];
/** A server without the stream is not asked for it again and again. */
const RETRY_WITHOUT_MS = 300000;
/** So many events within so long are too many; after a while it is tried anew. */
const FLOOD = 200, FLOOD_MS = 4000, FLOOD_REST_MS = 60000;
/** What this token may not see, or is not there, is looked for less often. */
const REFUSED_MS = 30000;

/**
 * Call `refresh()` now, when something changed, and every now and then; `onEvent(type, data)` for
 * each event. `told(state)` hears "live", "polling" or "away". Returns what ends it.
 */
export function follow(stream, { refresh, onEvent = () => {}, told = () => {}, pollMs = POLL_MS, besideMs = POLL_BESIDE_STREAM_MS }) {
  let isOver = false, isTold = false, isStreaming = false, isBusy = false, isDue = false;
  let timer = 0, tries = 0, retry = 0, control = null;

  async function run() {
    clearTimeout(timer);
    if (isOver || document.hidden) return;
    if (isBusy) { isDue = true; return; }
    isBusy = true;
    isDue = false;
    let pause = pollMs;
    try {
      await refresh();
      if (isStreaming) pause = besideMs;
      told(isStreaming ? "live" : "polling");
    } catch (error) {
      if (error.status === 0) told("away");
      else if (error.status === 403 || error.status === 404) pause = REFUSED_MS;
      else if (!error.status) console.error(error);
    }
    isBusy = false;
    if (isOver) return;
    timer = setTimeout(run, isDue ? GAP_MS : pause);
  }

  function changed() {
    if (isDue) return;
    isDue = true;
    if (isBusy) return;
    clearTimeout(timer);
    timer = setTimeout(run, GAP_MS);
  }

  async function listen() {
    clearTimeout(retry);
    if (isOver || isTold || document.hidden || !stream) return;
    control = new AbortController();
    let pause = RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)];
    try {
      // Without `Last-Event-ID`: all is read again now, so what was missed need not be told.
      const answer = await request("GET", stream, { headers: { Accept: "text/event-stream" }, signal: control.signal });
      isTold = answer.status === 204; // Nothing more will come: who asks again is told the same.
      if (isTold) return;
      let heard = 0, since = performance.now();
      isStreaming = true;
      tries = 0;
      told("live");
      changed();
      for await (const event of events(answer.body)) {
        if (event.data) onEvent(event.type, event.data);
        if (event.type !== "progress") changed();
        if (performance.now() - since > FLOOD_MS) { heard = 0; since = performance.now(); }
        if (++heard > FLOOD) { pause = FLOOD_REST_MS; break; }
      }
    } catch (error) {
      if (error.status === 404 || error.status === 405) pause = RETRY_WITHOUT_MS;
    }
    isStreaming = false;
    control.abort();
    if (!isOver && !document.hidden) retry = setTimeout(listen, pause);
  }

  function seen() {
    if (document.hidden) {
      clearTimeout(timer);
      clearTimeout(retry);
      control?.abort();
    } else {
      run();
      listen();
    }
  }

  document.addEventListener("visibilitychange", seen);
  run();
  listen();
  return {
    changed,
    stop() {
      isOver = true;
      clearTimeout(timer);
      clearTimeout(retry);
      control?.abort();
      document.removeEventListener("visibilitychange", seen);
    },
  };
}

/** Yield `{type, data}` of a text/event-stream. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", type = "", data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length) yield { type: type || "message", data: parsed(data.join("\n")) };
        type = "";
        data = [];
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue;
      const name = colon < 0 ? line : line.slice(0, colon);
      const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (name === "event") type = text;
      else if (name === "data") data.push(text);
    }
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
