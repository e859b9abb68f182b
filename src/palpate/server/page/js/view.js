// The only file that knows NiiVue: shows an image and a label map, and says which voxel is where on the screen.
//
// The server sends images in closest-RAS order, so a voxel of the file is a voxel of NiiVue's `drawBitmap`. Planes are
// drawn along the image's own axes (`isSliceMM: false`), so that a slice of an oblique image is a slice here too.

import { cut, paste } from "./patch.js";
import { PLANES } from "./planes.js";

const NAMES = ["axial", "coronal", "sagittal"];
const MULTIPLANAR = 3;
const RENDER = 4;
const GAP = 0.002;
const HALF = 0.5 - GAP;
const REST_MS = 300; // the 3D view follows when nothing has changed for so long: it is by far the slowest
const FAINT = 0.3; // what the image around labels keeps of its opacity in 3D
const SOLID_MS = 120; // and it is drawn as finely as this time allows

/** Fractions of the stage: left, top, width, height. */
const LAYOUTS = {
  axial: [[0, 0, 0, 1, 1]],
  coronal: [[1, 0, 0, 1, 1]],
  sagittal: [[2, 0, 0, 1, 1]],
  multi: [
    [0, 0, 0, HALF, HALF],
    [2, 0.5 + GAP, 0, HALF, HALF],
    [1, 0, 0.5 + GAP, HALF, HALF],
    [RENDER, 0.5 + GAP, 0.5 + GAP, HALF, HALF],
  ],
  render: [[RENDER, 0, 0, 1, 1]],
};

export class View {
  #nv;
  #module;
  #shape = [1, 1, 1];
  #covered = null; // what a preview lies on
  #asked = false;
  #still; // a copy of the 3D view, shown until it is drawn anew
  #solid = false; // whether NiiVue may draw it
  #detail = 0.35; // at which share of the screen's resolution; found out by drawing
  #resting;
  #layout = "multi";
  #drawn = [];
  crosshair = [0, 0, 0];
  marked = false; // whether anything is in the map, so that the 3D view makes the image around it faint
  window = { low: 0, high: 1 };

  /**
   * A view on a canvas, with another one above it for the 3D view. Fails where the browser has no WebGL2, or where
   * NiiVue was not packed.
   */
  static async on(canvas, still) {
    const view = new View();
    view.#still = still;
    view.#module = await import("../vendor/niivue.js");
    const nv = new view.#module.Niivue({
      interactive: false, // the page has its own pointer and keys
      dragAndDropEnabled: false,
      logLevel: "error",
      loadingText: "",
      backColor: [0, 0, 0, 1],
      crosshairWidth: 0,
      show3Dcrosshair: false,
      isOrientationTextVisible: false,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isSliceMM: false,
      maxDrawUndoBitmaps: 1,
      multiplanarShowRender: 0,
      tileMargin: 0,
      gradientAmount: 0,
    });
    await nv.attachToCanvas(canvas, false);
    nv.drawRimOpacity = 1;
    nv.drawOpacity = 1;
    nv.opts.renderOverlayBlend = 1;
    view.#nv = nv;
    const draw3D = nv.draw3D.bind(nv);
    nv.draw3D = (place = [0, 0, nv.canvas.width, nv.canvas.height]) => {
      const [left, top, width, height] = place;
      if (view.#solid) {
        view.#fade(view.marked ? FAINT : 1);
        draw3D([left, top, ...view.#coarse(width, height)]);
      } else nv.screenSlices.push({ axCorSag: RENDER, sliceFrac: 0, AxyzMxy: [], leftTopMM: [], fovMM: [] });
      nv.screenSlices.at(-1).leftTopWidthHeight = [left, top, width, height];
    };
    // NiiVue makes the box that it renders anew with every image and every window, and forgets the old one.
    const updateGLVolume = nv.updateGLVolume.bind(nv);
    nv.updateGLVolume = () => {
      const { gl, volumeObject3D: old } = nv;
      updateGLVolume();
      if (!old || old === nv.volumeObject3D) return;
      gl.deleteBuffer(old.vertexBuffer);
      gl.deleteBuffer(old.indexBuffer);
      gl.deleteVertexArray(old.vao);
    };
    new ResizeObserver(() => view.draw({ solid: true })).observe(canvas.parentElement);
    return view;
  }

  /** Called after every drawing of the picture. */
  ondraw(tell) {
    this.#drawn.push(tell);
  }

  get shape() {
    return this.#shape;
  }

  get layout() {
    return this.#layout;
  }

  get images() {
    return this.#nv.volumes.length;
  }

  get shown() {
    return this.images > 0;
  }

  /** Show an image, given as the bytes of a NIfTI file in RAS order, with an empty map. */
  async show(buffer, { shape, window }) {
    this.hide();
    const nv = this.#nv;
    const { low, high } = window;
    const volume = await this.#module.NVImage.loadFromUrl({
      url: "image.nii", buffer, name: "image.nii", colormap: "gray", cal_min: low, cal_max: high, trustCalMinMax: false,
    });
    volume.cal_min = low;
    volume.cal_max = high;
    nv.addVolume(volume);
    nv.createEmptyDrawing();
    nv.clickToSegmentGrowingBitmap = null; // as large as the map, and of no use here
    this.#shape = shape;
    this.window = { low, high };
    this.#covered = null;
    nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    nv.scene.volScaleMultiplier = 1;
    nv.scene.renderAzimuth = 160;
    nv.scene.renderElevation = 15;
    this.moveTo(shape.map((extent) => Math.floor(extent / 2)));
    this.#changed();
  }

  hide() {
    for (const volume of [...this.#nv.volumes]) this.#nv.removeVolume(volume);
    if (this.#nv.drawBitmap) this.#nv.closeDrawing();
    this.draw({ solid: true });
  }

  setLayout(name) {
    this.#layout = name;
    // A single plane fills the stage; tiles of a custom layout keep to the image's own proportions. NiiVue's own verbs
    // for this draw at once, each of them, and RENDER would go before any custom layout.
    const several = name === "multi";
    this.#nv.opts.sliceType = several ? MULTIPLANAR : LAYOUTS[name][0][0];
    this.#nv.customLayout = several ? LAYOUTS.multi.map(([sliceType, ...position]) => ({ sliceType, position })) : null;
    this.draw({ solid: true });
  }

  /** The planes on the screen. */
  planes() {
    return LAYOUTS[this.#layout].filter(([type]) => type !== RENDER).map(([type]) => NAMES[type]);
  }

  setWindow(low, high) {
    const volume = this.#nv.volumes[0];
    if (!volume) return;
    this.window = { low, high: Math.max(high, low + 1e-6) };
    volume.cal_min = this.window.low;
    volume.cal_max = this.window.high;
    this.#restaged = true;
    this.#changed();
  }

  #restaged = false;

  /** Colours of the values of the map: a Map of value to [red, green, blue, opacity], all 0 to 255. */
  setColours(colours) {
    const lut = new Uint8ClampedArray(256 * 4);
    for (const [value, rgba] of colours) lut.set(rgba, 4 * value);
    this.#nv.drawLut = { lut, labels: this.#nv.drawLut.labels };
    if (this.shown) this.#nv.refreshColormaps();
    this.#changed();
  }

  /** Write a patch into the map; a preview goes. */
  apply(patch) {
    this.#uncover();
    if (patch) this.#write(patch);
    this.#changed();
  }

  /** Lay a patch over the map until the next preview or patch; null takes it off. */
  preview(patch) {
    this.#uncover();
    if (patch) {
      this.#covered = cut(this.#nv.drawBitmap, this.#shape, patch);
      this.#write(patch);
    }
    this.draw(); // the 3D view waits for the prompt itself
  }

  #uncover() {
    if (this.#covered) this.#write(this.#covered);
    this.#covered = null;
  }

  // Only the window goes to the graphics memory: NiiVue's own refreshDrawing sends the whole map.
  #write(patch) {
    const { gl, drawBitmap, drawTexture, opts } = this.#nv;
    const { from, size, values } = patch;
    paste(drawBitmap, this.#shape, patch);
    gl.activeTexture(gl.TEXTURE7);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    if (opts.is2DSliceShader) {
      gl.bindTexture(gl.TEXTURE_2D, drawTexture);
      gl.texSubImage2D(gl.TEXTURE_2D, 0, from[0], from[1], size[0], size[1], gl.RED, gl.UNSIGNED_BYTE, values);
    } else {
      gl.bindTexture(gl.TEXTURE_3D, drawTexture);
      gl.texSubImage3D(gl.TEXTURE_3D, 0, ...from, ...size, gl.RED, gl.UNSIGNED_BYTE, values);
    }
  }

  moveTo(voxel) {
    this.crosshair = voxel.map((index, axis) => Math.min(Math.max(index, 0), this.#shape[axis] - 1));
    this.#nv.scene.crosshairPos = this.crosshair.map((index, axis) => (index + 0.5) / this.#shape[axis]);
    this.draw();
  }

  /** The label and the value at a voxel; a colour is three values. */
  valueAt([i, j, k]) {
    const volume = this.#nv.volumes[0];
    const at = i + this.#shape[0] * (j + this.#shape[1] * k);
    const channels = volume.img.length / (this.#shape[0] * this.#shape[1] * this.#shape[2]);
    const values = Array.from(volume.img.subarray(at * channels, at * channels + Math.min(channels, 3)));
    return { label: this.#nv.drawBitmap[at], values };
  }

  /** The voxel at a place of the stage as NiiVue has it: a second opinion, for tests. */
  voxelByNiivue(x, y) {
    const scale = this.#scale();
    const fraction = this.#nv.canvasPos2frac([x * scale, y * scale]);
    return fraction[0] < 0 ? null : Array.from(this.#nv.frac2vox(fraction));
  }

  millimetres([i, j, k], affine) {
    return affine.slice(0, 3).map((row) => row[0] * i + row[1] * j + row[2] * k + row[3]);
  }

  /** What is where on the screen, in CSS pixels: one {plane, left, top, width, height, ...} per plane. */
  tiles() {
    const scale = this.#scale();
    return this.#nv.screenSlices.map((slice, index) => {
      const [left, top, width, height] = slice.leftTopWidthHeight;
      const place = { left: left / scale, top: top / scale, width: width / scale, height: height / scale };
      if (slice.axCorSag === RENDER) return { ...place, plane: null };
      const plane = NAMES[slice.axCorSag];
      const { across, up } = PLANES[plane];
      const one = this.#fraction(left + width * 0.25, top + height * 0.25, index);
      const two = this.#fraction(left + width * 0.75, top + height * 0.75, index);
      const rightwards = (two[across] - one[across]) / (place.width * 0.5);
      const downwards = (two[up] - one[up]) / (place.height * 0.5);
      return {
        ...place, plane, rightwards, downwards,
        originX: one[across] - rightwards * (place.left + place.width * 0.25),
        originY: one[up] - downwards * (place.top + place.height * 0.25),
      };
    });
  }

  #fraction(x, y, index) {
    return this.#nv.screenXY2TextureFrac(x, y, index, false);
  }

  #scale() {
    return this.#nv.canvas.width / this.#nv.canvas.clientWidth;
  }

  tileAt(x, y) {
    return this.tiles().find((one) => x >= one.left && x < one.left + one.width && y >= one.top && y < one.top + one.height);
  }

  /** The voxel under a place on a tile, brought inside the image if `clamp`, else null outside it. */
  voxelAt(tile, x, y, { clamp = false } = {}) {
    const { across, up } = PLANES[tile.plane];
    const voxel = [...this.crosshair];
    voxel[across] = Math.floor((tile.originX + tile.rightwards * x) * this.#shape[across]);
    voxel[up] = Math.floor((tile.originY + tile.downwards * y) * this.#shape[up]);
    const inside = [across, up].every((axis) => voxel[axis] >= 0 && voxel[axis] < this.#shape[axis]);
    if (inside) return voxel;
    return clamp ? voxel.map((index, axis) => Math.min(Math.max(index, 0), this.#shape[axis] - 1)) : null;
  }

  /** Where a place of the grid is on a tile; whole numbers are the low corners of voxels, + 0.5 their centres. */
  screenAt(tile, place) {
    const { across, up } = PLANES[tile.plane];
    return [
      (place[across] / this.#shape[across] - tile.originX) / tile.rightwards,
      (place[up] / this.#shape[up] - tile.originY) / tile.downwards,
    ];
  }

  /** Zoom so that the place under the pointer stays. */
  zoom(factor, tile, x, y) {
    const scene = this.#nv.scene;
    const before = scene.pan2Dxyzmm[3];
    const after = Math.min(Math.max(before * factor, 0.5), 24);
    const at = this.#ortho(tile, x, y);
    scene.pan2Dxyzmm = [0, 1, 2].map((axis) => scene.pan2Dxyzmm[axis] + at[axis] * (before - after)).concat(after);
    this.draw();
  }

  pan(tile, fromX, fromY, toX, toY) {
    const scene = this.#nv.scene;
    const zoom = scene.pan2Dxyzmm[3];
    const [from, to] = [this.#ortho(tile, fromX, fromY), this.#ortho(tile, toX, toY)];
    scene.pan2Dxyzmm = [0, 1, 2].map((axis) => scene.pan2Dxyzmm[axis] + zoom * (to[axis] - from[axis])).concat(zoom);
    this.draw();
  }

  // Millimetres along the image's own axes, in which NiiVue pans.
  #ortho(tile, x, y) {
    const { across, up } = PLANES[tile.plane];
    const fraction = [...this.#nv.scene.crosshairPos];
    fraction[across] = tile.originX + tile.rightwards * x;
    fraction[up] = tile.originY + tile.downwards * y;
    return this.#nv.frac2mm(fraction, 0, false);
  }

  resetZoom() {
    this.#nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.#nv.scene.volScaleMultiplier = 1;
    this.draw({ solid: true });
  }

  turn(across, down) {
    const scene = this.#nv.scene;
    scene.renderAzimuth = (scene.renderAzimuth + across + 360) % 360;
    scene.renderElevation = Math.min(Math.max(scene.renderElevation + down, -90), 90);
    this.draw({ solid: true });
  }

  scaleRender(factor) {
    this.#nv.scene.volScaleMultiplier = Math.min(Math.max(this.#nv.scene.volScaleMultiplier * factor, 0.5), 4);
    this.draw({ solid: true });
  }

  // What is drawn has changed: the planes at once, the 3D view when there is rest.
  #changed() {
    this.draw();
    clearTimeout(this.#resting);
    this.#resting = setTimeout(() => this.draw({ solid: true }), REST_MS);
  }

  /** Draw before the next frame, however often it is asked; the 3D view only if it is `solid`. */
  draw({ solid = false } = {}) {
    this.#solid ||= solid;
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      if (this.#restaged) this.#nv.updateGLVolume();
      this.#restaged = false;
      const begun = performance.now();
      this.#nv.drawScene();
      if (this.#solid) this.#keep(begun);
      this.#solid = false;
      for (const tell of this.#drawn) tell();
    });
  }

  // The 3D view is copied while the picture is there to be read, in the task that drew it.
  #keep(begun) {
    const { canvas, gl, screenSlices } = this.#nv;
    const still = this.#still;
    [still.width, still.height] = [canvas.width, canvas.height]; // this clears it too
    const solid = screenSlices.find((slice) => slice.axCorSag === RENDER);
    if (!solid || !this.shown) return;
    const [left, top, width, height] = solid.leftTopWidthHeight;
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); // waits until it is drawn
    const pen = still.getContext("2d");
    pen.fillStyle = "#000"; // the volume is faint in parts, through which the coarse drawing below would be seen
    pen.fillRect(left, top, width, height);
    pen.drawImage(canvas, left, top, ...this.#coarse(width, height), left, top, width, height);
    const took = performance.now() - begun;
    const before = this.#detail;
    this.#detail = Math.min(Math.max(before * Math.sqrt(SOLID_MS / took), 0.25), 1);
    if (this.#detail > 1.4 * before) this.#changed();
  }

  // `setOpacity` would make the planes faint as well, and upload the image again.
  #fade(opacity) {
    const { gl, renderShader } = this.#nv;
    renderShader.use(gl);
    gl.uniform1f(renderShader.uniforms.backOpacity, opacity);
  }

  #coarse(width, height) {
    return [Math.ceil(width * this.#detail), Math.ceil(height * this.#detail)];
  }

  /** The parts of the stage, each with a plane or, null, the 3D view: {plane, left, top, width, height} in CSS pixels. */
  cells() {
    const { clientWidth, clientHeight } = this.#nv.canvas;
    return LAYOUTS[this.#layout].map(([type, left, top, width, height]) => ({
      plane: type === RENDER ? null : NAMES[type],
      left: left * clientWidth, top: top * clientHeight, width: width * clientWidth, height: height * clientHeight,
    }));
  }
}
