// What the server is asked, and how it answers: every failure becomes a Refusal with the server's own words.

const ROOT = "api/v1/";

export class Refusal extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** No answer came: the server is gone, or the network. */
export class Unreachable extends Error {
  constructor() {
    super("the server does not answer");
  }
}

/** Called with true when an answer comes after none came, with false when none comes. */
let tellReach = () => {};
let reached = true;

export function onReach(tell) {
  tellReach = tell;
}

async function ask(method, path, { body, lease, keepalive } = {}) {
  const headers = {};
  if (lease) headers["X-Palpate-Lease"] = lease;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(ROOT + path, { method, headers, keepalive, body: body && JSON.stringify(body) });
  } catch {
    reach(false);
    throw new Unreachable();
  }
  reach(true);
  if (!response.ok) throw new Refusal(response.status, await detailOf(response));
  return response;
}

function reach(now) {
  if (now !== reached) {
    reached = now;
    tellReach(now);
  }
}

async function detailOf(response) {
  const text = await response.text();
  try {
    const { detail } = JSON.parse(text);
    if (typeof detail === "string") return detail;
  } catch {
    // not JSON: its first words will have to do
  }
  return text.slice(0, 300) || `${response.status} ${response.statusText}`;
}

const json = async (response) => (response.status === 204 ? null : response.json());

export const get = async (path, options) => json(await ask("GET", path, options));
export const post = async (path, body = {}, options = {}) => json(await ask("POST", path, { ...options, body }));
export const put = async (path, body) => json(await ask("PUT", path, { body }));
export const drop = async (path) => json(await ask("DELETE", path));
export const bytes = async (path) => (await ask("GET", path)).arrayBuffer();

/** A file and the name that the server gives it. */
export async function file(path) {
  const response = await ask("GET", path);
  const named = /filename="?([^";]+)"?/.exec(response.headers.get("content-disposition") ?? "");
  return { blob: await response.blob(), name: named ? named[1] : "palpate.bin" };
}
