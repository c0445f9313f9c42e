"""Certified against attacked, over eps and over sparsity: the picture of what pruning buys."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sb3_prune_robust.evaluation.figure import CLEAN, COLOURS, MARKERS, WORST
from sb3_prune_robust.evaluation.tables import percent

_LARGEST_CURVES = 4  # more sparsities than this cannot be told apart in one panel

Point = Mapping[str, Any]


def certified_points(record: Mapping[str, Any]) -> list[Point]:
    """The points of a record whose return is certified; empty if none is."""
    points = [point for mode in record["modes"].values() for point in mode["points"] if point["certificate"] is not None]
    return [point for point in points if "curve" in point["certificate"].get("certified_return", {})]


def draw_certified(record: Mapping[str, Any]) -> bytes | None:
    """
    Certified and attacked return over eps, the largest eps at which half is certified over sparsity, and certified against
    attacked total variation over eps.

    :param record: a report's record, as in ``docs/report_schema.md``
    :return: a PNG image; ``None`` if no return is certified
    """
    points = certified_points(record)
    if not points or not points[0]["certificate"]["certified_return"]["curve"]:
        return None
    figure = Figure(figsize=(16.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _draw_returns(left, _some(points))
    _draw_half(middle, points)
    _draw_tightness(right, _some(points))
    settings, certified = record["settings"], points[0]["certificate"]["certified_return"]
    figure.suptitle(
        f"{settings['env']}, {settings['norm']}, sampled actions: certified against every adversary, and attacked\n"
        f"certified at {certified['confidence']:.4g}: {certified['quantity']}",
        fontsize=11,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _some(points: Sequence[Point]) -> list[Point]:
    """The dense agent, the sparsest one and some between."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(_LARGEST_CURVES, len(points))).round().astype(int))
    return [points[i] for i in chosen]


def _label(point: Point) -> str:
    return "dense" if point["sparsity"] == 0 else f"{percent(point['sparsity'])} pruned"


def _draw_returns(axis: Axes, points: Sequence[Point]) -> None:
    for i, point in enumerate(points):
        curve = point["certificate"]["certified_return"]["curve"]
        style: dict[str, Any] = dict(color=COLOURS[i], marker=MARKERS[i], markersize=5)
        axis.plot([at["eps"] for at in curve], [at["lower"] for at in curve], label=_label(point), **style)
        attacked = [(at["eps"], at["attacked"]) for at in curve if at["attacked"] is not None]
        if attacked:
            radii, returns = zip(*attacked, strict=True)
            axis.plot(radii, returns, linestyle="--", **style)
    axis.set(xscale="log", xlabel="eps (units of what the network receives)", ylabel="return of an episode")
    axis.set_title("return\nsolid: no adversary gets below; dashed: an attack gets there", fontsize=10)
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    _finish(axis)


def _draw_half(axis: Axes, points: Sequence[Point]) -> None:
    levels = [point["sparsity"] for point in points]
    certified = [point["certificate"]["certified_return"] for point in points]
    axis.set(xlabel="sparsity of the pruned layers", ylabel="eps (units of what the network receives)")
    axis.set_title("what pruning buys:\nthe eps up to which half of the clean return is certified", fontsize=10)
    axis.grid(alpha=0.3)
    if any(one["half"]["eps"] is None for one in certified):
        axis.text(0.5, 0.5, "not defined: the return is not positive", ha="center", transform=axis.transAxes)
        return
    radii, clean = [one["half"]["eps"] for one in certified], np.array([one["clean"] for one in certified])
    axis.plot(levels, radii, color=WORST, marker="o", label="largest eps (left axis)")
    axis.set_ylim(0, 1.15 * max(radii) or 1.0)
    twin = axis.twinx()
    share = clean / clean[0]
    twin.plot(levels, share, color=CLEAN, linestyle=":", marker=".", label="clean return (right axis)")
    twin.set(ylabel="clean return / that of the dense agent", ylim=(0, max(1.15, 1.05 * share.max())))
    handles = [*axis.get_legend_handles_labels()[0], *twin.get_legend_handles_labels()[0]]
    axis.legend(handles, [str(handle.get_label()) for handle in handles], fontsize=8, loc="lower left")


def _draw_tightness(axis: Axes, points: Sequence[Point]) -> None:
    for i, point in enumerate(points):
        pairs = point["certificate"]["tightness"]
        radii = [pair["eps"] for pair in pairs]
        style: dict[str, Any] = dict(color=COLOURS[i], marker=MARKERS[i], markersize=5)
        axis.plot(radii, [pair["certified"] for pair in pairs], label=_label(point), **style)
        axis.plot(radii, [pair["attacked"] for pair in pairs], linestyle="--", **style)
    axis.set(xscale="log", yscale="log", xlabel="eps (units of what the network receives)")
    axis.set_ylabel("total variation, mean over states")
    axis.set_title("change of the action distribution\nsolid: at most (CROWN); dashed: reached by PGD", fontsize=10)
    _finish(axis)


def _finish(axis: Axes) -> None:
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
