// The pointer over the picture: left draws, right sets the window, the middle moves, the wheel goes through slices.

import { app, changed } from "./app.js";
import { moveTo } from "./actions.js";
import { begin, end, extend, stop } from "./gestures.js";
import { PLANES } from "./planes.js";

const ZOOM = 1.15;

export function listen(canvas, view) {
  let drag = null;

  const place = (event) => {
    const { left, top } = canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };

  canvas.addEventListener("contextmenu", (event) => event.preventDefault());

  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    if (!app.case || drag) return;
    const [x, y] = place(event);
    const tile = view.tileAt(x, y);
    if (!tile) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    drag = { x, y, tile, kind: kindOf(event, tile), window: view.window };
    if (tile.plane) app.plane = tile.plane;
    if (drag.kind !== "draw") return;
    const voxel = view.voxelAt(tile, x, y);
    if (!voxel) drag = null;
    else {
      moveTo(voxel);
      begin(tile.plane, voxel, { positive: !event.shiftKey });
    }
  });

  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (!drag) return hover(view, x, y);
    const before = [drag.lastX ?? drag.x, drag.lastY ?? drag.y];
    [drag.lastX, drag.lastY] = [x, y];
    if (drag.kind === "turn") view.turn(x - before[0], y - before[1]);
    else if (drag.kind === "move") view.pan(drag.tile, ...before, x, y);
    else if (drag.kind === "window") restage(view, drag, x, y);
    else if (app.gesture) {
      const voxel = view.voxelAt(drag.tile, x, y, { clamp: true });
      app.hover = voxel;
      extend(voxel);
    }
    return undefined;
  });

  canvas.addEventListener("pointerup", () => {
    if (drag?.kind === "draw") {
      const { gesture } = app;
      end();
      // So that the other planes go through what was drawn, and not along its border.
      if (gesture?.tool === "box") moveTo(gesture.from.map((index, axis) => Math.floor((index + gesture.to[axis]) / 2)));
    }
    drag = null;
  });

  canvas.addEventListener("pointercancel", () => {
    if (drag?.kind === "draw") stop();
    drag = null;
  });

  canvas.addEventListener("pointerleave", () => {
    app.hover = null;
    changed();
  });

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (!app.case || app.gesture) return;
    const [x, y] = place(event);
    const tile = view.tileAt(x, y);
    if (!tile) return;
    const forward = event.deltaY < 0;
    if (!tile.plane) view.scaleRender(forward ? ZOOM : 1 / ZOOM);
    else if (event.ctrlKey || !app.case.image.is_volume) view.zoom(forward ? ZOOM : 1 / ZOOM, tile, x, y);
    else {
      app.plane = tile.plane;
      const voxel = [...view.crosshair];
      voxel[PLANES[tile.plane].depth] += forward ? 1 : -1;
      moveTo(voxel);
      hover(view, x, y);
    }
  }, { passive: false });
}

function kindOf(event, tile) {
  if (!tile.plane) return "turn";
  if (event.button === 2) return "window";
  if (event.button === 1 || app.tool === "pan") return "move";
  return "draw";
}

function hover(view, x, y) {
  if (!app.case || !view.shown) return;
  const tile = view.tileAt(x, y);
  app.hover = tile?.plane ? view.voxelAt(tile, x, y) : null;
  if (app.hover) app.plane = tile.plane;
  changed();
}

// As on workstations: across changes the width, down the level.
function restage(view, { window: begun, x: fromX, y: fromY }, x, y) {
  const width = begun.high - begun.low;
  const wider = width * Math.exp((x - fromX) / 200);
  const level = (begun.low + begun.high) / 2 + ((y - fromY) * width) / 300;
  view.setWindow(level - wider / 2, level + wider / 2);
  changed();
}
