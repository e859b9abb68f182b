"""Runs that nobody measured, for the tests of what is made of runs."""

import math
from pathlib import Path

import numpy as np

from palpate.evaluation.table import Row, Run

CONDITIONS = (
    ("standard", 0.0),
    *(("expansion", severity) for severity in (0.05, 0.1, 0.2)),
    *(("shrink", severity) for severity in (0.05, 0.1, 0.2)),
    *(("shift", severity) for severity in (0.05, 0.1, 0.2)),
    ("points-3", 0.0),
    *(("clicks", float(count)) for count in range(1, 6)),
    ("scribble-human", 0.0),
)
RANDOM = ("shift", "points-3")


def row(**known: object) -> Row:
    """A row of which only the interesting columns are said."""
    usual: dict[str, object] = {
        **{"dataset": "liver", "subject": "s1", "case": "c1", "object": "1", "protocol": "standard"},
        **{"severity": 0.0, "seed": 0, "dice": 0.9, "iou": 0.82, "nsd": 0.9, "hd95": 2.0, "assd": 0.5, "leak": 0.0},
        **{"area": 0.05, "predicted_iou": 0.8, "milliseconds": 12.0},
    }
    return Row(**{**usual, **known})  # pyright: ignore


def rows_of(
    rng: np.random.Generator,
    *,
    datasets: dict[str, int] | None = None,
    conditions: tuple[tuple[str, float], ...] = CONDITIONS,
    seeds: int = 2,
    bonus: float = 0.0,
) -> tuple[Row, ...]:
    """Subjects differ, tight boxes hurt more than loose ones, small objects suffer, and some are not found at all."""
    made: list[Row] = []
    for dataset, subjects in (datasets or {"liver CT": 12, "polyps": 9, "vertebrae MR": 5}).items():
        level = rng.normal(1.4, 0.3)
        for subject in range(subjects):
            own = level + rng.normal(0, 0.4)
            for number in range(int(rng.integers(1, 3))):
                area = float(10 ** rng.uniform(-3.3, -0.4))
                for protocol, severity in conditions:
                    cost = {"shrink": 7.0, "expansion": 3.0, "shift": 5.0}.get(protocol, 0.0) * severity
                    cost += {"points-3": 1.2, "scribble-human": 0.4}.get(protocol, 0.0)
                    cost += 1.2 / severity if protocol == "clicks" else 0.0
                    for seed in range(seeds if protocol in RANDOM else 1):
                        logit = own + bonus - cost + 0.5 * math.log10(area / 0.05) + rng.normal(0, 0.35)
                        dice = 1 / (1 + math.exp(-1.3 * logit))
                        lost = dice < 0.2
                        dice = 0.0 if lost else round(dice, 6)
                        iou = dice / (2 - dice)
                        made.append(
                            row(
                                **{"dataset": dataset, "subject": f"s{subject}", "case": f"c{subject}"},
                                **{"object": str(number + 1), "protocol": protocol, "severity": severity},
                                **{"seed": seed, "dice": dice, "iou": iou, "nsd": min(1.0, dice * 1.05)},
                                hd95=math.inf if lost else 40 * (1 - dice),
                                assd=math.inf if lost else 10 * (1 - dice),
                                leak=math.nan if lost else 0.3 * (1 - dice),
                                area=area,
                                predicted_iou=float(np.clip(0.5 * iou + 0.45 + rng.normal(0, 0.05), 0, 1)),
                                milliseconds=float(rng.gamma(20, 2)),
                            )
                        )
    return tuple(made)


def run_of(rows: tuple[Row, ...], **record: object) -> Run:
    return Run(rows, dict(record), Path("run"))
