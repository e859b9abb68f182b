// What the page knows. Whoever changes it calls `changed()`; panels are drawn anew where their part differs.

export const DRAFT = 255;

export const app = {
  view: null,
  about: { model: "", runtime: "", preview_ms: null }, // how long the last mask of a drag took
  cases: [],
  listed: false, // whether the list of cases has come
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
  failed: null, // the one that could not be opened: {id, why}; without why it is tried again when the server answers
  job: null, // the carrying of the object through the volume, while it runs
  follows: false, // whether the model sees the window that the user sees, rather than its own
  beside: false, // whether prompts go in beside what was learned of the chosen label
  missing: null, // why there is no viewer
  gesture: null, // what is being drawn: {tool, plane, from, to} or {tool, plane, path}
  asked: null, // the prompt that is being answered, as the server is asked
  hover: null, // the voxel under the pointer
  range: { first: null, last: null, untilEnd: true },
  teaching: null,
  server: "there", // or "gone", or "changed" where it wants another token
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

/** Draw what has changed at once: what is typed next has to find it there. */
export function redraw() {
  for (const tell of listeners) tell();
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

/** What an action is called, of `state.undo` or `state.redo`: "box", "brush in liver", "accept into liver". */
export function nameOf({ what, label }) {
  const words = { propagate: "propagation", guess: "first guess", discard: "discard of the object" }[what] ?? what;
  if (label === null) return words;
  return `${words} ${what === "accept" ? "into" : "in"} ${labelOf(label)?.name ?? `label ${label}`}`;
}

/** The window that the model is asked to see the image by; undefined for its own. */
function seenWindow() {
  const own = app.case?.image.window;
  if (!app.follows || !own || app.case.image.colour) return undefined;
  const { low, high } = app.view.window;
  if (low === own.low && high === own.high) return undefined;
  const digits = Math.min(Math.max(3 - Math.floor(Math.log10(high - low)), 0), 12);
  return `${low.toFixed(digits)}..${high.toFixed(digits)}`;
}

/** The name of the chosen label if something was learned of it, and else undefined. */
export function learnedOf() {
  const name = labelOf(app.label)?.name;
  return app.teaching?.learned?.classes.includes(name) ? name : undefined;
}

/** How the model is asked to look: by which window, and beside what was learned of which label. */
export const lookedAt = () => ({ window: seenWindow(), learned: app.beside ? learnedOf() : undefined });

export const labelOf = (value) => app.labels.find((one) => one.value === value);
