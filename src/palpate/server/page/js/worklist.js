// The cases of the folder.

import { loadCases, open, orderBy, rescan } from "./actions.js";
import { app, labelOf, panel } from "./app.js";
import { fill, h, iconButton } from "./dom.js";

const WORDS = { untouched: "untouched", started: "started", guessed: "guessed", done: "done", damaged: "cannot be read" };

export function worklist(element) {
  panel(
    () => ({
      cases: app.cases, order: app.order, here: app.case?.id, opening: app.opening,
      colours: app.labels.map(({ value, name, colour }) => [value, name, colour]),
    }),
    ({ cases, order, here, opening }) => {
      const done = cases.filter((one) => one.status === "done").length;
      const list = h("ul", { class: "cases", "aria-label": "Cases" }, cases.map((one) => row(one, here, opening)));
      const scrolled = element.querySelector(".cases")?.scrollTop ?? 0;
      fill(element,
        h("div", { class: "title" },
          h("h2", {}, "Cases"), h("span", { class: "quiet" }, `${done} of ${cases.length} done`), h("span", { class: "spring" }),
          iconButton("again", "Look for new images in the folder", { onclick: rescan, "data-key": "rescan" })),
        h("label", { class: "line", hidden: !cases.length }, h("span", { class: "quiet" }, "Order"),
          h("select", { onchange: (event) => orderBy(event.target.value), "data-key": "order" },
            h("option", { value: "name", selected: order === "name" }, "by name"),
            h("option", { value: "agreement", selected: order === "agreement" }, "least certain first"))),
        cases.length ? list : h("p", { class: "quiet empty" }, "There are no images in this folder."));
      list.scrollTop = scrolled;
      list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
    },
  );
  return loadCases();
}

function row(one, here, opening) {
  const dots = one.labels.map((value) => labelOf(value)).filter(Boolean)
    .map(({ name, colour }) => h("i", { class: "dot", colour, title: name }));
  return h("li", {},
    h("button", {
      type: "button", class: `case ${one.status}`, "data-key": one.id, title: one.note || one.name,
      "aria-current": one.id === here ? "true" : null, "aria-busy": one.id === opening ? "true" : null,
      onclick: () => open(one.id),
    },
    h("span", { class: "name" }, one.name),
    h("span", { class: "what" },
      h("span", { class: "state" }, one.id === opening ? "opening …" : WORDS[one.status]),
      one.kind === "picture" ? h("span", {}, "picture") : null,
      h("span", { class: "dots" }, dots),
      h("span", { class: "spring" }),
      one.agreement === null ? null : bar(one.agreement))));
}

/** An agreement as a small bar with its number. */
export function bar(agreement) {
  const percent = Math.round(100 * agreement);
  return h("span", { class: "agreement", title: "agreement of the mask under small changes of its prompts" },
    h("i", { class: agreement < 0.8 ? "low" : "", share: `${percent}%` }), h("b", {}, `${percent} %`));
}
