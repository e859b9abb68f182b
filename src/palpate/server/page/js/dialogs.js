// Questions that need an answer before anything goes on.

import { byId, fill, h } from "./dom.js";

/** Ask; gives the index of the answer, or null where the question was closed. */
export function choose(title, text, answers) {
  const dialog = byId("ask");
  return new Promise((answer) => {
    let chosen = null;
    const buttons = answers.map((words, index) =>
      h("button", { type: "button", class: index ? "" : "main", onclick: () => { chosen = index; dialog.close(); } }, words));
    fill(dialog, h("h2", { id: "ask-title" }, title), h("p", {}, `${text}.`), h("div", { class: "answers" }, buttons));
    dialog.addEventListener("close", () => answer(chosen), { once: true });
    dialog.showModal();
  });
}

const KEYS = [
  ["Draw", [
    ["B  P  S", "box, point, scribble"],
    ["D  E  V", "brush, eraser, move the picture"],
    ["drag", "a box, a scribble, a stroke"],
    ["click", "a point on the object"],
    ["Shift + click or drag", "a point or scribble beside it"],
    ["Space", "draw at the crosshair: again to end a box or a stroke"],
    ["Shift + Space", "the same, beside the object"],
    [",  .", "smaller or larger brush"],
  ]],
  ["Decide", [
    ["Enter", "accept the object into the chosen label"],
    ["Esc", "stop drawing, or discard the object"],
    ["G", "carry the object through the volume"],
    ["L", "prompts go in beside what was learned, or alone"],
    ["Ctrl + Z", "undo"],
    ["Ctrl + Shift + Z", "redo"],
    ["Alt + 1 … 9", "choose a label"],
    ["N", "a new label"],
    ["Ctrl + Enter", "the case is done, or not"],
  ]],
  ["Look", [
    ["1  2  3", "axial, coronal, sagittal"],
    ["4  5", "all planes, 3D"],
    ["wheel, Page Up / Down", "slices"],
    ["Ctrl + wheel,  +  −", "zoom"],
    ["right drag", "window: across its width, down its level"],
    ["middle drag", "move the picture"],
    ["arrows", "move the crosshair; with Shift by ten"],
    ["X", "the next plane for keys"],
    ["W  H  R", "next window; hide labels; whole picture"],
    ["M", "the model sees the image by this window, or by its own"],
  ]],
  ["Go", [
    ["[  ]", "previous and next case"],
    ["Tab", "every button and list"],
    ["?", "this help"],
  ]],
];

export function help() {
  const dialog = byId("help");
  if (dialog.open) return dialog.close();
  const parts = KEYS.map(([title, rows]) =>
    h("section", {}, h("h3", {}, title), h("dl", {}, rows.flatMap(([key, what]) => [h("dt", {}, key), h("dd", {}, what)]))));
  fill(dialog,
    h("h2", { id: "help-title" }, "Keys and pointer"),
    h("div", { class: "keys" }, parts),
    h("div", { class: "answers" }, h("button", { type: "button", class: "main", onclick: () => dialog.close() }, "Close")));
  return dialog.showModal();
}
