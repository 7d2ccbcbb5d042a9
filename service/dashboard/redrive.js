// Trying a failed job again with other params.

import { enc, get, post, request } from "./api.js";
import { h } from "./dom.js";
import { editor, NotReady } from "./form.js";
import { act, button, dialog, reasonOf, toast } from "./parts.js";

/** Ask for the job's new params, and give it a new budget with them; `done()` is called when it has it. */
export async function editAndRedrive(job, done = () => {}) {
  const base = `/v1/jobs/${enc(job.id)}`;
  await act(async () => {
    const [{ types }, before] = await Promise.all([get("/v1/types"), paramsOf(base)]);
    ask(job, base, types.find((one) => one.name === job.type), before, done);
  });
}

/** What it was submitted with; where that is kept no more one begins with nothing. */
async function paramsOf(base) {
  try {
    return await (await request("GET", `${base}/params`)).json();
  } catch (error) {
    if (error.status !== 404) throw error;
    return {};
  }
}

function ask(job, base, type, before, done) {
  const fields = editor(type?.params_schema ?? null, before);
  const error = h("div", { class: "banner bad", role: "alert", hidden: true });
  const send = button("Redrive", { type: "submit", kind: "primary" });

  function tell(text) {
    error.textContent = text;
    error.hidden = !text;
  }

  function refused(problem) {
    const rest = [];
    for (const { field, reason } of problem.errors ?? []) {
      const [first, ...path] = field.split(".");
      if (first !== "params" || !fields.fail(path, reason)) rest.push(`${field}: ${reason}`);
    }
    tell(rest.join("; ") || (problem.errors?.length ? "" : reasonOf(problem)));
  }

  dialog(`Redrive ${job.type} with other params`, (close) => h("form", {
    novalidate: true,
    async onsubmit(event) {
      event.preventDefault();
      tell("");
      send.disabled = true;
      try {
        await post(`${base}/retry`, changes(before, fields.read()));
        close();
        toast("It has a new budget of attempts");
        done();
      } catch (problem) {
        if (!(problem instanceof NotReady)) refused(problem);
      }
      send.disabled = false;
    },
  },
    h("p", null, "It stays the same job, with a new budget of attempts."),
    error, fields.node,
    h("footer", null, fields.swap, button("Not now", { onclick: close }), send)));
}

/** What to send: only what changed, so that nothing else is written anew, not even a long number. */
function changes(before, params) {
  const set = Object.entries(params).filter(([name, value]) => JSON.stringify(before[name]) !== JSON.stringify(value));
  const isAllThere = Object.keys(before).every((name) => name in params);
  return isAllThere ? { set: Object.fromEntries(set) } : { params };
}
