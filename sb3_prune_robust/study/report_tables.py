"""Tables of a study's report, Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sb3_prune_robust.evaluation.sweet_spots import CRITERIA
from sb3_prune_robust.evaluation.tables import interval, number, table
from sb3_prune_robust.study.labels import Variant, rows_of
from sb3_prune_robust.study.statistics import PRUNING, VARIANT, WEIGHTS, groups

Named = Mapping[Variant, str]


def ends(row: Any, prefix: str = "", mean: str = "mean") -> str:
    """
    A mean with its interval, as far as there are any.

    :param row: with the columns ``mean``, ``low`` and ``high``
    :param prefix: of these names
    :param mean: name of the first
    :return: ``-``, the mean, or ``mean [low, high]``
    """
    values = {name: row[prefix + column] for name, column in (("mean", mean), ("low", "low"), ("high", "high"))}
    if np.isnan(values["mean"]):
        return "-"
    return interval({name: None if np.isnan(value) else value for name, value in values.items()})


def name_of(row: Mapping[str, Any], named: Named) -> str:
    """
    :param row: with the columns of a variant
    :param named: what variants are called
    :return: what its variant is
    """
    return named[tuple(row[axis] for axis in VARIANT)]


def each(values: pd.Series[float]) -> str:
    """
    :param values: one for each seed
    :return: their mean and each, if there are several
    """
    known = values.dropna()
    if known.empty:
        return "-"
    if len(known) == 1:
        return number(known.iloc[0])
    return f"{number(known.mean())} [{', '.join(number(value) for value in known)}]"


def raw_returns(rows: pd.DataFrame, named: Named) -> str:
    """
    Mean over seeds and each seed.

    :param rows: of the results: one environment and stage
    :param named: what variants are called
    :return: a table
    """
    radii = list(rows["eps"].unique())
    lines = []
    for key, group in _dense_first(rows.sort_values("seed"), []):
        once = group.drop_duplicates("seed")
        worst = [each(group.loc[group["eps"] == eps, "worst"]) for eps in radii]
        seeds = ", ".join(str(seed) for seed in once["seed"])
        lines.append([named[key[:-1]], f"{key[-1]:g}", seeds, each(once["clean"]), each(once["sampled"]), *worst])
    header = ["variant", "sparsity", "seeds", "clean, mode", "clean, sampled", *(f"worst, eps {eps:g}" for eps in radii)]
    return table(header, lines)


def _dense_first(rows: pd.DataFrame, before: list[str]) -> list[tuple[Any, pd.DataFrame]]:
    """Groups of one variant and sparsity, the dense agents before those that are pruned."""
    keys = [*before, "algorithm", "policy", "pruned", *PRUNING, "sparsity"]
    shown = [*before, *VARIANT, "sparsity"]
    return [(tuple(group[shown].iloc[0]), group) for _, group in groups(rows.assign(pruned=rows["sparsity"] > 0), keys)]


def attack_returns(rows: pd.DataFrame, named: Named) -> str:
    """
    Mean return over seeds under each attack; with the number of agents where it found nothing to learn on others.

    :param rows: of the results: one environment and stage
    :param named: what variants are called
    :return: a table
    """
    attacks = [str(name) for name in rows if str(name).startswith("attack:") and rows[name].notna().any()]
    lines = []
    for key, group in _dense_first(rows, ["eps"]):
        shown = [_mean_of(group[name]) for name in attacks]
        lines.append([f"{key[0]:g}", named[key[1:-1]], f"{key[-1]:g}", len(group), *shown])
    return table(["eps", "variant", "sparsity", "agents", *(name.removeprefix("attack:") for name in attacks)], lines)


def _mean_of(returns: pd.Series) -> str:
    known = returns.dropna()
    few = f" ({len(known)})" if len(known) < len(returns) else ""
    return "-" if known.empty else f"{number(known.mean())}{few}"


def difference_table(found: pd.DataFrame, named: Named) -> str:
    """
    Paired differences with what they show.

    :param found: of :func:`~.statistics.differences`: one environment and stage
    :param named: what variants are called
    :return: a table
    """
    lines = []
    for key, group in groups(found, ["eps", *VARIANT, "sparsity"]):
        by_name = {row["quantity"]: row for row in rows_of(group)}
        pairs = f"{by_name['worst']['n_pairs']} ({by_name['worst']['n_unpaired']})"
        shown = [ends(by_name[name]) + _sign(by_name[name]) for name in WEIGHTS]
        lines.append(
            [f"{key[0]:g}", named[key[1:-1]], f"{key[-1]:g}", pairs, *shown, "yes" if by_name["gap"]["kept"] else "no"]
        )
    header = ["eps", "variant", "sparsity", "pairs (left out)", "clean", "mean", "worst", "gap, how much smaller", "90 % kept"]
    assert tuple(WEIGHTS) == ("clean", "mean", "worst", "gap")
    return table(header, lines)


def _sign(row: Mapping[str, Any]) -> str:
    return " **+**" if row["supported"] else " **-**" if row["harmful"] else ""


def spot_table(found: pd.DataFrame, named: Named) -> str:
    """
    Sweet spots with their verdict.

    :param found: of :func:`~.spots.best_sparsities`: one environment and stage
    :param named: what variants are called
    :return: a table
    """
    descriptions = {one.name: one.description for one in CRITERIA}
    lines = [
        [
            f"{row['eps']:g}",
            name_of(row, named),
            descriptions[row["criterion"]],
            "-" if np.isnan(row["sparsity"]) else f"{row['sparsity']:g}",
            ends(row),
            ends(row, "worst_"),
            f"{row['n_pairs']} ({row['n_unpaired']})",
            verdict(row),
        ]
        for row in rows_of(found)
    ]
    header = ["eps", "variant", "criterion", "best sparsity", "gain of the criterion", "gain of worst"]
    return table([*header, "seeds (agents left out)", "sweet spot"], lines)


def verdict(row: Mapping[str, Any]) -> str:
    """
    :param row: of :func:`~.spots.best_sparsities`
    :return: ``supported``, or ``not shown`` and why
    """
    if row["supported"]:
        return "**supported**"
    if row["n_pairs"] == 0:
        return "not shown: no seed has all sparsities and its dense agent"
    if row["sparsity"] == 0:
        return "not shown: dense is best"
    return "not shown: one pair of seeds" if np.isnan(row["low"]) else "not shown: the interval holds 0"


def regret_table(found: pd.DataFrame, named: Named) -> str:
    """
    :param found: of :func:`~.claims.regret`: one environment and stage
    :param named: what variants are called
    :return: a table
    """
    terms = ("clean_task", "pruning_loss", "robustness", "robustness_gain")
    lines = [
        [
            f"{row['eps']:g}",
            name_of(row, named),
            f"{row['sparsity']:g}",
            row["n_pairs"],
            *(number(row[term]) for term in terms),
        ]
        for row in rows_of(found)
    ]
    header = ["eps", "variant", "sparsity", "pairs", "clean-task term", "pruning loss", "robustness term", "robustness gain"]
    return table(header, lines)


def aggregate_table(found: pd.DataFrame, named: Named) -> str:
    """
    :param found: of :func:`~.aggregates.aggregate`
    :param named: what variants are called
    :return: a table
    """
    lines = []
    for key, group in groups(found, [*VARIANT, "sparsity"]):
        by_name = {row["quantity"]: row for row in rows_of(group)}
        names = ("clean", "worst", "difference", "difference_mean", "improvement")
        shown = [ends(by_name[name], mean="value") if name in by_name else "-" for name in names]
        paired = by_name.get("difference", by_name["worst"])
        lines.append([named[key[:-1]], f"{key[-1]:g}", len(paired["envs"]), paired["n_seeds"], *shown])
    header = ["variant", "sparsity", "environments", "seeds", "clean, IQM", "worst, IQM", "paired difference in worst, IQM"]
    return table([*header, "the same, mean", "P(pruned > dense), worst"], lines)
