"""
Figures of a study, each a PNG image. Colours are told apart by colour-blind readers; legends stand outside the panels.

Where a table has no interval, none is drawn.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from sb3_prune_robust.evaluation.figure import COLOURS, MARKERS
from sb3_prune_robust.study.labels import Variant, labels, of_variant, rows_of, variants
from sb3_prune_robust.study.statistics import groups

Array = npt.NDArray[Any]

LINES_A_PANEL = 4  # more variants than this cannot be told apart in one panel
SPARSITY = "sparsity of the pruned layers"


def panels(n_rows: int, n_columns: int, width: float = 5.0, height: float = 3.8, **shared: Any) -> tuple[Figure, Any]:
    """
    A figure with a grid of axes.

    :param n_rows: of the grid
    :param n_columns: of the grid
    :param width: of a panel, inches
    :param height: of a panel, inches
    :param shared: ``sharex``, ``sharey`` as for :meth:`matplotlib.figure.Figure.subplots`
    :return: the figure, and the axes, shape ``(n_rows, n_columns)``
    """
    figure = Figure(figsize=(max(5.6, width * n_columns), height * n_rows + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False, **shared)


def png(figure: Figure) -> bytes:
    """
    :param figure: a figure
    :return: as a PNG image at 150 dpi, of 256 colours: a third of the size, of dozens under version control
    """
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    image = Image.open(drawn).convert("RGB")
    image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(small, "png")
    return small.getvalue()


def chunked(items: Sequence[Variant], n: int) -> list[Sequence[Variant]]:
    """
    :param items: variants
    :param n: how many there are to be in a line
    :return: lines of them
    """
    return [items[i : i + n] for i in range(0, len(items), n)]


def title(figure: Figure, text: str) -> None:
    """
    A title above all panels, broken into lines that fit.

    :param figure: the figure
    :param text: the title
    """
    figure.suptitle(textwrap.fill(text, int(11 * figure.get_figwidth())), fontsize=11)


def legend(figure: Figure, axes: Any, n_columns: int = 4) -> None:
    """
    One legend for all panels, below them.

    :param figure: the figure
    :param axes: its axes
    :param n_columns: of the legend
    """
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        style: dict[str, Any] = dict(ncols=min(n_columns, len(found)), fontsize=8, frameon=False)
        figure.legend(list(found.values()), list(found), loc="outside lower center", **style)


def draw_frontier(table: pd.DataFrame, env: str, stage: str, confidence: float = 0.95) -> bytes:
    """
    Clean and worst return against sparsity: a panel for each eps, a row of panels for each four variants.

    :param table: of :func:`~.statistics.frontier`
    :param env: id of the environment
    :param stage: ``"short"`` or ``"strong"``
    :param confidence: level of the intervals in the table
    :return: a PNG image
    """
    rows = table[(table["env"] == env) & (table["stage"] == stage)]
    named, there = labels(variants(table)), set(variants(rows))  # of all environments: a variant has one colour
    places = {variant: i for i, variant in enumerate(named)}
    chunks = [line for line in chunked(list(named), LINES_A_PANEL) if there & set(line)]
    radii = list(rows["eps"].unique())
    figure, axes = panels(len(chunks), len(radii), sharey=True)
    for line, chunk in zip(axes, chunks, strict=True):
        for axis, eps in zip(line, radii, strict=True):
            _frontier_panel(axis, rows[rows["eps"] == eps], {variant: (places[variant], named[variant]) for variant in chunk})
            axis.set(xlabel=SPARSITY, title=f"eps = {eps:g}")
        line[0].set_ylabel("return of an episode (raw reward)")
    shown = f"bands: {confidence:.0%} intervals" if rows["low"].notna().any() else "no intervals: one seed"
    title(figure, f"{env}, {stage} attacks: interquartile mean over seeds ({shown})")
    legend(figure, axes, 2)
    return png(figure)


def _frontier_panel(axis: Axes, rows: pd.DataFrame, named: dict[Variant, tuple[int, str]]) -> None:
    for variant, (place, name) in named.items():
        own = of_variant(rows, variant).sort_values("sparsity")
        if own.empty:
            continue
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        style: dict[str, Any] = dict(color=colour, marker=marker, markersize=5, linewidth=1.5)
        for quantity, line in (("clean", "-"), ("worst", "--")):
            one = own[own["quantity"] == quantity]
            face = colour if quantity == "clean" else "white"
            axis.plot(one["sparsity"], one["iqm"], line, label=f"{name}: {quantity}", markerfacecolor=face, **style)
            band(axis, one["sparsity"], one["low"], one["high"], colour)
    axis.grid(alpha=0.3)


def band(axis: Axes, x: Any, low: Any, high: Any, colour: Any) -> None:
    """
    Intervals, as far as there are any: a band between neighbours, a bar for each.

    :param axis: where
    :param x: shape ``(n,)``
    :param low: lower ends, NaN for none
    :param high: upper ends, NaN for none
    :param colour: of matplotlib
    """
    x, low, high = (np.asarray(values, dtype=float) for values in (x, low, high))
    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.vlines(x, low, high, color=colour, alpha=0.5, linewidth=0.9)  # of one with no neighbour no band is seen


def draw_heat_map(table: pd.DataFrame, stage: str, confidence: float = 0.95) -> bytes:
    """
    The paired difference to the dense agents in normalised worst return, for each environment, eps and sparsity.

    :param table: of :func:`~.statistics.differences`, of a normalised table
    :param stage: ``"short"`` or ``"strong"``
    :param confidence: level of the intervals in the table
    :return: a PNG image
    """
    rows = table[(table["stage"] == stage) & (table["quantity"] == "worst") & table["mean"].notna()]
    named, levels = labels(variants(rows)), sorted(rows["sparsity"].unique())
    places = [tuple(row) for row in rows[["env", "eps"]].drop_duplicates().sort_values(["env", "eps"]).itertuples(index=False)]
    n_columns = min(2, len(named))
    n_rows = -(-len(named) // n_columns)
    figure, axes = panels(
        n_rows, n_columns, max(5.0, 1.7 + 0.75 * len(levels)), max(2.6, 1.0 + 0.42 * len(places)), sharey=True
    )
    limit = max(0.1, float(rows["mean"].abs().max()))
    for axis, variant in zip(axes.flat, named, strict=False):
        image = _heat_panel(axis, of_variant(rows, variant), places, levels, limit)
        axis.set_title(named[variant], fontsize=10)
    for line in axes:
        line[0].set_ylabel("environment, eps")
    for axis in axes.flat[len(named) :]:
        axis.set_axis_off()
    figure.colorbar(image, ax=axes, label="pruned minus dense (1 = dense PPO,\nclean, minus random actions)", aspect=35)
    signs = f"* gain, x loss: the {confidence:.0%} interval of the paired difference, corrected, excludes 0; grey: not there"
    title(figure, f"Gain in worst return by pruning, {stage} attacks, mean over seeds ({signs})")
    return png(figure)


def _heat_panel(axis: Axes, rows: pd.DataFrame, places: Sequence[Any], levels: Sequence[float], limit: float) -> AxesImage:
    values = np.full((len(places), len(levels)), np.nan)
    for row in rows_of(rows):
        i, j = places.index((row["env"], row["eps"])), levels.index(row["sparsity"])
        values[i, j] = row["mean"]
        text = f"{row['mean']:+.2f}{'*' if row['supported'] else 'x' if row['harmful'] else ''}"
        dark = abs(row["mean"]) > 0.65 * limit
        axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_facecolor("#BBBBBB")
    image = axis.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axis.set_yticks(range(len(places)), [f"{env}, {eps:g}" for env, eps in places])
    axis.set_xlabel(SPARSITY)
    return image


def level_colours(levels: Sequence[float]) -> dict[float, Any]:
    """
    :param levels: sparsities
    :return: a colour for each, from dark (dense) to light
    """
    places = np.linspace(0.0, 0.9, max(2, len(levels)))
    return {level: colormaps["viridis"](place) for level, place in zip(sorted(levels), places, strict=False)}


def level_name(level: float) -> str:
    """
    :param level: a sparsity
    :return: as it stands in legends
    """
    return "dense" if level == 0 else f"sparsity {level:g}"


def draw_profiles(table: pd.DataFrame, stage: str, confidence: float = 0.95) -> bytes:
    """
    Performance profiles of normalised worst return: a panel for each variant, a curve for each sparsity.

    :param table: of :func:`~.aggregates.profiles`
    :param stage: ``"short"`` or ``"strong"``
    :param confidence: level of the intervals in the table
    :return: a PNG image
    """
    named, colours = labels(variants(table)), level_colours(list(table["sparsity"].unique()))
    n_columns = min(3, len(named))
    figure, axes = panels(-(-len(named) // n_columns), n_columns, 4.6, 3.6, sharex=True, sharey=True)
    for axis, variant in zip(axes.flat, named, strict=False):
        for i, ((level,), one) in enumerate(groups(of_variant(table, variant), ["sparsity"])):
            style: dict[str, Any] = dict(label=level_name(level), linestyle=("-", "--", "-.", ":")[i % 4])
            axis.plot(one["tau"], one["share"], color=colours[level], **style)
            axis.fill_between(one["tau"], one["low"], one["high"], color=colours[level], alpha=0.1, linewidth=0)
        axis.set(title=named[variant], xlabel="normalised worst return, tau")
        axis.tick_params(labelbottom=True)  # sharing hides it, also above a place that stays empty
        axis.grid(alpha=0.3)
    for line in axes:
        line[0].set_ylabel("share of agents above tau")
    for axis in axes.flat[len(named) :]:
        axis.set_axis_off()
    shown = f"bands: {confidence:.0%}, pointwise" if table["low"].notna().any() else "no intervals: one seed"
    title(figure, f"Performance profiles over {_envs(table)}, {stage} attacks ({shown})")
    legend(figure, axes, 4)
    return png(figure)


def _envs(table: pd.DataFrame) -> str:
    n = {len(envs) for envs in table["envs"]}
    return f"{min(n)} environment{'s' if max(n) > 1 else ''}" if len(n) == 1 else f"{min(n)} to {max(n)} environments"
