// Elements of the page, made in one call.

export const byId = (id) => document.getElementById(id);

/** An element: h("button", {class: "x", onclick: f, "aria-label": "y"}, "text", child, ...). Null and false are left out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (name === "colour") element.style.setProperty("--colour", value);
    else if (name === "share") element.style.setProperty("--share", value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Put other children into an element, and the focus back to where it was (by `data-key`). */
export function fill(element, ...children) {
  const key = element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  if (key !== undefined) element.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** A button with a picture on it. */
export function iconButton(name, label, properties = {}) {
  return h("button", { type: "button", class: "icon", title: label, "aria-label": label, ...properties }, icon(name));
}

const PATHS = {
  box: "M4 4h16v16H4z",
  point: "M12 3v6M12 15v6M3 12h6M15 12h6M12 11.5v1",
  scribble: "M4 16c3-9 6-9 7-4s3 6 5 1 2-6 4-6",
  brush: "M14 4l6 6-8 7-5-5zM7 12c-3 1-2 5-4 7 4 0 7 0 8-3",
  eraser: "M4 15l9-10 7 7-8 8H8zM9 10l7 7M12 20h8",
  pan: "M12 3v18M3 12h18M12 3l-3 3M12 3l3 3M12 21l-3-3M12 21l3-3M3 12l3-3M3 12l3 3M21 12l-3-3M21 12l-3 3",
  undo: "M8 5L4 9l4 4M4 9h9a6 6 0 010 12h-3",
  redo: "M16 5l4 4-4 4M20 9h-9a6 6 0 000 12h3",
  eye: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12zM12 9a3 3 0 100 6 3 3 0 000-6",
  hidden: "M3 3l18 18M10 5.2A10 10 0 0112 5c6 0 10 7 10 7a17 17 0 01-3.3 4M6.5 7A17 17 0 002 12s4 7 10 7a10 10 0 004-.8",
  locked: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 017 0v3",
  open: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 016.6-1.6",
  bin: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  plus: "M12 5v14M5 12h14",
  again: "M20 11a8 8 0 10-2 6M20 4v7h-7",
  help: "M9 9a3 3 0 116 0c0 2-3 2.5-3 5M12 17.5v.5",
  save: "M12 4v11M7 11l5 5 5-5M4 20h16",
};

function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
