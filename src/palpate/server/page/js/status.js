// The line below: what happened, and what is under the pointer. Above it, when there is cause: the banner.

import { reopen } from "./actions.js";
import * as api from "./api.js";
import { app, DRAFT, labelOf, panel, say } from "./app.js";
import { byId, fill, h } from "./dom.js";

const RETRY_MS = 2000;

const AWAY = {
  gone: "The server does not answer. What was done is kept. Start it again if it was stopped; this page then goes on by itself.",
  changed: "The server was started anew and has a new token. Open the address that it printed; this page then goes on as well.",
};

export function status() {
  panel(() => [app.message, (app.case?.pending ?? 0) > 0], ([{ text, kind }, busy]) => {
    const said = byId("said");
    said.className = kind;
    fill(said, h("i", { class: `busy${busy ? " on" : ""}`, "aria-hidden": "true" }), h("span", { title: text }, text));
  });
  panel(() => [app.hover ?? app.view?.crosshair, app.case?.id, app.case?.revision, app.about.model, app.about.runtime], ([voxel]) => {
    const model = h("span", { class: "quiet" }, `${app.about.model} · ${app.about.runtime}`);
    if (!app.case || !app.view.shown || !voxel) return fill(byId("place"), model);
    const { image } = app.case;
    const { label, values } = app.view.valueAt(voxel);
    const name = label === DRAFT ? "object" : labelOf(label)?.name;
    const mm = app.view.millimetres(voxel, image.affine).map((one) => one.toFixed(1)).join("  ");
    return fill(byId("place"),
      name ? h("span", {}, name) : null,
      h("span", {}, `value ${values.map((one) => Number(one.toFixed(2))).join(" ")}`),
      h("span", {}, `voxel ${image.is_volume ? voxel.join("  ") : `${voxel[0]}  ${voxel[1]}`}`),
      image.knows_place === false ? null : h("span", { title: "right, front, up" }, `${mm} mm RAS`),
      model);
  });
  panel(() => [app.server, app.case?.lost ?? false, app.missing ?? null], ([server, lost, missing]) => {
    const banner = byId("banner");
    banner.hidden = server === "there" && !lost && !missing;
    if (missing) return fill(banner, missing);
    if (server !== "there") return fill(banner, h("span", {}, AWAY[server]), h("button", { type: "button", onclick: retry }, "Try now"));
    if (lost) return fill(banner, "This case is not open here any more.", h("button", { type: "button", onclick: reopen }, "Open it here"));
    return fill(banner);
  });
}

async function retry() {
  try {
    await api.get("about");
  } catch (error) {
    if (!(error instanceof api.Unreachable)) say(error.message, "bad");
  }
}

export function keepTrying() {
  setInterval(() => {
    if (app.server !== "there") retry();
  }, RETRY_MS);
}
