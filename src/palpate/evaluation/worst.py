"""The cases that went worst, made again to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image as Picture

from palpate.datasets.case import Case
from palpate.evaluation.measure import Plan, Shown, replay
from palpate.evaluation.overlays import draw_overlay
from palpate.evaluation.report import WorstCase
from palpate.evaluation.table import Row, Run
from palpate.inference.session import Session


def worst_rows(run: Run, *, count: int = 10) -> list[Row]:
    """The rows with the lowest Dice under the run's first protocol at its mildest, one a case, worst first.

    Under the hardest prompt everything is bad; what fails under the kindest says more about the model.
    """
    asked = [one["name"] for one in run.record["protocols"]]
    first = min((row.protocol for row in run.rows), key=asked.index, default="")
    ours = [row for row in run.rows if row.protocol == first]
    mildest = min((row.severity for row in ours), key=abs, default=0.0)
    ranked = sorted(
        (row for row in ours if row.severity == mildest and not np.isnan(row.dice)),
        key=lambda row: (row.dice, row.key),
    )
    chosen: dict[tuple[str, str], Row] = {}
    for row in ranked:
        chosen.setdefault((row.dataset, row.case), row)
    return list(chosen.values())[:count]


def worst_cases(
    run: Run, cases: Sequence[Case], plan: Plan, load: Callable[[], Session], *, count: int = 10
) -> list[WorstCase]:
    """Those rows as overlays, made again from the same dice.

    Raises:
        PalpateError: the model or a case cannot be loaded any more.
    """
    rows = worst_rows(run, count=count)
    if not rows:
        return []
    session = load()
    known = {(case.dataset, case.name): case for case in cases}
    found: list[WorstCase] = []
    for row in rows:
        shown = replay(session, known[row.dataset, row.case], plan, row)
        found.append(WorstCase(row, _side_by_side([_drawn(item) for item in shown]), _note(shown)))
    return found


def _drawn(item: Shown) -> Picture.Image:
    return draw_overlay(
        item.pixels,
        item.reference,
        item.prediction,
        item.prompts,
        title=item.title,
        pixel_size=item.pixel_size,
    )


def _side_by_side(pictures: Sequence[Picture.Image]) -> Picture.Image:
    width = sum(picture.width for picture in pictures) + 8 * (len(pictures) - 1)
    sheet = Picture.new("RGB", (width, max(picture.height for picture in pictures)), (17, 19, 22))
    x = 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width + 8
    return sheet


def _note(shown: Sequence[Shown]) -> str:
    if len(shown) < 2:
        return ""
    first = "the prompted slice" if shown[0].prompts else "the object's middle slice, with nothing drawn"
    return f"{first}, and the slice with most mistakes"
