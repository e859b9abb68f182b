// The slice that a user rests on is encoded before anything is drawn there: most of what a first prompt would wait for.

import { app, seenWindow } from "./app.js";
import { PLANES } from "./planes.js";

const REST_MS = 250; // slices that are only passed by are not encoded
const TOOLS = ["box", "point", "scribble"];

let last = null;
let resting;

/** Called whenever anything changed. */
export function lookAhead() {
  const { case: one, plane, tool, view } = app;
  if (!one || !view?.shown || !TOOLS.includes(tool) || app.server !== "there") return;
  const slice = view.crosshair[PLANES[plane].depth];
  const window = seenWindow();
  const key = JSON.stringify([one.id, one.lease, plane, slice, window]);
  if (key === last) return;
  last = key;
  clearTimeout(resting);
  resting = setTimeout(() => {
    if (app.case !== one || app.opening || app.job || key !== last) return;
    one.encode({ plane, slice, window }).catch(() => {}); // the prompt itself will say why
  }, REST_MS);
}
