"""Numbers with their uncertainty. The reasons are in docs/concepts/evaluation.md.

One estimator everywhere: the mean over seeds, over slices within an object where slices are scored, over objects
within a case, over cases within a subject, then over subjects; over several datasets, the mean of the datasets' means.
Subjects are what is resampled.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, median
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, UInt16
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from palpate.errors import DatasetError, SettingError
from palpate.evaluation.table import MEASURES, Row, object_name
from palpate.metrics.leak import TINY_SHARE, must_be_redone

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 9_999
FEW_SUBJECTS: Final = 8
SIZE_LIMITS: Final = (TINY_SHARE, 0.02, 0.10)
SIZES = ("tiny", "small", "medium", "large")
CLICK_PROTOCOLS = ("clicks", "box+clicks")
CLICK_GOALS = (0.85, 0.90)

UNBOUNDED = ("hd95", "assd")
"""Measures that are infinite where nothing was found, or nothing was to be found: medians, never means."""
LOWER_IS_BETTER = ("hd95", "assd", "leak", "miss", "error")
DERIVED: dict[str, Callable[[Row], float]] = {
    "miss": lambda row: float(is_miss(row)),
    "error": lambda row: float(is_error(row)),
}
"""Measures that follow from a row: its share of misses, and of results that somebody would have to redo."""
SUMMARISED = ("dice", "nsd", "iou", "hd95", "assd", "leak", "miss", "error", "predicted_iou")

Values = Mapping[str, Mapping[str, float]]
"""Dataset, then subject, then the subject's value; no NaN."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; bounds are NaN where there is none (fewer than two subjects).

    `fixed` counts the datasets that have a single subject: their value is part of the estimate, but nothing is known
    of its spread, so the interval takes it as certain.
    """

    estimate: float
    low: float
    high: float
    subjects: int
    fixed: int = 0

    @property
    def is_known(self) -> bool:
        """Whether there are bounds at all."""
        return not math.isnan(self.low)

    @property
    def is_frail(self) -> bool:
        """Whether to warn: so few subjects that a bootstrap interval is too short, or datasets taken as certain."""
        return self.is_known and (self.subjects < FEW_SUBJECTS or self.fixed > 0)


NOTHING: Final = Interval(math.nan, math.nan, math.nan, 0)


class Resampler:
    """Draws of subjects, shared by all numbers with as many subjects, so that a number does not depend on its table.

    Its memory is its draws: the same generator gives the same intervals, in whatever order they are asked for.
    """

    def __init__(self, rng: np.random.Generator, resamples: int = RESAMPLES) -> None:
        self.resamples = resamples
        self._seed = int(rng.integers(2**63))
        self._drawn: dict[tuple[int, int], UInt16[np.ndarray, "subject resample"]] = {}

    def counts(self, subjects: int, stratum: int = 0) -> UInt16[np.ndarray, "subject resample"]:
        """How often each subject comes in each resample."""
        if (subjects, stratum) not in self._drawn:
            rng = np.random.default_rng((self._seed, subjects, stratum))
            drawn = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=self.resamples)
            self._drawn[subjects, stratum] = np.ascontiguousarray(drawn.T.astype(np.uint16))
        return self._drawn[subjects, stratum]

    def generator(self) -> np.random.Generator:
        """Fresh dice, the same ones at every call, for what is no resampling."""
        return np.random.default_rng((self._seed,))


def is_miss(row: Row) -> bool:
    """Whether nothing was predicted where something is."""
    return math.isnan(row.leak) and not math.isnan(row.dice)


def is_error(row: Row) -> bool:
    """Whether the result would have to be redone: see `must_be_redone`."""
    return must_be_redone(dice=row.dice, leak=row.leak)


def size_class(area: float) -> str:
    """`tiny` (tight box up to 0.5 % of the image), `small` (2 %), `medium` (10 %) or `large`; empty for NaN.

    The area is NaN for a slice without the object, where something was found.
    """
    if math.isnan(area):
        return ""
    return next((name for name, most in zip(SIZES, SIZE_LIMITS, strict=False) if area <= most), SIZES[-1])


def value_of(row: Row, measure: str) -> float:
    """A row's value of a measure, the derived ones included.

    Raises:
        SettingError: no such measure.
    """
    if measure in DERIVED:
        return DERIVED[measure](row)
    if measure not in MEASURES:
        raise SettingError(f"there is no measure {measure!r}; take {', '.join((*MEASURES, *DERIVED))}")
    return float(getattr(row, measure))


def subject_values(rows: Iterable[Row], measure: str | Callable[[Row], float]) -> dict[str, dict[str, float]]:
    """Each subject's value in each dataset; rows that are NaN are left out, and subjects that have no others.

    A mean over seeds, then slices of an object, then objects, then cases; for measures that can be infinite the median
    of all the subject's rows.
    """
    of = _reader(measure)
    level: dict[tuple[str, ...], list[float]] = {}
    unbounded = measure in UNBOUNDED
    for row in rows:
        value = of(row)
        if not math.isnan(value):
            place = (row.dataset, row.subject) if unbounded else _place(row)
            level.setdefault(place, []).append(value)
    # fmean adds exactly, so the order of the rows leaves no trace.
    middle = median if unbounded else fmean
    while level and len(next(iter(level))) > 2:
        above: dict[tuple[str, ...], list[float]] = {}
        for place, values in level.items():
            above.setdefault(place[:-1], []).append(middle(values))
        level = above
    found: dict[str, dict[str, float]] = {}
    for (dataset, subject), values in sorted(level.items()):
        found.setdefault(dataset, {})[subject] = middle(values)
    return found


def estimate(rows: Iterable[Row], measure: str | Callable[[Row], float], resampler: Resampler) -> Interval:
    """The mean over subjects (for `hd95` and `assd` the median) with its interval; over datasets, each counts once."""
    return interval(subject_values(rows, measure), resampler, by_median=measure in UNBOUNDED)


def interval(values: Values, resampler: Resampler, *, by_median: bool = False) -> Interval:
    """The mean (or median) over datasets of that over subjects, with its 95 % bootstrap interval.

    Subjects are drawn with replacement within strata; datasets that share subjects are one stratum, and a subject
    brings all its values along. Means get bias-corrected and accelerated bounds (Efron 1987; several samples as in
    Efron and Tibshirani 1993, section 15), or percentiles where these are undefined; medians get percentiles, because
    the jackknife behind the acceleration does not work for them. Resamples that leave a dataset without subjects
    are not counted.
    """
    return intervals([values], resampler, by_median=by_median)[0]


def intervals(many: Sequence[Values], resampler: Resampler, *, by_median: bool = False) -> list[Interval]:
    """`interval` for each, much faster together where they have the same subjects."""
    alike: dict[tuple[tuple[str, tuple[str, ...]], ...], list[int]] = {}
    for place, values in enumerate(many):
        shape = tuple((name, tuple(sorted(values[name]))) for name in sorted(values) if values[name])
        alike.setdefault(shape, []).append(place)
    found = [NOTHING] * len(many)
    alike.pop((), None)
    for places in alike.values():
        for start in range(0, len(places), _AT_ONCE):
            block = places[start : start + _AT_ONCE]
            results = _intervals_alike([many[place] for place in block], resampler, by_median=by_median)
            for place, result in zip(block, results, strict=True):
                found[place] = result
    return found


@dataclass(frozen=True)
class PairedDifference:
    """B minus A, subject by subject.

    - `a` and `b` are the estimates of the rows that were compared.
    - `p` is two-sided; `exact` says whether all signs were tried; `smallest_p` is the least that so few subjects allow.
    - `better`, `worse`, `equal` count subjects: how B did, whichever direction is good for this measure.
    - `rows` counts pairs of rows, `objects` the objects they are of.
    """

    difference: Interval
    a: float
    b: float
    p: float
    exact: bool
    smallest_p: float
    better: int
    worse: int
    equal: int
    rows: int
    objects: int

    @property
    def can_be_significant(self) -> bool:
        """Whether p < 0.05 is possible at all: it takes six subjects that differ."""
        return self.smallest_p < 0.05


def matched(
    rows_a: Iterable[Row], rows_b: Iterable[Row], *, common_only: bool = False
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """The rows of both runs in the same order, one to one by their keys.

    Raises:
        DatasetError: a key comes twice in one run, nothing is in both, or (without `common_only`) one run has keys
            that the other has not.
    """
    a, b = _by_key(rows_a, "first"), _by_key(rows_b, "second")
    common = sorted(a.keys() & b.keys())
    if not common:
        raise DatasetError("the runs have no row in common; compare runs over the same cases, protocols and seeds")
    if not common_only and (len(common) < len(a) or len(common) < len(b)):
        raise DatasetError(
            f"the runs did not measure the same: {len(common)} rows are in both, {len(a) - len(common)} only in the "
            f"first and {len(b) - len(common)} only in the second; run both with the same cases, protocols and seeds, "
            "or pass --common (in Python: common_only=True) to compare what is in both (scored slice by slice, a run "
            "has rows of its own where it alone found something beside the object)"
        )
    return tuple(a[key] for key in common), tuple(b[key] for key in common)


def paired(
    rows_a: Sequence[Row],
    rows_b: Sequence[Row],
    measure: str | Callable[[Row], float],
    resampler: Resampler,
) -> PairedDifference:
    """The difference of two runs over rows that match one to one, as `matched` gives them.

    Rows where either run is NaN are left out. The interval is that of `interval` over the subjects' differences. The
    test flips their signs (Fisher's randomisation test; the null: A and B are exchangeable within a subject), all
    of them up to 14 subjects and 9 999 draws beyond; for `hd95` and `assd` it flips the signs of ranks, as Wilcoxon's.
    """
    of = _reader(measure)
    both = [(a, b) for a, b in zip(rows_a, rows_b, strict=True) if not (math.isnan(of(a)) or math.isnan(of(b)))]
    a = subject_values((a for a, _ in both), measure)
    b = subject_values((b for _, b in both), measure)
    unbounded = measure in UNBOUNDED
    differences = {
        dataset: {subject: _minus(b[dataset][subject], value) for subject, value in subjects.items()}
        for dataset, subjects in a.items()
    }
    shares = _shares(differences, ranks=unbounded)
    p, exact = _sign_flip(shares, resampler)
    sign = -1 if measure in LOWER_IS_BETTER else 1
    differing = int(np.count_nonzero(shares))
    return PairedDifference(
        difference=interval(differences, resampler, by_median=unbounded),
        a=_whole(a, by_median=unbounded),
        b=_whole(b, by_median=unbounded),
        p=p,
        exact=exact,
        smallest_p=max(2.0 ** (1 - differing), 1 / (RESAMPLES + 1)) if differing else 1.0,
        better=int((sign * shares > 0).sum()),
        worse=int((sign * shares < 0).sum()),
        equal=len(shares) - differing,
        rows=len(both),
        objects=len({_place(row)[:4] for row, _ in both}),
    )


def against(rows: Iterable[Row], baseline: Iterable[Row], measure: str, resampler: Resampler) -> PairedDifference:
    """One condition of a run against another, object by object: the seeds are averaged first, as they need not match.

    Objects that only one of them has (a protocol for volumes, say) are left out, and so are slices. `hd95` and `assd`
    take the median.
    """
    here, there = _per_object(rows, measure), _per_object(baseline, measure)
    common = sorted(here.keys() & there.keys())
    return paired([there[key] for key in common], [here[key] for key in common], measure, resampler)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value, adjusted for being one of several (Holm 1979); NaN is not counted and stays.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, least = list(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p))
        adjusted[place] = least
    return adjusted


def weights(rows: Sequence[Row]) -> Float[np.ndarray, " row"]:
    """How much each row counts so that datasets, subjects, cases, objects and their slices do equally; sum 1."""
    depths = (1, 2, 3, 4, 5)
    places = [_place(row) for row in rows]
    children = {depth: Counter(place[: depth - 1] for place in {p[:depth] for p in places}) for depth in depths}
    in_slice = Counter(places)
    counted = [math.prod(children[d][place[: d - 1]] for d in depths) * in_slice[place] for place in places]
    return 1 / np.array(counted, dtype=np.float64)


@dataclass(frozen=True)
class CalibrationBin:
    """Prompts whose predicted IoU lies between `low` and `high`: what was predicted, what was real, their share."""

    low: float
    high: float
    predicted: float
    real: float
    share: float
    prompts: int


@dataclass(frozen=True)
class Calibration:
    """How far the model's own estimate can be believed.

    - `error` is the expected calibration error: the mean over bins of |predicted - real|, by their share.
    - `difference` is predicted minus real, by subject: above zero the model is too sure of itself.
    - `spearman` is the rank correlation over prompts: does a higher estimate mean a better mask?
    """

    bins: tuple[CalibrationBin, ...]
    error: float
    difference: Interval
    spearman: float
    prompts: int


def calibration(rows: Iterable[Row], resampler: Resampler, *, bins: int = 10) -> Calibration:
    """Predicted IoU against real IoU, in `bins` of equal width; estimates outside [0, 1] fall into the outer bins."""
    known = [row for row in rows if not (math.isnan(row.predicted_iou) or math.isnan(row.iou))]
    if not known:
        return Calibration((), math.nan, NOTHING, math.nan, 0)
    predicted = np.array([row.predicted_iou for row in known])
    real = np.array([row.iou for row in known])
    share = weights(known)
    place = np.clip(np.floor(predicted * bins), 0, bins - 1).astype(np.int64)
    filled = tuple(
        CalibrationBin(
            low=index / bins,
            high=(index + 1) / bins,
            predicted=float(np.average(predicted[here], weights=share[here])),
            real=float(np.average(real[here], weights=share[here])),
            share=float(share[here].sum()),
            prompts=int(here.sum()),
        )
        for index in range(bins)
        if (here := place == index).any()
    )
    varied = len(known) > 2 and np.ptp(predicted) > 0 and np.ptp(real) > 0
    return Calibration(
        filled,
        error=sum(item.share * abs(item.predicted - item.real) for item in filled),
        difference=estimate(known, lambda row: row.predicted_iou - row.iou, resampler),
        spearman=float(np.corrcoef(rankdata(predicted), rankdata(real))[0, 1]) if varied else math.nan,
        prompts=len(known),
    )


@dataclass(frozen=True)
class Kept:
    """What is left if only predictions with an estimate of at least `threshold` are kept."""

    threshold: float
    share: float
    dice: float


def risk_coverage(rows: Iterable[Row], thresholds: Sequence[float] | None = None) -> tuple[Kept, ...]:
    """The share kept and its mean Dice, for these thresholds or for every value that occurs; strictest last.

    Weighted as everywhere: datasets, subjects, cases and objects count equally. Nothing kept gives a Dice of NaN.
    """
    known = [row for row in rows if not (math.isnan(row.predicted_iou) or math.isnan(row.dice))]
    if not known:
        return ()
    predicted = np.array([row.predicted_iou for row in known])
    order = np.argsort(predicted, kind="stable")
    share = weights(known)[order]
    good = share * np.array([row.dice for row in known])[order]
    kept = np.append(np.cumsum(share[::-1])[::-1], 0)
    total = np.append(np.cumsum(good[::-1])[::-1], 0)
    asked = np.unique(predicted) if thresholds is None else np.asarray(sorted(thresholds), dtype=np.float64)
    first = np.searchsorted(predicted[order], asked, side="left")
    with np.errstate(invalid="ignore"):
        dice = np.where(first < len(known), total[first] / np.where(kept[first] > 0, kept[first], np.nan), np.nan)
    return tuple(Kept(*values) for values in zip(asked.tolist(), kept[first].tolist(), dice.tolist(), strict=True))


@dataclass(frozen=True)
class ClickCount:
    """How many clicks it takes to a Dice of `goal`.

    `clicks` is the mean number, where an object that never got there counts as `most`, the largest number tried;
    `failures` is the share of such objects. A `box+clicks` that is good enough at once takes 0.
    """

    protocol: str
    goal: float
    clicks: Interval
    failures: Interval
    most: int
    objects: int


def clicks_needed(rows: Iterable[Row], resampler: Resampler) -> tuple[ClickCount, ...]:
    """Number of clicks to Dice 0.85 and 0.90 (NoC@85, NoC@90) for each protocol of corrective clicks in these rows."""
    rows = [row for row in rows if row.protocol in CLICK_PROTOCOLS and not math.isnan(row.dice)]
    found: list[ClickCount] = []
    for protocol in CLICK_PROTOCOLS:
        series: dict[tuple[tuple[str, ...], int], list[Row]] = {}
        for row in rows:
            if row.protocol == protocol:
                series.setdefault((_place(row), row.seed), []).append(row)
        if not series:
            continue
        most = max(row.severity for clicks in series.values() for row in clicks)
        # Each series becomes one row, so that the one estimator serves here, too: its Dice is the number of clicks.
        for goal in CLICK_GOALS:
            needed = [
                replace(clicks[0], dice=min((row.severity for row in clicks if row.dice >= goal), default=math.inf))
                for clicks in series.values()
            ]
            counted = [replace(row, dice=min(row.dice, most)) for row in needed]
            found.append(
                ClickCount(
                    protocol,
                    goal,
                    clicks=estimate(counted, "dice", resampler),
                    failures=estimate(needed, _is_infinite, resampler),
                    most=int(most),
                    objects=len({place[:4] for place, _ in series}),
                )
            )
    return tuple(found)


_AT_ONCE = 64

_Table = Float[np.ndarray, "number _subject _dataset"]  # NaN where a subject is not in a dataset


def _strata(values: Values) -> list[tuple[list[str], list[str]]]:
    """Datasets that share subjects, together, each with the subjects of all of them."""
    groups: list[list[str]] = []
    for dataset in sorted(name for name, subjects in values.items() if subjects):
        shared = [group for group in groups if any(values[dataset].keys() & values[other].keys() for other in group)]
        groups = [group for group in groups if group not in shared]
        groups.append([*itertools.chain.from_iterable(shared), dataset])
    return [
        (sorted(group), sorted(set().union(*(values[dataset] for dataset in group))))
        for group in sorted(sorted(group) for group in groups)
    ]


def _tables(many: Sequence[Values]) -> list[np.ndarray]:
    """One table a stratum for numbers that have the same subjects in the same datasets."""
    return [
        np.array([[[of[d].get(subject, math.nan) for d in datasets] for subject in subjects] for of in many])
        for datasets, subjects in _strata(many[0])
    ]


def _whole(values: Values, *, by_median: bool) -> float:
    if not values:
        return math.nan
    if by_median:
        return median(median(subjects.values()) for subjects in values.values())
    return fmean(fmean(subjects.values()) for subjects in values.values())


def _intervals_alike(many: Sequence[Values], resampler: Resampler, *, by_median: bool) -> list[Interval]:
    tables = _tables(many)
    subjects = sum(table.shape[1] for table in tables)
    fixed = sum(len(of_dataset) < 2 for of_dataset in many[0].values())
    wholes = [_whole(values, by_median=by_median) for values in many]
    unknown = [Interval(whole, math.nan, math.nan, subjects, fixed) for whole in wholes]
    if all(table.shape[1] < 2 for table in tables):
        return unknown
    counts = [resampler.counts(table.shape[1], place) for place, table in enumerate(tables)]
    drawn = (_medians_of_datasets if by_median else _means_of_datasets)(tables, counts)
    drawn = np.sort(drawn[:, ~np.isnan(drawn[0])], axis=1)
    if drawn.shape[1] < resampler.resamples / 2:
        return unknown
    tails = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    found: list[Interval] = []
    for number, whole in enumerate(wholes):
        if by_median:
            places = [math.ceil(tail * drawn.shape[1]) - 1 for tail in tails]
            low, high = drawn[number, places].tolist()
        else:
            asked = _bca_tails([table[number] for table in tables], whole, drawn[number], tails)
            low, high = (_quantile(drawn[number], tail) for tail in asked)
        found.append(Interval(whole, low, high, subjects, fixed))
    return found


def _means_of_datasets(tables: Sequence[_Table], counts: Sequence[np.ndarray]) -> Float[np.ndarray, "number resample"]:
    means: list[np.ndarray] = []
    for table, drawn in zip(tables, counts, strict=True):
        for dataset in range(table.shape[2]):
            present = ~np.isnan(table[0, :, dataset])
            times = drawn[present].astype(np.float64)
            with np.errstate(invalid="ignore"):  # a dataset of which nobody was drawn
                means.append(table[:, present, dataset] @ times / times.sum(axis=0))
    return np.mean(means, axis=0)


def _medians_of_datasets(
    tables: Sequence[_Table], counts: Sequence[np.ndarray]
) -> Float[np.ndarray, "number resample"]:
    medians = [
        [_weighted_median(column[~np.isnan(column)], drawn[~np.isnan(column)]) for column in table[:, :, dataset]]
        for table, drawn in zip(tables, counts, strict=True)
        for dataset in range(table.shape[2])
    ]
    ordered = np.sort(np.array(medians), axis=0)  # NaN, a dataset of which nobody was drawn, comes last
    middle = _halfway(ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2])
    return np.where(np.isnan(ordered[-1]), np.nan, middle)


def _weighted_median(
    values: Float[np.ndarray, " n"], counts: UInt16[np.ndarray, "n resample"]
) -> Float[np.ndarray, " resample"]:
    order = np.argsort(values)
    total = counts.sum(axis=0, dtype=np.int32)
    reached, lower, upper = np.zeros_like(total), np.zeros_like(total), np.zeros_like(total)
    # The number of values passed before the middle one (of an even number: the two middle ones) is its place.
    for subject in order[:-1]:
        reached += counts[subject]
        lower += reached <= (total - 1) // 2
        upper += reached <= total // 2
    return np.where(total > 0, _halfway(values[order][lower], values[order][upper]), np.nan)


def _halfway(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(low == high, low, low / 2 + high / 2)


def _quantile(ordered: Float[np.ndarray, " resample"], tail: float) -> float:
    place = tail * (len(ordered) - 1)
    below = math.floor(place)
    low, high = ordered[below : below + 2].tolist() if below < len(ordered) - 1 else ordered[[-1, -1]].tolist()
    return low + (place - below) * (high - low)


def _bca_tails(
    strata: Sequence[Float[np.ndarray, "_subject _dataset"]],
    whole: float,
    drawn: Float[np.ndarray, " resample"],
    tails: tuple[float, float],
) -> tuple[float, float]:
    """At which quantiles of the bootstrap distribution the bounds lie; the plain `tails` where BCa is undefined."""
    # Half of the resamples that equal the estimate count as below it. Rounding must not decide which do: errors, misses
    # and clicks are whole numbers, so that many do, and a third of them cannot be written down exactly.
    scale = max(abs(whole), float(np.abs(drawn[[0, -1]]).max()))
    below, up_to = np.searchsorted(drawn, whole - 1e-9 * scale), np.searchsorted(drawn, whole + 1e-9 * scale, "right")
    bias = float(ndtri((below + up_to) / 2 / len(drawn)))
    datasets = sum(table.shape[1] for table in strata)
    skew, spread = 0.0, 0.0
    for table in strata:
        count, present = len(table), ~np.isnan(table)
        if count < 2:
            continue
        # Leaving one subject out changes the mean of each of its datasets by (mean - value) / (n - 1).
        others = present.sum(axis=0) - 1.0
        with np.errstate(invalid="ignore", divide="ignore"):
            change = np.where(present, (np.nanmean(table, axis=0) - table) / others, 0).sum(axis=1) / datasets
        change = change[np.isfinite(change)]  # without the only subject of a dataset, there is no estimate
        if not len(change):
            continue
        influence = (count - 1) * (change.mean() - change)
        skew += float((influence**3).sum()) / count**3
        spread += float((influence**2).sum()) / count**2
    # Rounding leaves some 1e-16 of the scale where all subjects are the same.
    if not math.isfinite(bias) or spread <= (1e-12 * scale) ** 2:
        return tails
    acceleration = skew / (6 * spread**1.5)
    shifted = [bias + float(ndtri(tail)) for tail in tails]
    if any(acceleration * z >= 1 for z in shifted):
        return tails
    low, high = (float(ndtr(bias + z / (1 - acceleration * z))) for z in shifted)
    return low, high


def _place(row: Row) -> tuple[str, str, str, str, str]:
    """Dataset, subject, case, object, and the slice of it (or once more the object)."""
    return row.dataset, row.subject, row.case, object_name(row), row.object


def _reader(measure: str | Callable[[Row], float]) -> Callable[[Row], float]:
    return partial(value_of, measure=measure) if isinstance(measure, str) else measure


def _is_infinite(row: Row) -> float:
    return float(math.isinf(row.dice))


def _by_key(rows: Iterable[Row], which: str) -> dict[tuple[str, str, str, str, str, float, int], Row]:
    found: dict[tuple[str, str, str, str, str, float, int], Row] = {}
    for row in rows:
        key = (*row.key[:5], round(row.severity, 6), row.seed)
        if key in found:
            raise DatasetError(
                f"the {which} run has two rows for {key}; a run has one row a case, object, protocol, severity and "
                "seed, so this table was put together from several: compare them one by one"
            )
        found[key] = row
    return found


def _per_object(rows: Iterable[Row], measure: str) -> dict[tuple[str, str, str, str], Row]:
    if measure in DERIVED:
        raise SettingError(f"{measure!r} is derived row by row; conditions are compared by {', '.join(MEASURES)}")
    values: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if not math.isnan(value_of(row, measure)):
            values.setdefault((row.dataset, row.subject, row.case, row.object), []).append(row)
    middle = median if measure in UNBOUNDED else fmean
    return {
        key: replace(found[0], **{measure: middle([value_of(row, measure) for row in found])})
        for key, found in values.items()
    }


def _minus(b: float, a: float) -> float:
    return 0.0 if a == b else b - a  # two misses are no difference


def _shares(differences: Values, *, ranks: bool) -> Float[np.ndarray, " subject"]:
    """What each subject adds to the estimate: their sum is the mean over datasets of the mean difference.

    With `ranks`, the signed rank of the subject's (median) difference instead, which may be infinite.
    """
    shares: dict[str, list[float]] = {}
    for subjects in differences.values():
        for subject, value in subjects.items():
            # Below what the table stores, there is no difference.
            value = 0.0 if abs(value) < 1e-9 else value
            shares.setdefault(subject, []).append(value if ranks else value / len(subjects) / len(differences))
    if not ranks:
        return np.array([math.fsum(shares[subject]) for subject in sorted(shares)])
    middle = np.array([median(shares[subject]) for subject in sorted(shares)])
    middle = np.nan_to_num(middle, nan=0.0, posinf=np.inf, neginf=-np.inf)  # found in one dataset, lost in another
    signed = np.zeros(len(middle))
    differing = middle != 0
    signed[differing] = np.sign(middle[differing]) * rankdata(np.abs(middle[differing]))
    return signed


def _sign_flip(shares: Float[np.ndarray, " subject"], resampler: Resampler) -> tuple[float, bool]:
    """The two-sided p-value of a sum under random signs, and whether every combination of signs was tried."""
    if not len(shares):
        return math.nan, True
    differing = shares[shares != 0]
    count = len(differing)
    # Sums that are equal on paper may differ in their last bit; they are ties, and count.
    seen = abs(float(differing.sum())) - 1e-9 * float(np.abs(differing).sum())
    if count <= 14:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ differing) >= seen).mean()), True
    flips: Bool[np.ndarray, "draw subject"] = resampler.generator().random((RESAMPLES, count)) < 0.5
    extreme = int((np.abs(np.where(flips, -differing, differing).sum(axis=1)) >= seen).sum())
    return (1 + extreme) / (1 + RESAMPLES), False
