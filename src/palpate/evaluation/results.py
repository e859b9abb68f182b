"""What is made of a finished run: the summary, the report with its pictures; and which cases to take of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from palpate.datasets.case import Case
from palpate.errors import SettingError
from palpate.evaluation.measure import Plan
from palpate.evaluation.modalities import by_modality, modalities_markdown, read_cases
from palpate.evaluation.presence import presence_markdown, presence_summary
from palpate.evaluation.protocols import dice_for
from palpate.evaluation.report import write_report
from palpate.evaluation.summary import SummaryRow, summarise, summary_csv, summary_markdown
from palpate.evaluation.table import Run
from palpate.evaluation.worst import worst_cases
from palpate.images.formats import replacing
from palpate.inference.session import Session


def some_cases(cases: Sequence[Case], *, most: int, seed: int) -> list[Case]:
    """At most so many cases of each dataset, drawn at random, in their order; the same for the same seed.

    Raises:
        SettingError: fewer than one.
    """
    if most < 1:
        raise SettingError(f"{most} cases leave nothing to measure; give at least 1")
    kept: list[Case] = []
    for name in dict.fromkeys(case.dataset for case in cases):
        own = [case for case in cases if case.dataset == name]
        order = dice_for(seed, name, "cases").permutation(len(own))[:most]
        kept += [own[i] for i in sorted(order.tolist())]
    return kept


def write_results(
    run: Run, cases: Sequence[Case], plan: Plan, load: Callable[[], Session], *, worst: int = 10
) -> list[SummaryRow]:
    """Write `summary.csv`, `summary.md` and `report.html` into the run's folder, in place of older ones; and
    `modalities.md`, where the data name modalities.

    `worst` is how many of the worst cases the report shows; `load` gives the session that draws them again.

    Raises:
        OutputError: the folder cannot be written.
        PalpateError: the model or a case of the worst cannot be loaded any more.
    """
    summary = summarise(run, np.random.default_rng(plan.seed))
    parts = (summary_markdown(summary), presence_markdown(presence_summary(run.presence)))
    texts = {"summary.csv": summary_csv(summary), "summary.md": "\n".join(filter(None, parts))}
    modalities = by_modality(run, read_cases(run.folder), np.random.default_rng(plan.seed))
    if modalities:  # apart from the summary, which is the same whenever the same is measured again: times are not
        texts["modalities.md"] = modalities_markdown(run, modalities)
    else:
        (run.folder / "modalities.md").unlink(missing_ok=True)  # of a run that this one replaces
    for name, text in texts.items():
        with replacing(run.folder / name, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    pictures = worst_cases(run, cases, plan, load, count=worst)
    write_report(run, run.folder / "report.html", worst=pictures, summary=summary, overwrite=True)
    return summary
