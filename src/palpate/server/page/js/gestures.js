// From a hand or from keys to what the server is asked: a box between two voxels, a point, a way over voxels.

import { app, changed } from "./app.js";
import { preview, prompt, stroke } from "./actions.js";

const MAX_PATH = 4000;

/** Begin at a voxel; a point is complete at once. */
export function begin(plane, voxel, { positive = true } = {}) {
  const { tool } = app;
  if (tool === "point") return prompt({ kind: "point", plane, at: voxel, positive });
  app.gesture = tool === "box" ? { tool, plane, from: voxel, to: voxel } : { tool, plane, path: [voxel], positive };
  return changed();
}

/** Go on to another voxel of the same slice. */
export function extend(voxel) {
  const { gesture } = app;
  if (!gesture) return;
  if (gesture.tool === "box") {
    gesture.to = voxel;
    if (isBox(gesture)) preview(asked(gesture));
  } else {
    const last = gesture.path.at(-1);
    const moved = voxel.some((index, axis) => index !== last[axis]);
    if (moved && gesture.path.length < MAX_PATH) gesture.path.push(voxel);
  }
  changed();
}

/** The gesture is complete: ask for what was drawn. A box of one voxel is a slip of the hand. */
export async function end() {
  const { gesture } = app;
  if (!gesture) return;
  app.gesture = null;
  changed();
  if (gesture.tool === "box") {
    if (isBox(gesture)) await prompt(asked(gesture));
    else app.view.preview(null);
  } else if (gesture.tool === "scribble") await prompt(asked(gesture));
  else await stroke(gesture.tool, gesture.plane, gesture.path);
}

export function stop() {
  app.gesture = null;
  app.view.preview(null);
  changed();
}

const isBox = ({ from, to }) => from.some((index, axis) => index !== to[axis]);

function asked({ tool, plane, from, to, path, positive }) {
  if (tool !== "box") return { kind: "scribble", plane, path, positive, radius: 1 };
  const low = from.map((index, axis) => Math.min(index, to[axis]));
  const high = from.map((index, axis) => Math.max(index, to[axis]));
  return { kind: "box", plane, from: low, to: high };
}
