// The slice that a user rests on is encoded before anything is drawn there: most of what a first prompt would wait for.

import { app, lookedAt } from "./app.js";
import { PLANES } from "./planes.js";

const REST_MS = 250; // slices that are only passed by are not encoded
const WINDOW_REST_MS = 1000;
const TOOLS = ["box", "point", "scribble"];

let wanted = null;
let lastWindow;
let asking = false;
let resting;

/** Called whenever anything changed. */
export function lookAhead() {
  const { case: one, plane, tool, view } = app;
  if (!one || !view?.shown || !TOOLS.includes(tool) || app.server !== "there") return;
  const slice = view.crosshair[PLANES[plane].depth];
  const look = lookedAt();
  const lesson = look.learned && app.teaching.learned.made_at;
  const key = JSON.stringify([one.id, one.lease, plane, slice, look, lesson]);
  if (key === wanted) return;
  // Another window is another look at the whole volume: not while it is still being dragged.
  const rest = look.window === lastWindow ? REST_MS : WINDOW_REST_MS;
  [wanted, lastWindow] = [key, look.window];
  clearTimeout(resting);
  resting = setTimeout(() => ask(key, one, { plane, slice, ...look }), rest);
}

// One at a time: what is drawn waits for the one that is under way, and never for more.
async function ask(key, one, what) {
  if (key !== wanted || app.case !== one) return;
  if (asking || app.opening || app.job) {
    resting = setTimeout(() => ask(key, one, what), REST_MS);
    return;
  }
  asking = true;
  await one.encode(what).catch(() => {}); // the prompt itself will say why
  asking = false;
}
