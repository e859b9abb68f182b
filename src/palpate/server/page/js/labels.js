// The labels: which one objects go into, names, colours, locks, what is shown.

import * as act from "./actions.js";
import { app, panel, redraw } from "./app.js";
import { byId, fill, h, iconButton } from "./dom.js";

let renaming = null; // the value whose name is being typed, 0 for a new label

export function labels(element) {
  panel(
    () => ({
      labels: app.labels, chosen: app.label, policy: app.policy, unseen: [...app.unseen], renaming,
      volumes: app.case?.state.labels ?? [],
    }),
    ({ labels: all, chosen, policy, unseen, volumes }) => {
      const rows = all.map((label, index) =>
        row(label, index, label.value === chosen, unseen.includes(label.value), volumes.find((one) => one.value === label.value)));
      fill(element,
        h("div", { class: "title" }, h("h2", {}, "Labels"), h("span", { class: "spring" }),
          iconButton("plus", "New label (N)", { onclick: newLabel, "data-key": "new" })),
        h("ul", { class: "labels", role: "radiogroup", "aria-label": "Label that objects are accepted into" }, rows),
        renaming === 0 ? h("div", { class: "label new" }, name("", (text) => act.addLabel(text))) : null,
        all.length || renaming === 0 ? null : h("p", { class: "quiet empty" }, "No labels yet. Accepting an object makes the first."),
        h("div", { class: "line policy" }, h("span", { class: "quiet" }, "Other labels are"),
          h("div", { class: "either", role: "radiogroup", "aria-label": "Other labels are" },
            either("kept", policy === "keep", () => act.setPolicy("keep"), "A new object takes no voxels of other labels"),
            either("overwritten", policy === "overwrite", () => act.setPolicy("overwrite"),
              "A new object takes voxels of other labels, unless they are locked"))));
      element.querySelector("input.name")?.select();
    },
  );
}

export function newLabel() {
  renaming = 0;
  redraw();
}

function row({ value, name: words, colour, locked }, index, chosen, unseen, held) {
  return h("li", { class: `label${chosen ? " chosen" : ""}` },
    h("input", {
      type: "color", value: colour, title: "Colour", "aria-label": `Colour of ${words}`, "data-key": `colour${value}`,
      onchange: (event) => act.changeLabel(value, { colour: event.target.value }),
    }),
    renaming === value
      ? [name(words, (text) => act.changeLabel(value, { name: text })), iconButton("bin", `Delete ${words}`, {
        onmousedown: (event) => event.preventDefault(), // else the field goes, and the button with it, before the click
        onclick: () => { renaming = null; act.dropLabel(value); },
      })]
      : h("button", {
        type: "button", class: "pick", role: "radio", "aria-checked": String(chosen), "data-key": `pick${value}`,
        title: `${words}: choose it${index < 9 ? ` (Alt+${index + 1})` : ""}, double click or F2 renames or deletes it`,
        onclick: () => act.chooseLabel(value),
        ondblclick: () => rename(value),
        onkeydown: (event) => { if (event.key === "F2") rename(value); },
      }, h("span", { class: "name" }, words), held ? h("span", { class: "quiet" }, amount(held)) : null),
    iconButton(unseen ? "hidden" : "eye", `${unseen ? "Show" : "Hide"} ${words}`,
      { onclick: () => act.toggleSeen(value), class: `icon${unseen ? " on" : ""}`, "data-key": `eye${value}`, "aria-pressed": String(unseen) }),
    iconButton(locked ? "locked" : "open", `${locked ? "Unlock" : "Lock"} ${words}`,
      { onclick: () => act.changeLabel(value, { locked: !locked }), class: `icon${locked ? " on" : ""}`, "data-key": `lock${value}`, "aria-pressed": String(locked) }));
}

function rename(value) {
  renaming = value;
  redraw();
}

function name(words, keep) {
  let over = false;
  const leave = (text) => {
    if (over) return;
    over = true;
    renaming = null;
    if (text && text !== words) keep(text);
    redraw();
    byId("marks").focus();
  };
  return h("input", {
    class: "name", type: "text", value: words, maxlength: 200, placeholder: "name", "aria-label": "Name of the label",
    onkeydown: (event) => {
      if (event.key === "Enter") leave(event.target.value.trim());
      else if (event.key === "Escape") leave("");
    },
    onblur: (event) => leave(event.target.value.trim()),
  });
}

export function either(words, on, act_, title) {
  return h("button", { type: "button", role: "radio", "aria-checked": String(on), title, onclick: act_, "data-key": words }, words);
}

/** A volume where the image knows millimetres, else voxels. */
export function amount({ volume_ml: ml, voxels }) {
  if (ml === null) return `${voxels.toLocaleString("en")} vx`;
  return ml < 10 ? `${ml.toFixed(2)} ml` : `${ml.toFixed(ml < 100 ? 1 : 0)} ml`;
}
