"""Does the model know where a class is not? The object score of slices that show it against that of slices that don't.

The AUROC is the chance that of one slice with the class and one without it, both drawn at random, the model is surer of
the first; half of it counts where both are equal. Slices count equally: those of one patient are not independent, so
there is no interval here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from palpate.evaluation.summary import ALL, cell
from palpate.evaluation.table import Presence

PRESENCE_COLUMNS = ("dataset", "class", "slices with it", "without", "AUROC", "believed, % with", "denied, % without")


@dataclass(frozen=True)
class PresenceLine:
    """One class of one dataset, or all of them.

    - `present` and `absent` are how many slices (or pictures) show the class, and how many do not.
    - `auroc` is that of the object logit; NaN where one kind is missing.
    - `believed` is the share of the present ones that the model believes in, and `denied` that of the absent ones it
      says no to (an object logit below 0); NaN where there are none.
    """

    dataset: str
    wanted: str
    present: int
    absent: int
    auroc: float
    believed: float
    denied: float


def auroc(present: Sequence[float], absent: Sequence[float]) -> float:
    """The area under the ROC curve of a score, by ranks (Mann and Whitney); NaN where one kind is missing.

    >>> auroc([2.0, 1.0], [1.0, 0.0])
    0.875
    """
    if not present or not absent:
        return math.nan
    ranks = rankdata([*present, *absent])[: len(present)]
    pairs = float(ranks.sum()) - len(present) * (len(present) + 1) / 2
    return pairs / (len(present) * len(absent))


def presence_summary(found: Iterable[Presence]) -> list[PresenceLine]:
    """Each class of each dataset; then, where there are several, all classes, and all datasets."""
    found = list(found)
    datasets = sorted({one.dataset for one in found})
    lines: list[PresenceLine] = []
    for dataset in (*datasets, *([ALL] if len(datasets) > 1 else [])):
        some = [one for one in found if dataset in (ALL, one.dataset)]
        wanted = list(dict.fromkeys(one.wanted for one in some))
        lines += [_line(dataset, name, [one for one in some if one.wanted == name]) for name in wanted]
        if len(wanted) > 1:
            lines.append(_line(dataset, ALL, some))
    return lines


def presence_cells(line: PresenceLine) -> list[str]:
    """A line's cells for people, under `PRESENCE_COLUMNS`."""
    sure = "n/a" if math.isnan(line.auroc) else f"{line.auroc:.3f}"
    counts = (str(line.present), str(line.absent))
    return [line.dataset, line.wanted, *counts, sure, _share(line.believed), _share(line.denied)]


def presence_markdown(lines: Sequence[PresenceLine]) -> str:
    """The lines as a table for people; nothing where there are none."""
    if not lines:
        return ""
    text = [
        "## Is it there? The object score\n",
        f"| {' | '.join(PRESENCE_COLUMNS)} |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    text += [f"| {' | '.join(map(cell, presence_cells(line)))} |" for line in lines]
    text.append(
        "\nA picture counts as one slice. Each slice counts the same, whoever's it is, so there is no interval.\n"
    )
    return "\n".join(text)


def _line(dataset: str, wanted: str, found: Sequence[Presence]) -> PresenceLine:
    present = [one.object_logit for one in found if one.present]
    absent = [one.object_logit for one in found if not one.present]
    believed = float(np.mean([logit >= 0 for logit in present])) if present else math.nan
    denied = float(np.mean([logit < 0 for logit in absent])) if absent else math.nan
    return PresenceLine(dataset, wanted, len(present), len(absent), auroc(present, absent), believed, denied)


def _share(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f}"
