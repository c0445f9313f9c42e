"""More figures of a study: of single agents and of the terms of their loss. See ``figures``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sb3_prune_robust.evaluation.figure import CLEAN, COLOURS, MARKERS
from sb3_prune_robust.study.figures import (
    LINES_A_PANEL,
    SPARSITY,
    chunked,
    legend,
    level_colours,
    level_name,
    panels,
    png,
    title,
)
from sb3_prune_robust.study.labels import labels, of_variant, variants
from sb3_prune_robust.study.results import AXES

_X = {
    "half_eps": "certified: largest eps at which half of the\nclean return of the sampling policy is kept",
    "tv:best": "certified: total variation of the action\ndistribution, at most (mean over states)",
}
_CLEAN_ENOUGH = 0.1  # an agent this near to random actions, in units of dense PPO, has no share to keep
_TERMS = {"clean_task": "clean-task term", "pruning_loss": "pruning loss", "robustness": "robustness term"}
_POINTS = ("o", *MARKERS, "p", "h", "<", ">")
_BOUNDS = {
    "tv": "total variation of the action\ndistribution, at most",
    "radius": "change of the mean action or\nof a logit, at most",
}


def draw_certified(normal: pd.DataFrame, env: str, stage: str) -> bytes | None:
    """
    What is certified of each agent against what attacks leave it: a row of panels for each eps.

    :param normal: of :func:`~.statistics.normalised`
    :param env: id of the environment
    :param stage: ``"short"`` or ``"strong"``
    :return: a PNG image; ``None`` if nothing is certified of any agent that is better than random actions
    """
    # Agents are certified once, at the first stage.
    known = {name: normal.groupby([*AXES, "eps"])[name].transform("first") for name in _X if name in normal}
    rows = normal.assign(**known)[(normal["env"] == env) & (normal["stage"] == stage)]
    able = rows[rows["clean"] >= _CLEAN_ENOUGH]
    shown = [name for name in _X if name in able and able[name].notna().any()]
    if not shown:
        return None
    radii, named = list(rows["eps"].unique()), labels(variants(able))
    colours = level_colours(list(able["sparsity"].unique()))
    names = list(dict.fromkeys(named.values()))  # a variant and its dense agents may be called the same
    markers = {variant: _POINTS[names.index(name) % len(_POINTS)] for variant, name in named.items()}
    figure, axes = panels(len(radii), len(shown), 4.8, 3.6, sharex="col")
    for line, eps in zip(axes, radii, strict=True):
        for axis, name in zip(line, shown, strict=True):
            _certified_panel(axis, able[(able["eps"] == eps) & able[name].notna()], name, markers, colours)
            axis.set(xlabel=_X[name], title=f"attacked at eps = {eps:g}")
            axis.tick_params(labelbottom=True)
        line[0].set_ylabel("share of the clean return above\nrandom kept under the worst attack")
    left_out = (rows["clean"] < _CLEAN_ENOUGH).sum() // len(radii)
    note = f"; {left_out} near random actions left out" if left_out else ""
    title(figure, f"{env}, {stage} attacks: certified against attacked (a point for each agent{note})")
    _certified_legend(axes[0, 0], {named[variant]: marker for variant, marker in markers.items()}, colours)
    legend(figure, axes, 3)
    return png(figure)


def _certified_panel(axis: Axes, rows: pd.DataFrame, name: str, markers: dict[Any, str], colours: dict[float, Any]) -> None:
    for variant, marker in markers.items():
        own = of_variant(rows, variant)
        style: dict[str, Any] = dict(marker=marker, s=34, edgecolor="black", linewidth=0.4)
        axis.scatter(own[name], own["worst"] / own["clean"], color=[colours[level] for level in own["sparsity"]], **style)
    axis.grid(alpha=0.3)


def _certified_legend(axis: Axes, markers: dict[str, str], colours: dict[float, Any]) -> None:
    """Markers and colours by themselves: not one entry for each of their combinations."""
    for name, marker in markers.items():
        axis.scatter([], [], marker=marker, s=34, color="white", edgecolor="black", label=name)
    for level, colour in colours.items():
        axis.scatter([], [], marker="o", s=34, color=colour, label=level_name(level))


def draw_regret(table: pd.DataFrame, env: str, stage: str) -> bytes:
    """
    Terms of the regret by sparsity, stacked: a panel for each variant and eps. Terms below 0 are stacked downwards.

    :param table: of :func:`~.claims.regret`
    :param env: id of the environment
    :param stage: ``"short"`` or ``"strong"``
    :return: a PNG image
    """
    rows = table[(table["env"] == env) & (table["stage"] == stage)]
    named, radii = labels(variants(rows)), list(rows["eps"].unique())
    shown = [(variant, eps) for variant in named for eps in radii]
    n_columns = min(len(shown), max(1, 4 // len(radii)) * len(radii))
    figure, axes = panels(-(-len(shown) // n_columns), n_columns, 4.4, 3.4, sharey=True)
    for axis, (variant, eps) in zip(axes.flat, shown, strict=False):
        _regret_panel(axis, of_variant(rows[rows["eps"] == eps], variant).sort_values("sparsity"))
        axis.set(xlabel=SPARSITY, title=f"{named[variant]}, eps = {eps:g}")
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for line in axes:
        line[0].set_ylabel("regret (raw reward of an episode)")
    title(figure, f"{env}, {stage} attacks: where the loss comes from, mean over pairs of seeds")
    legend(figure, axes, 3)
    return png(figure)


def _regret_panel(axis: Axes, rows: pd.DataFrame) -> None:
    places = np.arange(len(rows))
    up, down = np.zeros(len(rows)), np.zeros(len(rows))
    for i, (name, text) in enumerate(_TERMS.items()):
        values = rows[name].to_numpy(dtype=float)
        hatch = ("", "//", "..")[i]
        axis.bar(
            places, values, 0.65, np.where(values >= 0, up, down), color=COLOURS[i], label=text, hatch=hatch, edgecolor="white"
        )
        up, down = up + np.maximum(values, 0), down + np.minimum(values, 0)
    dense = (rows["clean_task"] + rows["robustness"] + rows["robustness_gain"]).to_numpy(dtype=float)
    axis.plot(places, up + down, "D", color=CLEAN, markerfacecolor="white", markersize=6, label="regret: their sum")
    axis.hlines(
        dense, places - 0.42, places + 0.42, color=CLEAN, linewidth=2, label="regret of the dense agents of the same seeds"
    )
    axis.axhline(0, color="#666666", linewidth=0.8)
    axis.set_xticks(places, [f"{level:g}" for level in rows["sparsity"]])
    axis.grid(axis="y", alpha=0.3)


def draw_bounds(table: pd.DataFrame, env: str, stage: str) -> bytes | None:
    """
    Bounds on the change of the policy over sparsity, on a log scale, at the first eps: a panel for each variant.

    :param table: of :func:`~.statistics.with_dense`
    :param env: id of the environment
    :param stage: ``"short"`` or ``"strong"``
    :return: a PNG image; ``None`` if there is no bound
    """
    rows = table[(table["env"] == env) & (table["stage"] == stage)]
    rows = rows[rows["eps"] == rows["eps"].iloc[0]]
    kinds = {kind: [name for name in rows if str(name).startswith(f"{kind}:") and (rows[name] > 0).any()] for kind in _BOUNDS}
    kinds = {kind: names for kind, names in kinds.items() if names}
    if not kinds:
        return None
    named = labels(variants(rows))
    lines = [(kind, chunk) for chunk in chunked(list(named), LINES_A_PANEL) for kind in kinds]
    figure, axes = panels(len(lines), min(len(named), LINES_A_PANEL), 4.4, 3.4)
    for line, (kind, chunk) in zip(axes, lines, strict=True):
        for axis, variant in zip(line, chunk, strict=False):
            _bounds_panel(axis, of_variant(rows, variant), kinds[kind])
            axis.set(title=named[variant], yscale="log", xlabel=SPARSITY)
        line[0].set_ylabel(_BOUNDS[kind])
        for axis in line[len(chunk) :]:
            axis.set_axis_off()
    for kind in kinds:
        _same_scale([axis for line, (of, _) in zip(axes, lines, strict=True) if of == kind for axis in line if axis.axison])
    title(figure, f"{env}: bounds at eps = {rows['eps'].iloc[0]:g}, mean over states and seeds")
    legend(figure, axes, 5)
    return png(figure)


def _same_scale(axes: list[Axes]) -> None:
    limits = [axis.get_ylim() for axis in axes]
    for axis in axes:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _bounds_panel(axis: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    for i, name in enumerate(names):
        means = rows[rows[name].notna()].groupby("sparsity")[name].mean()
        means = means[means > 0]  # what is 0 has no place on a log scale
        method = name.split(":")[1]
        if method == "best":
            axis.plot(means.index, means, color=CLEAN, linewidth=6, alpha=0.25, label="best", zorder=1)
        else:
            style: dict[str, Any] = dict(color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)])
            axis.plot(means.index, means, linewidth=1.3, markersize=5, label=method, **style)
    axis.grid(alpha=0.3, which="both")
