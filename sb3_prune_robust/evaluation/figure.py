"""The frontier as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart by colour-blind readers; markers differ as well, for those who print in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#999999")
MARKERS = ("s", "^", "D", "v", "P", "X", "*")
CLEAN, WORST = "#000000", "#D55E00"


def draw_frontier(record: Mapping[str, Any]) -> bytes:
    """
    Returns against sparsity, one panel for each mode of play, and the certified total variation in a last panel.

    :param record: a report's record, as in ``docs/report_schema.md``
    :return: a PNG image
    """
    modes = list(record["modes"])
    certified = _certified_mode(record)
    n_panels = len(modes) + (certified is not None)
    figure = Figure(figsize=(5.2 * n_panels, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, n_panels))
    for axis, mode in zip(axes, modes, strict=False):
        _draw_returns(axis, record["modes"][mode]["points"], record, mode)
    if certified is not None:
        _draw_certificates(axes[-1], record["modes"][certified]["points"], record)
    settings = record["settings"]
    figure.suptitle(f"{settings['env']}: {settings['norm']} attacks on observations, eps = {settings['eps']:g}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _certified_mode(record: Mapping[str, Any]) -> str | None:
    for mode, result in record["modes"].items():
        if any(_tv(point) is not None for point in result["points"]):
            return str(mode)
    return None


def _tv(point: Mapping[str, Any]) -> Mapping[str, Any] | None:
    certificate = point["certificate"]
    return None if certificate is None else certificate.get("tv")


def _draw_returns(axis: Axes, points: Sequence[Mapping[str, Any]], record: Mapping[str, Any], mode: str) -> None:
    levels = np.array([point["sparsity"] for point in points])
    confidence = record["settings"]["confidence"]
    _line(axis, levels, [point["clean"] for point in points], "clean", CLEAN, "o", width=2.2)
    for i, name in enumerate(record["settings"]["attacks"]):
        played = [(level, p["attacks"][name]) for level, p in zip(levels, points, strict=True) if "mean" in p["attacks"][name]]
        if played:
            where, cells = zip(*played, strict=True)
            aside = np.array(where) + 0.006 * (i + 1)  # so that the intervals do not cover each other
            _line(axis, aside, cells, name, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
    worst = [point["worst"]["mean"] for point in points]
    axis.plot(levels, worst, color=WORST, linewidth=6, alpha=0.3, label="worst of the attacks", zorder=1)
    axis.set(xlabel="sparsity of the pruned layers", ylabel="return of an episode (raw reward)")
    axis.set_title(f"{mode} actions (bars: {confidence:.0%} intervals)", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _line(
    axis: Axes, levels: Any, cells: Sequence[Mapping[str, Any]], label: str, colour: str, marker: str, width: float = 1.3
) -> None:
    means = np.array([cell["mean"] for cell in cells])
    lows = np.array([cell["mean"] if cell["low"] is None else cell["low"] for cell in cells])
    highs = np.array([cell["mean"] if cell["high"] is None else cell["high"] for cell in cells])
    bars = np.maximum([means - lows, highs - means], 0.0)
    style: dict[str, Any] = dict(color=colour, marker=marker, linewidth=width, markersize=5, capsize=2, elinewidth=0.9)
    _, caps, lines = axis.errorbar(levels, means, yerr=bars, label=label, **style)
    for part in (*caps, *lines):
        part.set_alpha(0.5)


def _draw_certificates(axis: Axes, points: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
    certified = [(point["sparsity"], tv) for point in points if (tv := _tv(point)) is not None]
    levels = [level for level, _ in certified]
    for i, method in enumerate(certified[0][1]["by_method"]):
        values = [tv["by_method"][method] for _, tv in certified]
        axis.plot(levels, values, color=COLOURS[i], marker=MARKERS[i], linewidth=1.3, markersize=5, label=f"bound: {method}")
    best = [tv["mean"] for _, tv in certified]
    axis.plot(levels, best, color=CLEAN, linewidth=6, alpha=0.25, label="best of the bounds", zorder=1)
    axis.set(xlabel="sparsity of the pruned layers", ylabel="total variation of the action distribution, at most")
    axis.set_title("certified change of the policy (mean over visited states)", fontsize=10)
    axis.set_ylim(0, 1.05 * max(max(tv["by_method"].values()) for _, tv in certified) + 1e-3)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
