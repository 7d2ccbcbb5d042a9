// What stands where nobody is signed in.

import { h } from "../dom.js";
import { button, code, reasonOf } from "../parts.js";

/** Ask for a token; `signIn(token)` raises what is wrong with it. */
export function show(app, reason, signIn) {
  document.title = "Sign in · Drayman";
  const field = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", placeholder: "dray_…", required: true, "aria-describedby": "token-error" });
  const error = h("p", { id: "token-error", class: "error", role: "alert" }, reason);
  async function submitted(event) {
    event.preventDefault();
    error.textContent = "";
    field.removeAttribute("aria-invalid");
    try {
      await signIn(field.value.trim());
    } catch (problem) {
      error.textContent = problem.status === 401 ? "This token is not known here. It begins with dray_ and has 48 characters." : reasonOf(problem);
      field.setAttribute("aria-invalid", "true");
      field.focus();
    }
  }
  app.replaceChildren(h("main", { class: "login" },
    h("div", { class: "card" },
      h("span", { class: "mark large", "aria-hidden": "true" }),
      h("h1", null, "Sign in to Drayman"),
      h("p", null, "Open the link that ", h("code", null, "drayman up"), " printed, or paste its token. It stays in a cookie that no script can read."),
      h("form", { onsubmit: submitted },
        h("label", { for: "token" }, "Token"), field, error,
        button("Sign in", { type: "submit", kind: "primary wide" })),
      h("details", null, h("summary", null, "Where is the token?"),
        h("p", null, "It stands in what ", h("code", null, "drayman up"), " printed, in the line ", h("code", null, "token:"), ". Whoever may make tokens makes another with:"),
        code("drayman token create --tenant default --scope submit,read"))),
    ));
  field.focus();
}

/** Say that the server does not answer; who shows it tries again. */
export function waiting(app) {
  document.title = "No answer · Drayman";
  app.replaceChildren(h("main", { class: "login" }, h("div", { class: "card" },
    h("span", { class: "mark large", "aria-hidden": "true" }),
    h("h1", null, "Drayman does not answer"),
    h("p", { role: "status" }, "This page tries again every two seconds."))));
}
