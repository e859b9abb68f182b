// A case that is open here: its lease, its image, what the server last said of it. What is asked goes out in turn.

import * as api from "./api.js";
import { unpacked } from "./patch.js";

const HEARTBEAT_MS = 20_000;
const LONGEST_MS = 120_000;

export class OpenCase {
  #turn = Promise.resolve();
  #view;
  #beat;
  #tell;
  #open = new AbortController();
  pending = 0;
  lost = false;

  /** Open a case and show it. `tell` is called whenever something about it has changed. */
  static async open(id, view, tell, { takeOver = false } = {}) {
    const opened = await api.post(`cases/${id}/open`, { take_over: takeOver });
    const one = new OpenCase();
    one.id = id;
    one.lease = opened.lease;
    one.image = opened.image;
    one.state = opened.state;
    one.#view = view;
    one.#tell = tell;
    sessionStorage.setItem("palpate.case", id);
    one.#beat = setInterval(() => one.#heartbeat(), HEARTBEAT_MS);
    try {
      const [bytes, patch] = await Promise.all([api.bytes(opened.image.url), unpacked(opened.patch)]);
      await view.show(bytes, opened.image);
      one.#show(patch);
    } catch (error) {
      one.close();
      throw error;
    }
    return one;
  }

  get revision() {
    return this.state.revision;
  }

  /** Ask for a change; gives the state after it. Changes are made one after the other. */
  change(verb, body = {}) {
    return this.#next(async () => {
      const reply = await this.#post(verb, { revision: this.revision, ...body });
      await this.#take(reply);
      return this.state;
    });
  }

  /** Ask for a long change; gives its job. */
  begin(verb, body) {
    return this.#next(async () => (await this.#post(verb, { revision: this.revision, ...body })).job);
  }

  /** Ask what has changed elsewhere. */
  refresh({ whole = false } = {}) {
    const since = whole ? -1 : this.revision;
    return this.#next(async () => this.#take(await this.#leased(() => api.get(`cases/${this.id}/map?since=${since}`, this))));
  }

  /** The patch of a prompt that is not kept. */
  async preview(prompt) {
    return unpacked((await api.post(`cases/${this.id}/preview`, { prompt }, this.#aside)).patch);
  }

  /** Have a slice looked at ahead of the first prompt on it. */
  encode(slice) {
    return api.post(`cases/${this.id}/encode`, slice, this.#aside);
  }

  async agreement() {
    const { agreement, revision } = await api.get(`cases/${this.id}/agreement`, this.#aside);
    if (revision === this.revision && this.state.draft) {
      this.state.draft.agreement = agreement;
      this.#tell();
    }
  }

  /** All that was asked has been answered. */
  async idle() {
    while (this.pending) await this.#turn;
  }

  /** Give the case back, when what was asked before has been answered; what changes nothing is not waited for. */
  async close({ leaving = false } = {}) {
    this.#open.abort();
    // The lease is kept alive until what was asked is answered, but a server that hangs does not keep the page.
    if (!leaving) await Promise.race([this.idle(), new Promise((wake) => setTimeout(wake, LONGEST_MS))]);
    clearInterval(this.#beat);
    const told = api.post(`cases/${this.id}/close`, {}, { lease: this.lease, keepalive: leaving });
    return told.catch(() => {}); // a lease that is not given back ends by itself
  }

  // How to ask what is of no use once the case is closed.
  get #aside() {
    return { lease: this.lease, signal: this.#open.signal };
  }

  #next(work) {
    this.pending += 1;
    this.#tell();
    const done = this.#turn.then(work).finally(() => {
      this.pending -= 1;
      this.#tell();
    });
    this.#turn = done.catch(() => {});
    return done;
  }

  #post(verb, body) {
    return this.#leased(() => api.post(`cases/${this.id}/${verb}`, body, this));
  }

  async #leased(ask) {
    try {
      return await ask();
    } catch (error) {
      if (error.status === 410) this.#lose();
      throw error;
    }
  }

  async #take({ state, patch }) {
    const bytes = await unpacked(patch);
    this.state = state;
    this.#show(bytes);
  }

  #show(patch) {
    this.#view.marked = Boolean(this.state.draft) || this.state.labels.length > 0;
    this.#view.apply(patch);
  }

  async #heartbeat() {
    try {
      await api.post(`cases/${this.id}/heartbeat`, {}, this);
    } catch (error) {
      if (error.status === 410) this.#lose();
    }
  }

  #lose() {
    clearInterval(this.#beat);
    this.lost = true;
    this.#tell();
  }
}
