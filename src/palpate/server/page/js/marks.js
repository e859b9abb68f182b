// What lies over the picture: crosshair, prompts, what is being drawn, the sides of the patient.

import { app } from "./app.js";
import { PLANES, SIDES } from "./planes.js";

const PROMPT = "#ffd84d";
const BESIDE = "#ff6b6b";
const QUIET = "rgba(214, 222, 230, .82)";
const FAINT = "rgba(120, 200, 255, .38)";

export class Marks {
  #canvas;
  #view;

  constructor(canvas, view) {
    this.#canvas = canvas;
    this.#view = view;
    view.ondraw(() => this.draw());
  }

  draw() {
    const canvas = this.#canvas;
    const ratio = window.devicePixelRatio;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!app.case || !this.#view.shown) return;
    for (const tile of this.#view.tiles()) {
      if (!tile.plane) continue;
      pen.save();
      pen.beginPath();
      pen.rect(tile.left, tile.top, tile.width, tile.height);
      pen.clip();
      this.#crosshair(pen, tile);
      if (app.overlay) for (const one of app.case.state.draft?.prompts ?? []) this.#prompt(pen, tile, one);
      if (app.overlay && app.asked) this.#prompt(pen, tile, app.asked);
      if (app.gesture) this.#gesture(pen, tile, app.gesture);
      this.#brush(pen, tile);
      pen.restore();
    }
    for (const cell of this.#view.cells()) this.#names(pen, cell);
  }

  #crosshair(pen, tile) {
    const [x, y] = this.#centre(tile, this.#view.crosshair);
    const gap = 9;
    // On a picture a small cross is enough: there are no other planes to follow.
    const reach = app.case.image.is_volume ? Infinity : gap + 8;
    const [left, right] = [Math.max(tile.left, x - reach), Math.min(tile.left + tile.width, x + reach)];
    const [top, bottom] = [Math.max(tile.top, y - reach), Math.min(tile.top + tile.height, y + reach)];
    pen.strokeStyle = FAINT;
    pen.lineWidth = 1;
    pen.beginPath();
    for (const [x1, y1, x2, y2] of [
      [left, y, x - gap, y], [x + gap, y, right, y],
      [x, top, x, y - gap], [x, y + gap, x, bottom],
    ]) {
      pen.moveTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5);
      pen.lineTo(Math.round(x2) + 0.5, Math.round(y2) + 0.5);
    }
    pen.stroke();
  }

  #here(tile, plane, voxel) {
    const { depth } = PLANES[plane];
    return tile.plane === plane && voxel[depth] === this.#view.crosshair[depth];
  }

  #centre(tile, voxel) {
    return this.#view.screenAt(tile, voxel.map((index) => index + 0.5));
  }

  #prompt(pen, tile, one) {
    const at = one.at ?? one.from ?? one.path[0];
    if (!this.#here(tile, one.plane, at)) return;
    if (one.kind === "box") this.#box(pen, tile, one.from, one.to, PROMPT, []);
    else if (one.kind === "point") this.#point(pen, tile, one.at, one.positive);
    else this.#voxels(pen, tile, one.path, one.positive ? PROMPT : BESIDE);
  }

  #gesture(pen, tile, { tool, plane, from, to, path, positive }) {
    if (!this.#here(tile, plane, from ?? path[0])) return;
    if (tool === "box") this.#box(pen, tile, from, to, PROMPT, [5, 4]);
    else if (tool === "scribble") this.#line(pen, tile, path, positive ? PROMPT : BESIDE, 2.5);
    else this.#line(pen, tile, path, tool === "brush" ? "rgba(25,211,243,.55)" : "rgba(255,255,255,.4)", this.#diameter(tile));
  }

  // The edges of the first and last voxel, both inside.
  #box(pen, tile, from, to, colour, dash) {
    const low = from.map((index, axis) => Math.min(index, to[axis]));
    const high = from.map((index, axis) => Math.max(index, to[axis]) + 1);
    const [x1, y1] = this.#view.screenAt(tile, low);
    const [x2, y2] = this.#view.screenAt(tile, high);
    const rectangle = [Math.min(x1, x2), Math.min(y1, y2), Math.abs(x2 - x1), Math.abs(y2 - y1)];
    pen.setLineDash([]);
    pen.strokeStyle = "rgba(0,0,0,.6)";
    pen.lineWidth = 3;
    pen.strokeRect(...rectangle);
    pen.setLineDash(dash);
    pen.strokeStyle = colour;
    pen.lineWidth = 1.5;
    pen.strokeRect(...rectangle);
    pen.setLineDash([]);
  }

  #point(pen, tile, voxel, positive) {
    const [x, y] = this.#centre(tile, voxel);
    pen.beginPath();
    pen.arc(x, y, 5.5, 0, 7);
    pen.fillStyle = positive ? PROMPT : BESIDE;
    pen.strokeStyle = "#000";
    pen.lineWidth = 1.5;
    pen.fill();
    pen.stroke();
    pen.beginPath();
    pen.moveTo(x - 3, y);
    pen.lineTo(x + 3, y);
    if (positive) {
      pen.moveTo(x, y - 3);
      pen.lineTo(x, y + 3);
    }
    pen.stroke();
  }

  #line(pen, tile, path, colour, width) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    const [first, ...others] = path.map((voxel) => this.#centre(tile, voxel));
    pen.moveTo(...first);
    pen.lineTo(...first);
    for (const place of others) pen.lineTo(...place);
    pen.stroke();
  }

  #voxels(pen, tile, path, colour) {
    pen.fillStyle = colour;
    for (const voxel of path) {
      const [x, y] = this.#centre(tile, voxel);
      pen.fillRect(x - 1, y - 1, 2, 2);
    }
  }

  #diameter(tile) {
    const { across } = PLANES[tile.plane];
    const perVoxel = 1 / Math.abs(tile.rightwards * this.#view.shape[across]);
    return (app.brush / app.case.image.spacing[across]) * perVoxel;
  }

  #brush(pen, tile) {
    if (!["brush", "eraser"].includes(app.tool) || !app.hover || app.plane !== tile.plane) return;
    const [x, y] = this.#centre(tile, app.hover);
    pen.beginPath();
    pen.arc(x, y, Math.max(this.#diameter(tile) / 2, 1), 0, 7);
    pen.strokeStyle = app.tool === "brush" ? "#fff" : BESIDE;
    pen.lineWidth = 1;
    pen.stroke();
  }

  // Which way the patient lies, which slice this is, and which plane the keys are for.
  #names(pen, cell) {
    const { left, top, width, height, plane } = cell;
    const { image } = app.case;
    pen.strokeStyle = "#242b33";
    pen.lineWidth = 1;
    if (this.#view.layout === "multi") pen.strokeRect(left + 0.5, top + 0.5, width - 1, height - 1);
    pen.font = "12px system-ui, sans-serif";
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    const mine = plane === app.plane && image.is_volume;
    pen.fillStyle = mine ? "#8fd6ff" : QUIET;
    if (!plane) write(pen, "3D", left + 10, top + 15);
    const tile = plane && this.#view.tiles().find((one) => one.plane === plane);
    if (tile && image.is_volume) {
      const { across, up, depth, letter } = PLANES[plane];
      write(pen, `${plane}   ${letter} ${this.#view.crosshair[depth]} of ${image.shape[depth] - 1}`, left + 10, top + 15);
      const side = (axis, growing) => SIDES[axis][growing ? 1 : 0];
      const [right, down] = [tile.rightwards > 0, tile.downwards > 0];
      pen.font = "600 13px system-ui, sans-serif";
      pen.fillStyle = QUIET;
      pen.textAlign = "center";
      write(pen, side(across, !right), left + 14, top + height / 2);
      write(pen, side(across, right), left + width - 14, top + height / 2);
      write(pen, side(up, !down), left + width / 2, top + 15);
      write(pen, side(up, down), left + width / 2, top + height - 14);
    }
  }
}

// With a dark edge, so that it can be read on bone as well.
function write(pen, words, x, y) {
  pen.strokeStyle = "rgba(0, 0, 0, .75)";
  pen.lineWidth = 3;
  pen.lineJoin = "round";
  pen.strokeText(words, x, y);
  pen.fillText(words, x, y);
}
