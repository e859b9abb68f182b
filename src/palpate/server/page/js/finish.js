// The end of a case: done, and out of the house.

import { finish, save } from "./actions.js";
import { app, panel } from "./app.js";
import { fill, h } from "./dom.js";

const KINDS = [
  ["nifti", "NIfTI"], ["dicom-seg", "DICOM SEG"], ["rtstruct", "RTSTRUCT"],
  ["seg-nrrd", "seg.nrrd (3D Slicer)"], ["coco", "COCO RLE"], ["nnunet", "nnU-Net data set"],
];

export function finishing(element) {
  panel(
    () => ({ id: app.case?.id, done: app.case?.state.done, all: app.cases.filter((one) => one.status === "done").length }),
    ({ id, done, all }) => {
      const menu = (words, title, everything, off) => h("details", { class: "menu", name: "export" },
        h("summary", {
          "data-key": words.replace(/ \(\d+\)/, ""), title, "aria-disabled": off ? "true" : null,
          onclick: (event) => { if (off) event.preventDefault(); },
        }, words),
        h("div", { class: "choices" }, KINDS.map(([kind, name]) => h("button", {
          type: "button",
          onclick: (event) => {
            event.target.closest("details").open = false;
            save(kind, { all: everything });
          },
        }, name))));
      fill(element,
        h("div", { class: "title" }, h("h2", {}, "Case")),
        h("button", { type: "button", class: `wide${done ? " on" : ""}`, disabled: !id, onclick: finish, "data-key": "done", "aria-pressed": String(Boolean(done)) },
          h("span", {}, done ? "✓ Done – open it again" : "This case is done"), h("kbd", {}, "Ctrl+Enter")),
        h("div", { class: "pair" },
          menu("Export case", "The labels of this case, as a file", false, !id),
          menu(all ? `Export all (${all})` : "Export all", "The labels of all cases that are done, as one file", true, !all)));
    },
  );
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest(".menu")) closeMenu({ back: false });
  });
}

/** Close the menu that is open, and go back to its button; false where none is. */
export function closeMenu({ back = true } = {}) {
  const menu = document.querySelector(".menu[open]");
  if (!menu) return false;
  menu.open = false;
  if (back) menu.querySelector("summary").focus();
  return true;
}
