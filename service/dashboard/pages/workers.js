// Workers, by the node that they run on.

import { enc, get, post } from "../api.js";
import { h, show } from "../dom.js";
import { count, duration, plural } from "../format.js";
import { act, button, confirm, empty, meter, page, table, trouble } from "../parts.js";

/** Ray's ids of nodes are 56 digits, of which the first tell them apart. */
const shortNode = (name) => (/^[0-9a-f]{40,}$/.test(name) ? name.slice(0, 8) : name);

/** Silent for so long, something is the matter: reports come each second or so. */
const SILENT_S = 5;

export function open(view) {
  view.title("Workers");
  if (!view.may("admin")) {
    show(view.root, page("Workers", {}, h("div", { class: "panel" }, empty("For admins", "This token may not look at single workers. The overview says how many there are."))));
    return null;
  }
  const following = view.follow("", {
    async refresh() {
      try {
        draw((await get("/v1/workers")).workers);
      } catch (error) {
        if (!view.root.childElementCount) show(view.root, trouble(error));
        throw error;
      }
    },
  });
  const tell = (name, what, done) => () => act(() => post(`/v1/workers/${enc(name)}/${what}`), done).then(() => following.changed());

  function draw(workers) {
    const nodes = Map.groupBy(workers, (one) => one.node || "this machine");
    const running = workers.reduce((sum, one) => sum + one.started, 0);
    show(view.root, page("Workers", { sub: workers.length ? `${plural(workers.length, "worker")} on ${plural(nodes.size, "node")}, ${count(running)} running.` : null },
      workers.length === 0 && h("div", { class: "panel" }, empty("No workers", "Pools start workers when there is work for them. If work waits and none comes, the queue says why.")),
      [...nodes].sort(([a], [b]) => (a < b ? -1 : 1)).map(([node, all]) => h("section", { class: "panel", "data-key": node, "aria-label": `Node ${shortNode(node)}` },
        h("header", null, h("h2", { class: "mono", title: node }, shortNode(node)), h("div", { class: "aside" }, plural(all.length, "worker"))),
        table(["Worker", "Pool", "Queues", "Busy", ["Held", "num"], ["Last report", "num"], ""], all.sort((a, b) => (a.name < b.name ? -1 : 1)).map(row), { label: `Workers on ${shortNode(node)}` })))));
  }

  function row(one) {
    const slots = one.started + one.free;
    return h("tr", { "data-key": one.name },
      h("td", null, h("b", { class: "mono" }, one.name), h("span", { class: "faint" }, ` pid ${one.pid}`),
        one.paused && h("span", { class: "tag wait" }, "paused"), one.draining && h("span", { class: "tag wait" }, "draining")),
      h("td", null, one.pool),
      h("td", { class: "faint" }, one.queues.join(", ")),
      h("td", { class: "busy" }, meter(slots ? one.started / slots : 0, `${one.name}: slots in use`), h("span", { class: "num" }, `${count(one.started)} of ${count(slots)}`)),
      h("td", { class: "num" }, count(one.held)),
      h("td", { class: `num ${one.silent_s > SILENT_S ? "bad" : ""}` }, `${duration(one.silent_s)} ago`),
      h("td", { class: "end" },
        one.paused
          ? button("Resume", { icon: "play", kind: "small", onclick: tell(one.name, "resume", `${one.name} gets work again`) })
          : button("Pause", { icon: "pause", kind: "small", disabled: one.draining, onclick: tell(one.name, "pause", `${one.name} gets nothing more for now`) }),
        button("Drain", { icon: "drain", kind: "ghost small", disabled: one.draining, onclick: () => confirm(`Drain ${one.name}?`, "It finishes what it has, and ends. Its pool starts another if it wants one.", "Drain", tell(one.name, "drain", `${one.name} finishes and ends`)) })));
  }
  return () => following.stop();
}
