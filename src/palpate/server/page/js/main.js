// Puts the page together.

import * as act from "./actions.js";
import { lookAhead } from "./ahead.js";
import * as api from "./api.js";
import { app, changed, onChange, say } from "./app.js";
import { byId, fill, h } from "./dom.js";
import { draft } from "./draft.js";
import { finishing } from "./finish.js";
import * as keys from "./keys.js";
import { labels } from "./labels.js";
import { Marks } from "./marks.js";
import * as pointer from "./pointer.js";
import { keepTrying, status } from "./status.js";
import { teaching } from "./teach.js";
import { toolbar } from "./toolbar.js";
import { View } from "./view.js";
import { worklist } from "./worklist.js";

async function main() {
  api.onServer((server) => {
    app.server = server;
    if (server === "there") act.recover();
    changed();
  });
  status();
  keepTrying();
  try {
    app.view = await View.on(byId("picture"), byId("still"));
  } catch (error) {
    app.missing = error instanceof TypeError
      ? "The viewer is missing: NiiVue was not packed when palpate was installed. Install npm, then palpate once more."
      : `The viewer cannot start${error.message ? `: ${error.message}` : ""}. It needs WebGL 2; try another browser, or turn its graphics on.`;
    return changed();
  }
  const canvas = byId("marks");
  const marks = new Marks(canvas, app.view);
  onChange(() => marks.draw());
  onChange(() => cover(byId("cover")));
  onChange(lookAhead);
  app.follows = localStorage.getItem("palpate.follows") === "yes";
  app.beside = localStorage.getItem("palpate.beside") === "yes";
  act.onOpened(() => canvas.focus({ preventScroll: true }));
  pointer.listen(canvas, app.view);
  keys.listen(canvas);
  toolbar();
  draft(byId("draft"));
  labels(byId("labels"));
  finishing(byId("finish"));
  window.addEventListener("pagehide", () => app.case?.close({ leaving: true }));
  await act.attempt(async () => {
    await act.loadAbout();
    await act.loadLabels();
    await worklist(byId("worklist"));
    await teaching(byId("teach"));
  });
  await goOn();
  window.palpate = handle();
  return changed();
}

/** The case that the address names, or the one that was open before a reload. */
async function goOn() {
  const mine = sessionStorage.getItem("palpate.case");
  const id = decodeURIComponent(location.hash.slice(1)) || mine;
  const usable = app.cases.filter((one) => one.status !== "damaged");
  const known = usable.find((one) => one.id === id);
  if (known) await act.open(known.id, { takeOver: known.id === mine }); // a reload may be quicker than its own goodbye
  else if (usable.length) say("choose a case on the left");
}

function cover(element) {
  const words = coverWords();
  if (element.textContent === words.join("")) return;
  fill(element, words.length ? h("div", {}, words.map((one) => h("p", {}, one))) : null);
}

function coverWords() {
  if (app.opening) return [`Opening ${nameOfCase(app.opening)} …`];
  if (app.failed?.why) return [`${nameOfCase(app.failed.id)} cannot be opened.`, app.failed.why];
  if (app.case || !app.listed) return [];
  if (app.cases.length) return ["Choose a case on the left"];
  return ["There are no images in this folder.", "Put some there and look again (the arrow above the list on the left)."];
}

const nameOfCase = (id) => app.cases.find((one) => one.id === id)?.name ?? id;

/** For tests and for looking inside: where voxels are, and what the page knows. */
function handle() {
  const at = (plane) => app.view.tiles().find((one) => one.plane === plane);
  return {
    /** The centre of a voxel in the window, in CSS pixels, on a plane that shows it. */
    screenOf(plane, voxel) {
      const { left, top } = byId("marks").getBoundingClientRect();
      const [x, y] = app.view.screenAt(at(plane), voxel.map((index) => index + 0.5));
      return [x + left, y + top];
    },
    /** The voxel that NiiVue itself finds at a place of the window: another way than the page's own. */
    voxelByNiivue: (x, y) => app.view.voxelByNiivue(x - byId("marks").getBoundingClientRect().left, y - byId("marks").getBoundingClientRect().top),
    /** The planes that are drawn, null for the 3D view. */
    drawn: () => app.view.tiles().map((one) => one.plane),
    /** How many images are held: one, or none. */
    images: () => app.view.images,
    moveTo: act.moveTo,
    valueAt: (voxel) => app.view.valueAt(voxel),
    state: () => ({
      case: app.case?.id ?? null, lease: app.case?.lease ?? null, state: app.case?.state ?? null, image: app.case?.image ?? null,
      crosshair: app.view.crosshair, plane: app.plane, tool: app.tool, label: app.label, labels: app.labels, cases: app.cases,
      gesture: app.gesture, hover: app.hover, message: app.message, job: app.job ?? null, layout: app.view.layout,
    }),
    /** Everything that was asked has been answered and drawn. */
    async idle() {
      do {
        await app.case?.idle();
        await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
      } while (app.case?.pending || app.opening || app.job);
    },
  };
}

main();
