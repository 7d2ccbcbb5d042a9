// A list of any length that keeps only the rows one can see in the document.
//
// Rule: every row is as high as every other; what is not seen is only height.

import { h, show } from "./dom.js";

const OVERSCAN = 12;

/**
 * `rowOf(item, index)` draws one; `more()` is called near the end and returns a promise.
 * The page itself scrolls, so that phones hide their bars and find-in-page behaves.
 */
export function virtualList({ rowOf, more, rowHeight, label }) {
  const window_ = h("div", { class: "window", role: "presentation" });
  const box = h("div", { class: "virtual", "data-own": true, role: "list", "aria-label": label }, window_);
  let items = [], isAsking = false, isDone = true, frame = 0, first = 0, last = 0;

  function draw() {
    frame = 0;
    if (!box.isConnected) return;
    const height = rowHeight();
    const top = box.getBoundingClientRect().top;
    first = Math.max(0, Math.floor(-top / height) - OVERSCAN);
    last = Math.min(items.length, Math.ceil((innerHeight - top) / height) + OVERSCAN);
    box.style.height = `${items.length * height}px`;
    window_.style.transform = `translateY(${first * height}px)`;
    show(window_, items.slice(first, last).map((item, i) => rowOf(item, first + i)));
    if (!isDone && !isAsking && last > items.length - 2 * OVERSCAN) {
      isAsking = true;
      more().catch(() => new Promise((again) => setTimeout(again, 3000))).then(() => { isAsking = false; ask(); });
    }
  }

  function ask() {
    frame ||= requestAnimationFrame(draw);
  }

  addEventListener("scroll", ask, { passive: true });
  addEventListener("resize", ask);
  return {
    node: box,
    /** Show these. `above` are new at the top: who has scrolled past it goes on seeing the same. */
    set(list, done, above = 0) {
      items = list;
      isDone = done;
      if (above && box.getBoundingClientRect().top < 0) {
        box.style.height = `${items.length * rowHeight()}px`;
        scrollBy({ top: above * rowHeight(), behavior: "instant" });
        draw();
      } else ask();
    },
    /** Bring the row into view, and focus it. */
    reach(index) {
      const height = rowHeight(), top = box.getBoundingClientRect().top + index * height;
      if (top < 120 || top > innerHeight - 120) scrollBy(0, top - innerHeight / 2);
      draw();
      box.querySelector(`[data-row="${index}"]`)?.focus();
    },
    stop() { removeEventListener("scroll", ask); removeEventListener("resize", ask); cancelAnimationFrame(frame); },
  };
}
