// Every key of the page. `dialogs.js` lists them for people.

import * as act from "./actions.js";
import { app, changed, say } from "./app.js";
import { help } from "./dialogs.js";
import { closeMenu } from "./finish.js";
import { begin, end, extend, stop } from "./gestures.js";
import { PLANES } from "./planes.js";
import { newLabel } from "./labels.js";

const LAYOUTS = { 1: "axial", 2: "coronal", 3: "sagittal", 4: "multi", 5: "render" };
const TOOLS = { b: "box", p: "point", s: "scribble", d: "brush", e: "eraser", v: "pan" };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function listen(canvas) {
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) {
      if (event.key === "?") help();
      return;
    }
    if (event.target.matches("input[type=number]") && event.key === "Enter") canvas.focus(); // which takes the number over
    if (event.target.matches("input:not([type=checkbox]), select, textarea")) return;
    const onPicture = event.target === canvas || event.target === document.body;
    if (chord(event) || plain(event) || (onPicture && picture(event))) event.preventDefault();
  });
}

function chord(event) {
  const key = event.key.toLowerCase();
  if (event.altKey && /^Digit[1-9]$/.test(event.code)) {
    const label = app.labels[Number(event.code.at(-1)) - 1];
    if (label) act.chooseLabel(label.value);
    return true;
  }
  if (!(event.ctrlKey || event.metaKey)) return false;
  if (key === "z") event.shiftKey ? act.redo() : act.undo();
  else if (key === "y") act.redo();
  else if (key === "enter") act.finish();
  else return false;
  return true;
}

function plain(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in TOOLS) act.useTool(TOOLS[key]);
  else if (key in LAYOUTS) act.layout(LAYOUTS[key]);
  else if (key === "[") act.step(-1);
  else if (key === "]") act.step(1);
  else if (key === "g") act.propagate();
  else if (key === "n") newLabel();
  else if (key === "h") act.toggleOverlay();
  else if (key === "w") act.nextWindow();
  else if (key === "m") act.setFollows(!app.follows);
  else if (key === "l") act.setBeside(!app.beside);
  else if (key === "r") app.view.resetZoom();
  else if (key === "x") nextPlane();
  else if (key === ",") act.resizeBrush(app.brush > 10 ? -2 : -0.5);
  else if (key === ".") act.resizeBrush(app.brush >= 10 ? 2 : 0.5);
  else if (key === "+" || key === "=") zoom(1.25);
  else if (key === "-") zoom(1 / 1.25);
  else if (key === "?") help();
  else if (key === "Escape") escape();
  else return false;
  return true;
}

function escape() {
  if (closeMenu()) return;
  if (app.gesture) stop();
  else act.discard();
}

function picture(event) {
  if (!app.case || event.ctrlKey || event.metaKey || event.altKey) return false;
  const tile = app.view.tiles().find((one) => one.plane === app.plane);
  if (event.key === "Enter") app.gesture ? end() : act.accept();
  else if (event.key === " ") draw(!event.shiftKey);
  else if (event.key in ARROWS && tile) go(ARROWS[event.key], tile, event.shiftKey ? 10 : 1);
  else if (event.key === "PageUp" || event.key === "PageDown") turn(event.key === "PageUp" ? 1 : -1);
  else if (event.key === "Home" || event.key === "End") turn(event.key === "End" ? Infinity : -Infinity);
  else return false;
  return true;
}

// What the left button does, at the crosshair.
function draw(positive) {
  if (app.tool === "pan") say("choose a tool to draw with: B, P, S, D or E");
  else if (app.gesture) end();
  else begin(app.plane, app.view.crosshair, { positive });
}

function go([right, down], tile, by) {
  const { across, up } = PLANES[tile.plane];
  const voxel = [...app.view.crosshair];
  voxel[across] += right * by * Math.sign(tile.rightwards);
  voxel[up] += down * by * Math.sign(tile.downwards);
  app.hover = null; // what is told is of the crosshair now
  act.moveTo(voxel);
  if (app.gesture) extend(app.view.crosshair);
}

function turn(by) {
  if (app.gesture) return;
  const { depth } = PLANES[app.plane];
  const voxel = [...app.view.crosshair];
  voxel[depth] = Math.min(Math.max(voxel[depth] + by, 0), app.view.shape[depth] - 1);
  app.hover = null;
  act.moveTo(voxel);
}

function nextPlane() {
  if (app.gesture) return;
  const planes = app.view.planes();
  app.plane = planes[(planes.indexOf(app.plane) + 1) % planes.length] ?? app.plane;
  app.view.draw();
  changed();
}

function zoom(factor) {
  const tile = app.view.tiles().find((one) => one.plane === app.plane);
  if (!tile) return app.view.scaleRender(factor);
  return app.view.zoom(factor, tile, ...app.view.screenAt(tile, app.view.crosshair.map((index) => index + 0.5)));
}
