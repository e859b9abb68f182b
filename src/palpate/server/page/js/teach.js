// Learning from what is done, and guessing the rest.

import * as act from "./actions.js";
import { app, panel } from "./app.js";
import { progress } from "./draft.js";
import { fill, h } from "./dom.js";

export function teaching(element) {
  panel(
    () => ({ now: app.teaching, rest: app.cases.filter((one) => one.status === "untouched").length }),
    ({ now, rest }) => {
      if (!now) return;
      const { finished, enough, learned, job } = now;
      const least = now.least ?? 1;
      const running = job?.status === "running";
      fill(element,
        h("div", { class: "title" }, h("h2", {}, "Teach"), h("span", { class: "quiet" }, `${finished} of ${enough} cases finished`)),
        h("div", { class: "progress thin", "aria-hidden": "true" }, h("i", { share: `${Math.min(100, Math.round((100 * finished) / enough))}%` })),
        learned
          ? h("p", { class: "quiet" }, `Learned from ${learned.cases} cases`, learned.val_dice == null ? "" : `, Dice ${learned.val_dice.toFixed(2)} on those held out`, rest ? `. ${rest} ${rest === 1 ? "is" : "are"} untouched.` : ".")
          : h("p", { class: "quiet" }, finished < enough ? "Finish some cases, and the page can guess the rest." : "There is enough to learn from."),
        running
          ? progress(job, job.kind === "teach" ? "Learning" : "Guessing")
          : h("div", { class: "pair" },
            h("button", { type: "button", class: finished >= enough && !learned ? "main" : "", onclick: act.teach, disabled: finished < least, "data-key": "teach" },
              learned ? "Teach again" : "Teach"),
            h("button", { type: "button", class: learned && rest ? "main" : "", onclick: act.guess, disabled: !learned || !rest, "data-key": "guess" },
              "Guess the rest")));
    },
  );
  return act.loadTeaching();
}
