// What the server is asked, and how it answers: every failure becomes a Refusal with the server's own words.

const ROOT = "api/v1/";

export class Refusal extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** The server, the network or the right token is gone: nothing can be asked until it is there again. */
export class Unreachable extends Error {}

let tellServer = () => {};
let server = "there";

/** `tell` is called when the server is "gone", wants another token ("changed"), or is "there" again. */
export function onServer(tell) {
  tellServer = tell;
}

async function ask(method, path, { body, lease, keepalive, signal } = {}) {
  const headers = {};
  if (lease) headers["X-Palpate-Lease"] = lease;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(ROOT + path, { method, headers, keepalive, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (signal?.aborted) throw error; // nobody wants the answer any more
    found("gone");
    throw new Unreachable("the server does not answer");
  }
  found(response.status === 401 ? "changed" : "there");
  if (response.status === 401) throw new Unreachable(await detailOf(response));
  if (!response.ok) throw new Refusal(response.status, await detailOf(response));
  return response;
}

function found(now) {
  if (now === server) return;
  server = now;
  tellServer(now);
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
