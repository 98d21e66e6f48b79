"""The report's pictures, as SVG: gains by the size of the region, whether to crop."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from reporting.gains import Pair
from reporting.need import NeedCurve


def draw_gains_by_size(pairs: Sequence[Pair]) -> str:
    """Return each pair's mean gain in fifths of its questions by the size of their region."""
    figure = new_figure(8, 3.2 + 0.1 * len(pairs))
    axes = figure.subplots()
    for pair in pairs:
        areas = np.maximum(pair.region_areas, 0.01)  # of a point the logarithm would be infinite
        fifths = [part for part in np.array_split(np.argsort(pair.region_areas, kind="stable"), 5) if len(part)]
        medians, means = [np.median(areas[part]) for part in fifths], [pair.gains[part].mean() for part in fifths]
        axes.plot(medians, means, marker="o", label=pair.name)
    axes.axhline(0, color="#222", linewidth=0.8)
    axes.set(xscale="log", xlabel="area of the region (true if known, else chosen), % of the image")
    axes.set_ylabel("gain, points")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # they may span less than a decade
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    return _finish(figure)


def draw_need(curve: NeedCurve) -> str:
    """Return the score against the cost of a question, from no crop to all."""
    figure = new_figure(8, 3.6)
    axes = figure.subplots()
    span, cropper = (curve.cost["never"], curve.cost["always"]), curve.cost["cropper"]
    for name, scores in curve.scores.items():
        axes.plot(np.linspace(*span, len(scores)), scores, label=name, linestyle="-" if name == "decide" else "--")
    axes.plot(span, scores[[0, -1]], color="#9aa3ad", label="random")
    axes.plot(curve.own_cost, curve.summary["decides_itself"], "o", color="#222", label="threshold 0")
    own = "" if cropper is None else f"; the cropper sees {cropper:g} more, but for none at all"
    axes.set(xlabel=f"{curve.cost['unit']} a question, the answerer's{own}", ylabel="score")
    return _finish(figure)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty plot, its size in inches, that shows `$` in a name as a dollar."""
    rcParams["text.parse_math"] = False
    return Figure((width, height), dpi=100, layout="constrained")


def _finish(figure: Figure) -> str:
    """Return the SVG of a figure whose lines are named below the axes, where names hide nothing."""
    (axes,) = figure.axes
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    # By hand: matplotlib would pass over a name with an underscore.
    lines = [line for line in axes.lines if not line.get_label().startswith("_child")]
    names = [line.get_label() for line in lines]
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    text = io.StringIO()
    # Text as paths: the same picture everywhere. A fixed salt: the same bytes for the same figures.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "cropvlm"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
