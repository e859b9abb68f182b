// What the page knows. Whoever changes it calls `changed()`; panels are drawn anew where their part differs.

export const DRAFT = 255;

export const app = {
  view: null,
  about: { model: "", runtime: "" },
  cases: [],
  order: "name",
  labels: [],
  policy: "keep",
  label: null, // the value that objects are accepted into
  unseen: new Set(), // values that are not shown
  overlay: true, // whether the map is shown at all
  tool: "box",
  brush: 5, // millimetres across
  plane: "axial", // where keys draw
  case: null, // the case that is open
  opening: null, // the id of the one that is being opened
  job: null, // the carrying of the object through the volume, while it runs
  missing: null, // why there is no viewer
  gesture: null, // what is being drawn: {tool, plane, from, to} or {tool, plane, path}
  hover: null, // the voxel under the pointer
  range: { first: null, last: null, untilEnd: true },
  teaching: null,
  online: true,
  message: { text: "", kind: "" },
};

const listeners = [];
let asked = false;

export function changed() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    for (const tell of listeners) tell();
  });
}

export const onChange = (tell) => listeners.push(tell);

/** A part of the page: `read` gives what it shows, `draw` is called when that has changed. */
export function panel(read, draw) {
  let last;
  onChange(() => {
    const now = read();
    const key = JSON.stringify(now);
    if (key === last) return;
    last = key;
    draw(now);
  });
}

/** Tell the user something; `kind` is "", "good" or "bad". */
export function say(text, kind = "") {
  app.message = { text, kind };
  changed();
}

export const labelOf = (value) => app.labels.find((one) => one.value === value);
