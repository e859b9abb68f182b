// The verbs of the page, for buttons, keys and the pointer alike. A failure is told in the server's own words.

import * as api from "./api.js";
import { app, changed, DRAFT, labelOf, learnedOf, lookedAt, nameOf, say } from "./app.js";
import { OpenCase } from "./case.js";
import { choose } from "./dialogs.js";
import { PLANES } from "./planes.js";

const QUICK_MS = 150; // a mask that takes longer does not follow the hand
const SLOW_MS = 500; // who waits for longer wants to know what for
const REST_MS = 400; // the agreement is asked for when nothing happened for so long
const POLL_MS = 300;

/** Run what a user asked for; what goes wrong is said, not thrown. */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (error instanceof api.Unreachable) return undefined; // the banner says so
    if (!(error instanceof api.Refusal)) console.error(error);
    say(error.message, "bad");
    return undefined;
  }
}

// ---------------------------------------------------------------- cases

export async function loadAbout() {
  Object.assign(app.about, await api.get("about"));
  changed();
}

export async function loadCases({ rescan = false } = {}) {
  const query = `order=${app.order}${rescan ? "&rescan=true" : ""}`;
  app.cases = (await api.get(`cases?${query}`)).cases;
  app.listed = true;
  changed();
}

export const rescan = () =>
  attempt(async () => {
    await loadCases({ rescan: true });
    say(`${app.cases.length} images in the folder`);
  });

export const orderBy = (order) =>
  attempt(async () => {
    app.order = order;
    await loadCases();
  });

export async function openCase(id, { takeOver = false } = {}) {
  if (app.opening || (app.case?.id === id && !app.case.lost)) return;
  const before = app.case?.id;
  app.opening = id;
  app.failed = null;
  app.gesture = null;
  say("");
  try {
    if (app.case) await app.case.close();
    app.case = null;
    app.view.hide();
    app.case = await OpenCase.open(id, app.view, changed, { takeOver });
    settle();
  } catch (error) {
    app.opening = null;
    changed();
    if (error.status === 409 && !takeOver) {
      const yes = await choose("Open elsewhere", error.message, ["Take it over", "Leave it"]);
      if (yes === 0) return openCase(id, { takeOver: true });
      return before && before !== id ? openCase(before) : undefined;
    }
    app.failed = { id, why: error instanceof api.Unreachable ? null : error.message };
    attempt(loadCases); // it may be damaged
    throw error;
  } finally {
    app.opening = null;
    changed();
  }
  return attempt(loadCases);
}

let opened = () => {};

/** Called when a case has been opened. */
export const onOpened = (tell) => { opened = tell; };

/** What a newly opened case brings with it. */
function settle() {
  opened();
  const { image, state, id } = app.case;
  history.replaceState(null, "", `#${id}`);
  app.plane = image.plane;
  app.range = { first: null, last: null, untilEnd: true };
  layout(image.is_volume ? "multi" : image.plane);
  colour();
  say(state.notes.length ? state.notes.join("; ") : "");
  if (state.job) follow(state.job);
  estimate();
}

export const open = (id, options) => attempt(() => openCase(id, options));
export const reopen = () => attempt(() => openCase(app.case.id, { takeOver: true }));

/** The server answers again; one that was started anew knows no leases, so the case is opened once more. */
export const recover = () =>
  attempt(async () => {
    const { case: one, failed } = app;
    await Promise.all([loadAbout(), loadCases(), loadLabels(), loadTeaching()]);
    if (!one) {
      if (failed && !failed.why) await openCase(failed.id);
      return;
    }
    try {
      await one.refresh();
      say("the server answers again", "good");
    } catch (error) {
      if (error.status !== 410) throw error;
      await openCase(one.id);
      say("the server was started anew, and goes on where it was", "good");
    }
  });

export function step(by) {
  const here = app.case?.id ?? app.opening ?? app.failed?.id;
  const at = app.cases.findIndex((one) => one.id === here);
  const next = app.cases[at + by];
  if (next) return open(next.id);
  say(by > 0 ? "this is the last case" : "this is the first case");
}

// ---------------------------------------------------------------- the object being drawn

/** Ask for a change to the open case, and tell what came of it. */
function ask(verb, body, told) {
  return attempt(async () => {
    const { case: one } = app;
    if (!one) return undefined;
    let state;
    try {
      state = await one.change(verb, body);
    } catch (error) {
      app.view.preview(null);
      throw error;
    }
    const listed = app.cases.find((other) => other.id === one.id);
    if (listed) Object.assign(listed, { status: state.status, labels: state.labels.map(({ value }) => value) });
    const notes = [told?.(state), ...state.notes].filter(Boolean);
    say(notes.join("; "), "good");
    estimate();
    return state;
  });
}

export async function prompt(what) {
  const look = lookedAt();
  app.asked = what;
  const slow = setTimeout(() => say(look.learned ? "looking at this slice, beside what was learned …" : "looking at this slice …"), SLOW_MS);
  const state = await ask("prompts", { prompt: { ...what, ...look } }, promptTold(what));
  clearTimeout(slow);
  if (app.asked === what) app.asked = null;
  changed();
  return state;
}

const promptTold = (what) => (state) =>
    `${what.kind} on ${what.plane}${state.draft?.learned ? `, beside what was learned of ${state.draft.learned}` : ""}: ${state.draft ? `${state.draft.voxels.toLocaleString("en")} voxels` : "nothing found"}`;

export async function accept() {
  if (!app.case?.state.draft) return say("there is nothing to accept; draw a box first");
  if (app.label === null) await addLabel("label 1");
  const label = labelOf(app.label);
  if (!label) return undefined;
  if (await ask("accept", { label: label.value }, () => `accepted as ${label.name}`)) nextObject();
  return attempt(loadCases);
}

export async function discard() {
  if (!app.case?.state.draft) return say("there is nothing to discard");
  if (await ask("discard", {}, () => "discarded")) nextObject();
  return undefined;
}

/** Where one object begins and ends says nothing of the next. */
function nextObject() {
  app.range = { ...app.range, first: null, last: null };
  changed();
}

export async function undo() {
  const { undo: last } = app.case?.state ?? {};
  if (!last) return say("there is nothing to undo");
  await ask("undo", {}, () => `undone: ${nameOf(last)}`);
  return attempt(loadCases);
}

export async function redo() {
  const { redo: next } = app.case?.state ?? {};
  if (!next) return say("there is nothing to redo");
  await ask("redo", {}, () => `done again: ${nameOf(next)}`);
  return attempt(loadCases);
}

/** Brush and eraser change the object being drawn; where there is none, the chosen label. */
export function stroke(tool, plane, path) {
  const label = app.case?.state.draft || app.label === null ? null : app.label;
  const name = label === null ? "the object being drawn" : labelOf(label).name;
  return ask("stroke", { tool, plane, path, radius_mm: app.brush / 2, label }, () => `${tool}: ${name}`);
}

let previewing = false;
let waiting = null;

/**
 * Show the mask of a prompt that is still being drawn. One is asked for at a time, and only the last one waits, even
 * where the one under way is of a gesture that has ended. The first on a slice is slow, since the slice is encoded then,
 * which the prompt would need anyway; where the next is slow too, the machine is, and the mask comes with the prompt. A
 * machine that is known to be slow, at first by what the server says of it, is asked for a second one only if the first
 * was quick.
 */
export async function preview(what) {
  const { case: one, gesture, about } = app;
  if (!one || !gesture) return;
  gesture.slow ??= about.preview_ms > QUICK_MS ? 1 : 0;
  waiting = { what, one, gesture };
  if (previewing) return;
  previewing = true;
  try {
    while (waiting) {
      const next = waiting;
      waiting = null;
      if (goesOn(next) && next.gesture.slow < 2) await glimpse(next);
    }
  } finally {
    previewing = false;
  }
}

const goesOn = ({ one, gesture }) => app.case === one && app.gesture === gesture;

async function glimpse(next) {
  const { what, one, gesture } = next;
  const begun = performance.now();
  try {
    const patch = await one.preview({ ...what, ...lookedAt() });
    const took = performance.now() - begun;
    if (took > QUICK_MS) gesture.slow += 1;
    if (gesture.previewed) app.about.preview_ms = took;
    gesture.previewed = true;
    if (goesOn(next)) app.view.preview(patch);
  } catch {
    // a preview that fails is none; the prompt itself will say why
  }
}

let resting;

/** Ask for the agreement once the user rests. */
function estimate() {
  clearTimeout(resting);
  const { case: one } = app;
  if (!one?.state.draft || one.state.draft.agreement !== null || !one.state.draft.prompts.length) return;
  const { revision } = one;
  resting = setTimeout(() => {
    if (app.case === one && !app.opening && one.revision === revision && !one.pending && !app.gesture && !app.job) {
      one.agreement().catch(() => {}); // it is shown where it is known
    }
  }, REST_MS);
}

// ---------------------------------------------------------------- long work

export const propagate = () =>
  attempt(async () => {
    const { case: one } = app;
    if (!one?.state.draft) return say("there is nothing to carry through the volume; draw a box first");
    if (!one.image.is_volume) return say("a picture has one slice");
    const plane = one.state.draft.prompts.at(-1)?.plane ?? app.plane;
    const most = one.image.shape[PLANES[plane].depth] - 1;
    const { first, last, untilEnd } = app.range;
    const ends = [first ?? 0, last ?? most];
    return follow(await one.begin("propagate", {
      plane, first: Math.min(...ends), last: Math.min(Math.max(...ends), most), until_end: untilEnd,
    }));
  });

export const teach = () => attempt(async () => follow((await api.post("teach")).job));
export const guess = () => attempt(async () => follow((await api.post("guess")).job));

/** A job that is cancelled still runs until it hears of it, which may take a while. */
export const cancel = (job) =>
  attempt(async () => {
    stopping.add(job.id);
    await api.post(`jobs/${job.id}/cancel`);
  });

const followed = new Set();
const stopping = new Set();

/** Watch a job until it ends, and take what came of it. */
export async function follow(job) {
  if (!job || followed.has(job.id)) return;
  followed.add(job.id);
  const carrying = job.kind === "propagate";
  const { case: one } = app;
  let now = job;
  while (now.status === "running") {
    const shown = { ...now, stopping: stopping.has(job.id) };
    if (carrying) app.job = shown;
    else if (app.teaching) app.teaching = { ...app.teaching, job: shown };
    changed();
    await new Promise((wake) => setTimeout(wake, POLL_MS));
    try {
      now = await api.get(`jobs/${job.id}`);
    } catch (error) {
      if (error instanceof api.Unreachable) continue;
      const anew = error.status === 404;
      now = { ...now, status: "failed", detail: anew ? "the server was started anew meanwhile; ask once more" : error.message };
    }
  }
  app.job = carrying ? null : app.job;
  const words = { propagate: "carried through the volume", teach: "learned", guess: "guessed" }[job.kind] ?? job.kind;
  if (now.status === "finished") say(now.detail ? `${words}: ${now.detail}` : words, "good");
  else say(now.status === "cancelled" ? "cancelled" : now.detail, now.status === "cancelled" ? "" : "bad");
  await attempt(async () => {
    if (carrying && app.case === one) await one.refresh();
    if (!carrying) await Promise.all([loadTeaching(), loadCases(), loadLabels()]); // guesses may bring labels
    estimate();
  });
  changed();
}

export async function loadTeaching() {
  app.teaching = await api.get("teaching");
  changed();
  if (app.teaching.job?.status === "running") follow(app.teaching.job);
}

// ---------------------------------------------------------------- finishing

export async function finish() {
  const { case: one } = app;
  if (!one) return;
  const done = !one.state.done;
  await ask("done", { done }, () => (done ? "done" : "open again"));
  await attempt(() => Promise.all([loadCases(), loadTeaching()]));
}

export const save = (kind, { all }) =>
  attempt(async () => {
    say(`writing ${kind} …`);
    const { blob, name } = await api.file(all ? `export/${kind}` : `cases/${app.case.id}/export/${kind}`);
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    const beside = !all && app.case?.state.draft ? "; the object that is being drawn is not in it, as it was not accepted" : "";
    say(`saved ${name}${beside}`, "good");
  });

// ---------------------------------------------------------------- labels

export async function loadLabels() {
  const { labels, policy } = await api.get("labels");
  app.labels = labels;
  app.policy = policy;
  if (!labelOf(app.label)) app.label = labels[0]?.value ?? null;
  colour();
}

export function chooseLabel(value) {
  if (!labelOf(value)) return;
  app.label = value;
  say(`objects are accepted as ${labelOf(value).name}`);
}

export const addLabel = (name) =>
  attempt(async () => {
    const label = await api.post("labels", { name });
    await loadLabels();
    app.label = label.value;
    changed();
  });

export const changeLabel = (value, change) =>
  attempt(async () => {
    await api.put(`labels/${value}`, change);
    await loadLabels();
  });

export const dropLabel = (value) =>
  attempt(async () => {
    await api.drop(`labels/${value}`);
    await loadLabels();
  });

export const setPolicy = (policy) =>
  attempt(async () => {
    app.policy = (await api.put("policy", { policy })).policy;
    say(policy === "keep" ? "other labels are kept" : "other labels are overwritten, unless they are locked");
  });

/** Bring the colours of the map up to date. */
export function colour() {
  const colours = new Map();
  if (app.overlay) {
    for (const { value, colour: hex } of app.labels) {
      const rgb = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
      if (!app.unseen.has(value)) colours.set(value, [...rgb, 105]);
    }
    if (!app.unseen.has(DRAFT)) colours.set(DRAFT, [25, 211, 243, 90]);
  }
  app.view?.setColours(colours);
  changed();
}

export function toggleSeen(value) {
  if (!app.unseen.delete(value)) app.unseen.add(value);
  colour();
}

export function toggleOverlay() {
  app.overlay = !app.overlay;
  colour();
  say(app.overlay ? "the labels are shown" : "the labels are hidden");
}

// ---------------------------------------------------------------- the view

export function layout(name) {
  const { case: one } = app;
  if (!one || (!one.image.is_volume && name !== one.image.plane)) return;
  app.view.setLayout(name);
  if (name !== "render" && !app.view.planes().includes(app.plane)) app.plane = app.view.planes()[0];
  changed();
}

export function moveTo(voxel) {
  app.view.moveTo(voxel);
  changed();
}

export function useTool(tool) {
  app.gesture = null;
  app.tool = tool;
  changed();
}

export function resizeBrush(by) {
  app.brush = Math.min(Math.max(Math.round((app.brush + by) * 2) / 2, 0.5), 100);
  changed();
}

export function useWindow({ low, high }) {
  app.view.setWindow(low, high);
  changed();
}

/** Whether the model sees what the user sees. This browser remembers it. */
export function setFollows(follows) {
  if (app.case?.image.colour) return say("colours are seen as they are; there is no window for them");
  app.follows = follows;
  localStorage.setItem("palpate.follows", follows ? "yes" : "");
  return say(follows ? "the model sees the image by your window from the next prompt on" : "the model sees the image by its own window");
}

/** Whether prompts go in beside what was learned. This browser remembers it. */
export function setBeside(beside) {
  if (!app.teaching?.learned) return say("nothing was learned yet; finish some cases, and teach them");
  app.beside = beside;
  localStorage.setItem("palpate.beside", beside ? "yes" : "");
  if (!beside) return say("prompts are answered without what was learned");
  return say(learnedOf() ? `prompts go in beside what was learned of ${learnedOf()}` : `nothing was learned of ${labelOf(app.label)?.name ?? "it"}; choose a label of ${app.teaching.learned.classes.join(", ")}`);
}

export function nextWindow() {
  const presets = app.case?.image.window.presets ?? [];
  if (!presets.length) return;
  const { low, high } = app.view.window;
  const at = presets.findIndex((one) => one.low === low && one.high === high);
  const next = presets[(at + 1) % presets.length];
  useWindow(next);
  say(`window: ${next.name}`);
}
