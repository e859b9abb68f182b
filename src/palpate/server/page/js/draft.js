// The object being drawn: how sure the model is, and what to do with it.

import * as act from "./actions.js";
import { app, changed, DRAFT, labelOf, panel } from "./app.js";
import { fill, h, iconButton } from "./dom.js";
import { amount } from "./labels.js";
import { PLANES } from "./planes.js";
import { bar } from "./worklist.js";

const HINTS = {
  box: "Drag a box around something; the mask follows.",
  point: "Click on something; with Shift, beside it.",
  scribble: "Draw a line over something; with Shift, beside it.",
  brush: "Paint; it goes into the chosen label.",
  eraser: "Rub out what the chosen label has.",
  pan: "Drag to move the picture.",
};

export function draft(element) {
  panel(
    () => ({
      draft: app.case?.state.draft ?? null, tool: app.tool, job: app.job ?? null, label: labelOf(app.label)?.name, open: Boolean(app.case),
      learned: app.teaching?.learned?.classes ?? null, beside: app.beside, volume: app.case?.image.is_volume, range: app.range, unseen: app.unseen.has(DRAFT), shape: app.case?.image.shape, plane: app.plane,
    }),
    ({ draft: one, tool, job, label, open, volume, unseen, learned, beside }) => {
      const helped = open && learned ? assisted(learned.includes(label) ? label : null, beside) : null;
      const title = h("div", { class: "title" }, h("h2", {}, h("i", { class: "dot draft" }), "Object"), h("span", { class: "spring" }),
        iconButton(unseen ? "hidden" : "eye", `${unseen ? "Show" : "Hide"} the object`, { onclick: () => act.toggleSeen(DRAFT), "data-key": "eye" }));
      if (!one) {
        const hint = open ? HINTS[tool] : "Open a case to begin.";
        return fill(element, title, h("p", { class: "quiet empty" }, hint), helped);
      }
      return fill(element, title,
        h("dl", { class: "facts" },
          h("dt", {}, one.volume_ml === null ? "Size" : "Volume"), h("dd", {}, one.volume_ml === null ? `${one.voxels.toLocaleString("en")} voxels` : amount(one)),
          h("dt", { title: "how well the model thinks that the mask fits (intersection over union)" }, "Predicted IoU"),
          h("dd", {}, one.prompts.length ? one.predicted_iou.toFixed(2) : "–"),
          h("dt", { title: "of the mask, under small changes of its prompts" }, "Agreement"),
          h("dd", {}, one.agreement === null ? "–" : bar(one.agreement)),
          one.learned ? [h("dt", { title: "of the last prompt, which Propagate follows" }, "Drawn beside"), h("dd", {}, `learned ${one.learned}`)] : null),
        helped,
        h("button", { type: "button", class: "main wide", onclick: act.accept, "data-key": "accept", disabled: Boolean(job) },
          h("span", {}, label ? `Accept as ${label}` : "Accept"), h("kbd", {}, "Enter")),
        job ? progress(job, "Propagating") : h("div", { class: "pair" },
          h("button", { type: "button", onclick: act.propagate, "data-key": "propagate", disabled: !volume }, h("span", {}, "Propagate"), h("kbd", {}, "G")),
          h("button", { type: "button", onclick: act.discard, "data-key": "discard" }, h("span", {}, "Discard"), h("kbd", {}, "Esc"))),
        volume && !job ? range(one) : null);
    },
  );
}

// Whether the next prompts go in beside what was learned of the chosen label.
function assisted(name, beside) {
  const words = name === null ? "nothing was learned of a label of this name" : ["draw beside what was learned of ", h("b", {}, name)];
  return h("label", { class: "check", title: "Semi-autonomous: what you draw next goes in beside what was learned (L)" },
    h("input", { type: "checkbox", checked: beside && name !== null, disabled: name === null, "data-key": "beside",
      onchange: (event) => act.setBeside(event.target.checked) }),
    h("span", {}, words));
}

// How far the object is carried.
function range(one) {
  const plane = one.prompts.at(-1)?.plane ?? app.plane;
  const most = app.case.image.shape[PLANES[plane].depth] - 1;
  const end = (key, words, otherwise) => h("input", {
    type: "number", min: 0, max: most, step: 1, value: app.range[key] ?? "", placeholder: otherwise,
    "aria-label": words, "data-key": key,
    onchange: (event) => {
      app.range[key] = event.target.value === "" ? null : Math.min(Math.max(Number(event.target.value), 0), most);
      changed();
    },
  });
  return h("div", { class: "carry" },
    h("div", { class: "line" },
      h("span", { class: "quiet" }, `${plane} slices`), h("span", { class: "spring" }),
      end("first", "First slice", 0), h("span", { class: "quiet" }, "to"), end("last", "Last slice", most)),
    h("label", { class: "check" },
      h("input", { type: "checkbox", checked: app.range.untilEnd, "data-key": "until",
        onchange: (event) => { app.range.untilEnd = event.target.checked; changed(); } }),
      "stop where the object ends"));
}

/** A job that runs, with a way to stop it. */
export function progress(job, words) {
  const share = job.total ? Math.round((100 * job.done) / job.total) : 0;
  const left = job.seconds_left === null ? "" : ` · ${duration(job.seconds_left)} left`;
  const how = job.total ? `${job.done} of ${job.total}${left}` : "…";
  return h("div", { class: "job" },
    h("div", { class: "line" },
      h("div", {}, h("div", {}, words), h("div", { class: "quiet" }, job.stopping ? "stopping …" : how)), h("span", { class: "spring" }),
      h("button", { type: "button", onclick: () => act.cancel(job), disabled: Boolean(job.stopping), "data-key": "cancel" }, "Cancel")),
    h("div", { class: "progress", role: "progressbar", "aria-valuenow": share, "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": words },
      h("i", { share: `${share}%` })),
    job.detail ? h("p", { class: "quiet" }, job.detail) : null);
}

function duration(seconds) {
  if (seconds < 100) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
