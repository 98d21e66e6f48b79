"""The report's pictures, as SVG: scores, gains by the size of the region, whether to crop."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from cropvlm.runs.drawing import new_figure
from cropvlm.runs.scoring import standard_error
from reporting.gains import Pair
from reporting.need import NeedCurve
from reporting.results import Result

BLUE, GREY = "#2f6db5", "#9aa3ad"
BINS = 5


def draw_scores(names: Mapping[Result, str]) -> str:
    """Return bars of the scores of named results with their 95% intervals."""
    figure, axes = _figure(0.38 * len(names) + 1)
    scored = [result.scored for result in names]
    errors = [1.96 * (standard_error(s.scores, s.weights, s.questions) or 0.0) for s in scored]
    colors = [BLUE if result.with_crop else GREY for result in names]
    places = np.arange(len(names))[::-1]
    axes.barh(places, [s.mean for s in scored], xerr=errors, color=colors, ecolor="#222", capsize=3)
    axes.set(yticks=places, yticklabels=names.values(), xlim=(0, 105))
    axes.set_xlabel("score (blue: with the crop), 95% interval")
    return _svg(figure)


def draw_gains_by_size(pairs: Sequence[Pair], names: Sequence[str]) -> str:
    """Return each pair's mean gain in fifths of its questions by the size of their region."""
    figure, axes = _figure(3.2, legend_of=len(pairs))
    for pair, name in zip(pairs, names, strict=True):
        points = gains_by_size(pair.region_areas, pair.gains)
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.axhline(0, color="#222", linewidth=0.8)
    axes.set(xscale="log", xlabel="area of the region (true if known, else chosen), % of the image")
    axes.set_ylabel("gain, points")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # they may span less than a decade
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    _legend(figure, axes)
    return _svg(figure)


def draw_need(curve: NeedCurve) -> str:
    """Return the score against the cost of a question, from no crop to all."""
    span, cropper = (curve.cost["never"], curve.cost["always"]), curve.cost["cropper"]
    figure, axes = _figure(3.6)
    for name, scores in curve.scores.items():
        axes.plot(np.linspace(*span, len(scores)), scores, label=name, linestyle="-" if name == "decide" else "--")
    axes.plot(span, scores[[0, -1]], color=GREY, label="random")
    axes.plot(curve.own_cost, curve.summary["decides_itself"], "o", color="#222", label="threshold 0")
    own = "" if cropper is None else f"; the cropper sees {cropper:g} more, but for none at all"
    axes.set(xlabel=f"{curve.cost['unit']} a question, the answerer's{own}", ylabel="score")
    _legend(figure, axes)
    return _svg(figure)


def gains_by_size(areas: Sequence[float], gains: np.ndarray, bins: int = BINS) -> list[tuple[float, float]]:
    """Return (median area, mean gain) of as many equal shares of the questions, smallest regions first."""
    order = np.argsort(areas, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    areas = np.maximum(np.asarray(areas, float), 0.01)
    return [(float(np.median(areas[part])), float(gains[part].mean())) for part in parts]


def _figure(height: float, legend_of: int = 0) -> tuple[Figure, Axes]:
    """Return a figure with room for the legend of so many lines."""
    figure = new_figure(8, height + 0.1 * legend_of)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """Name the lines below the axes, where they hide nothing; matplotlib would pass over a name with an underscore."""
    lines = [line for line in axes.lines if not line.get_label().startswith("_child")]
    names = [line.get_label() for line in lines]
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    # Text as paths: the same picture everywhere. A fixed salt: the same bytes for the same figures.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "cropvlm"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
