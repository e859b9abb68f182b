"""The report's charts as SVG text: no colour alone carries a meaning, and the page's own colours are used for ink."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from palpate.evaluation.statistics import Calibration, Interval, Kept

# Okabe and Ito's palette, dark ones first: the page may be white.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P")
# Stand-ins that become the page's colours, so that the charts follow light and dark; BLUE becomes its mark.
_INK, _FAINT = "#010203", "#040506"
_WIDTH = 9.4

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "text.parse_math": False,  # a dataset may be called "$x$"
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Series:
    """One line: where on the x axis, and what was found there."""

    name: str
    points: tuple[tuple[float, Interval], ...]


@dataclass(frozen=True)
class Panel:
    """One small chart; `level` is drawn across it, dotted, for comparison."""

    title: str
    series: tuple[Series, ...]
    level: float = math.nan
    x_label: str = ""


def curves(panels: Sequence[Panel], *, name: str, y_label: str, zero: bool = False) -> str:
    """Lines with 95 % bands, a panel each, all with the same y axis; `zero` marks x = 0 and shares the x axis, too.

    Bounds that do not exist leave the line without its band.
    """
    per_row = min(3, len(panels))
    rows = -(-len(panels) // per_row)
    width = _WIDTH if per_row > 1 else 0.62 * _WIDTH
    with _style(name):
        figure = Figure(figsize=(width, 2.55 * rows + 0.35), layout="constrained")
        axes = figure.subplots(rows, per_row, squeeze=False, sharex=zero, sharey=True)
        for place, axis in enumerate(axes.flat):
            if place >= len(panels):
                axis.set_visible(False)
                continue
            panel = panels[place]
            axis.set_title(_short(panel.title))
            if zero:
                axis.axvline(0, color=_INK, linewidth=0.6)
            if not math.isnan(panel.level):
                axis.axhline(panel.level, color=_INK, linewidth=1, linestyle=":")
            for index, series in enumerate(panel.series):
                _line(axis, series, PALETTE[index % len(PALETTE)], _MARKERS[index % len(_MARKERS)])
            axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
            if place + per_row >= len(panels) or not zero:
                axis.tick_params(labelbottom=True)
                axis.set_xlabel(panel.x_label)
            if place % per_row == 0:
                axis.set_ylabel(y_label)
        low, high = _limits([bound for panel in panels for series in panel.series for bound in _bounds(panel, series)])
        axes[0][0].set_ylim(low, high)
        # A panel may lack a line that another has: the legend names what is drawn in one that has them all.
        drawn = [[series for series in panel.series if _known_points(series)] for panel in panels]
        fullest = max(range(len(panels)), key=lambda place: (len(drawn[place]), -place))
        if len(drawn[fullest]) > 1:
            axes.flat[fullest].legend(loc="lower center" if zero else "best")
        return _svg(figure)


def dots(rows: Sequence[tuple[str, Interval, Sequence[float]]], *, name: str, x_label: str) -> str:
    """A line an entry: its estimate with the interval, and a faint dot for each dataset."""
    with _style(name):
        figure = Figure(figsize=(0.75 * _WIDTH, 0.34 * len(rows) + 0.75), layout="constrained")
        axis = figure.subplots()
        for place, (_, interval, each) in enumerate(rows):
            axis.plot(each, [place] * len(each), "|", color=_INK, alpha=0.45, markersize=8)
            if interval.is_known:
                axis.plot([interval.low, interval.high], [place, place], color=BLUE, linewidth=2.2, alpha=0.7)
            axis.plot(interval.estimate, place, "o", color=BLUE, markersize=6)
        axis.set_yticks(range(len(rows)), [_short(label, 40) for label, _, _ in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel(x_label)
        axis.grid(visible=False, axis="y")
        return _svg(figure)


def boxes(groups: Sequence[tuple[str, Sequence[float]]], *, name: str, x_label: str, least: int = 0) -> str:
    """Lying box plots: the box is the middle half, the line the median, whiskers reach 1.5 boxes, dots are beyond.

    Groups of fewer than `least` values are drawn as a point a value, with the line at their median.
    """
    with _style(name):
        figure = Figure(figsize=(0.85 * _WIDTH, 0.27 * len(groups) + 0.75), layout="constrained")
        axis = figure.subplots()
        few = [place for place, (_, values) in enumerate(groups, start=1) if len(values) < least]
        many = [place for place in range(1, len(groups) + 1) if place not in few]
        for place in few:
            values = groups[place - 1][1]
            axis.plot(values, [place] * len(values), "o", color=BLUE, markerfacecolor="none", markersize=4)
            if len(values) > 1:
                middle = float(np.median(values))
                axis.plot([middle, middle], [place - 0.3, place + 0.3], color=RED, linewidth=1.8)
        if many:
            axis.boxplot(
                [list(groups[place - 1][1]) for place in many],
                positions=many,
                orientation="horizontal",
                widths=0.6,
                patch_artist=True,
                boxprops={"facecolor": SKY + "66", "edgecolor": BLUE, "linewidth": 0.9},
                medianprops={"color": RED, "linewidth": 1.8},
                whiskerprops={"color": BLUE, "linewidth": 0.9},
                capprops={"color": BLUE, "linewidth": 0.9},
                flierprops={"marker": "o", "markersize": 2.5, "markeredgecolor": BLUE, "markerfacecolor": "none"},
            )
        axis.set_yticks(range(1, len(groups) + 1), [_short(label, 40) for label, _ in groups])
        axis.set_ylim(len(groups) + 0.5, 0.5)
        axis.set_xlabel(x_label)
        axis.grid(visible=False, axis="y")
        return _svg(figure)


def reliability(found: Sequence[tuple[str, Calibration]], *, name: str) -> str:
    """Predicted against real IoU, a point a bin; its area is the share of prompts. The diagonal would be honest."""
    with _style(name):
        figure = Figure(figsize=(4.6, 4.1), layout="constrained")
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle=":")
        for index, (label, calibration) in enumerate(found):
            x = [item.predicted for item in calibration.bins]
            y = [item.real for item in calibration.bins]
            if not x:
                continue
            colour = PALETTE[index % len(PALETTE)]
            axis.plot(x, y, color=colour, marker=_MARKERS[index % len(_MARKERS)], markersize=3, label=_short(label))
            axis.scatter(x, y, s=[600 * item.share for item in calibration.bins], color=colour, alpha=0.3, linewidths=0)
        axis.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="predicted IoU (mean of the bin)", ylabel="real IoU")
        axis.set_aspect("equal")
        _legend(axis, "upper left")
        return _svg(figure)


def kept(found: Sequence[tuple[str, Sequence[Kept]]], *, name: str) -> str:
    """The mean Dice of what is kept, against the share kept, when the least certain predictions go first."""
    with _style(name):
        figure = Figure(figsize=(4.6, 4.1), layout="constrained")
        axis = figure.subplots()
        for index, (label, curve) in enumerate(found):
            shown = _thinned([(100 * item.share, 100 * item.dice) for item in curve if not math.isnan(item.dice)])
            if not shown:
                continue
            x, y = zip(*shown, strict=True)
            # One point makes no line, so it gets a marker.
            marker = _MARKERS[index % len(_MARKERS)] if len(shown) == 1 else ""
            style, colour = ("-", "--", "-.")[index % 3], PALETTE[index % len(PALETTE)]
            axis.plot(x, y, color=colour, linestyle=style, marker=marker, label=_short(label))
        axis.set(xlim=(102, 0), xlabel="kept, % (least certain left out first)", ylabel="mean Dice of what is kept, %")
        _legend(axis, "best")
        return _svg(figure)


def _style(name: str) -> AbstractContextManager[None]:
    # Each chart's ids are salted with its name: several live in one page.
    settings: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name}
    return mpl.rc_context(settings)


def _legend(axis: Any, place: str) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc=place)


def _known_points(series: Series) -> list[tuple[float, Interval]]:
    return [(x, interval) for x, interval in series.points if not math.isnan(interval.estimate)]


def _line(axis: Any, series: Series, colour: str, marker: str) -> None:
    points = sorted(_known_points(series), key=lambda point: point[0])
    if not points:
        return
    x = np.array([place for place, _ in points])
    known = [(place, i.low, i.high) for place, i in points if i.is_known]
    axis.plot(x, [interval.estimate for _, interval in points], color=colour, marker=marker, label=_short(series.name))
    if len(known) == 1:
        place, low, high = known[0]
        axis.plot([place, place], [low, high], color=colour, alpha=0.5, linewidth=3)
    elif known:
        places, low, high = zip(*known, strict=True)
        axis.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)


def _bounds(panel: Panel, series: Series) -> list[float]:
    found = [panel.level, *(bound for _, i in series.points for bound in (i.estimate, i.low, i.high))]
    return [bound for bound in found if math.isfinite(bound)]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """A little air; the axis need not begin at zero for lines, but a narrow range must not look like a cliff."""
    if not values:
        return 0.0, 100.0
    low, high = min(values), max(values)
    air = max(0.06 * (high - low), (20 - (high - low)) / 2 if high - low < 20 else 0)
    return max(0.0, low - air), min(101.5, high + air)


def _thinned(points: list[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    return points if len(points) <= most else [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _short(text: str, most: int = 32) -> str:
    text = " ".join(text.split())
    # matplotlib leaves entries that begin with an underscore out of legends.
    text = f" {text}" if text.startswith("_") else text
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(figure: Figure) -> str:
    """The picture as text to put into a page: no date, no ids that could meet those of another chart."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r'^<svg [^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', _opening, text)
    return text.replace(_INK, "currentColor").replace(_FAINT, "var(--rule)").replace(BLUE, "var(--mark)").strip()


def _opening(found: re.Match[str]) -> str:
    width, height = found.groups()
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width: {float(width) * 1.25:.0f}px" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true">'
    )
