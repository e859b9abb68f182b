// The bar above the picture.

import * as act from "./actions.js";
import { app, nameOf, panel } from "./app.js";
import { help } from "./dialogs.js";
import { byId, fill, h, iconButton } from "./dom.js";

const TOOLS = [
  ["box", "Box (B)"], ["point", "Point (P); with Shift beside the object"], ["scribble", "Scribble (S); with Shift beside the object"],
  ["brush", "Brush (D)"], ["eraser", "Eraser (E)"], ["pan", "Move the picture (V)"],
];
const LAYOUTS = [["axial", "Ax", "1"], ["coronal", "Co", "2"], ["sagittal", "Sa", "3"], ["multi", "All", "4"], ["render", "3D", "5"]];

export function toolbar() {
  panel(() => app.tool, (tool) => {
    fill(byId("tools"), TOOLS.map(([name, words]) =>
      iconButton(name, words, { role: "radio", "aria-checked": String(name === tool), onclick: () => act.useTool(name), "data-key": name })));
  });
  panel(() => [["brush", "eraser"].includes(app.tool), app.brush], ([shown, size]) => {
    byId("brush-size").hidden = !shown;
    fill(byId("brush-size"),
      h("button", { type: "button", class: "icon", "aria-label": "Smaller brush", title: "Smaller brush (,)", onclick: () => act.resizeBrush(-0.5), "data-key": "less" }, "−"),
      h("output", { title: "across" }, `${size} mm`),
      h("button", { type: "button", class: "icon", "aria-label": "Larger brush", title: "Larger brush (.)", onclick: () => act.resizeBrush(0.5), "data-key": "more" }, "+"));
  });
  panel(() => [app.case?.image.is_volume ?? true, app.case?.id, app.view?.layout], ([volume, , layout]) => {
    byId("layouts").hidden = !volume;
    fill(byId("layouts"), LAYOUTS.map(([name, words, key]) =>
      h("button", { type: "button", role: "radio", "aria-checked": String(name === layout), title: `${name === "multi" ? "all planes" : name} (${key})`, onclick: () => act.layout(name), "data-key": name }, words)));
  });
  panel(() => [app.case?.image.window.presets ?? [], app.view?.window, app.case?.image.colour, app.follows], ([presets, now, colour, follows]) => {
    byId("windowing").hidden = !presets.length || colour;
    const at = presets.findIndex((one) => one.low === now?.low && one.high === now?.high);
    fill(byId("windowing"), h("select", {
      "aria-label": "Window", title: "Window (W); right drag in the picture", "data-key": "window",
      onchange: (event) => act.useWindow(presets[event.target.value]),
    },
    at < 0 ? h("option", { value: "", selected: true }, now ? `${tidy(now.low)} to ${tidy(now.high)}` : "window") : null,
    presets.map((one, index) => h("option", { value: index, selected: index === at }, one.name))),
    h("button", {
      type: "button", class: follows ? "on" : "", "aria-pressed": String(follows), "data-key": "follows",
      title: "The model sees the image by this window (M); without it, by its own", onclick: () => act.setFollows(!app.follows),
    }, "for the model"));
  });
  panel(() => [app.case?.state.undo, app.case?.state.redo].map((one) => (one ? nameOf(one) : null)), ([undo, redo]) =>
    fill(byId("history"),
      iconButton("undo", `Undo ${undo ?? ""} (Ctrl+Z)`.replace("  ", " "), { onclick: act.undo, disabled: !undo, "data-key": "undo" }),
      iconButton("redo", `Redo ${redo ?? ""} (Ctrl+Shift+Z)`.replace("  ", " "), { onclick: act.redo, disabled: !redo, "data-key": "redo" })));
  fill(byId("more"), iconButton("help", "Keys and pointer (?)", { onclick: help }));
}

function tidy(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : Number(value.toPrecision(3)).toString();
}
