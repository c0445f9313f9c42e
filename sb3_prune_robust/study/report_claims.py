"""The claims, with their numbers over all environments. Shares are of comparisons or agents, whatever their environment."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sb3_prune_robust.evaluation.tables import table
from sb3_prune_robust.study.claims import bounds_tighten, clean_kept, not_dominated, supported, sweet_spots_shown
from sb3_prune_robust.study.labels import labels, rows_of, variants
from sb3_prune_robust.study.report_tables import Named
from sb3_prune_robust.study.statistics import VARIANT, groups

_WHAT = {
    "clean": "clean",
    "worst": "worst",
    "mean": "mean of clean and worst",
    "gap": "gap, at 90 % of the dense clean return",
}


def claim_sections(frame: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """
    The four claims of the paper and what this study has on each.

    :param frame: of the results
    :param confidence: level of intervals
    :return: Markdown
    """
    if not (frame["sparsity"] > 0).any():
        return ["No pruned agent is finished yet: there is nothing to say."]
    named = labels(variants(frame))
    return [*_tighten(frame), *_supported(frame, confidence), *_kept(frame, named), *_frontier(frame, named)]


def _tighten(frame: pd.DataFrame) -> list[str]:
    found = bounds_tighten(frame)
    sections = ["### 1. Do bounds tighten?"]
    if found.empty:
        return [*sections, "No pruned agent and its dense agent are both certified yet."]
    levels, cells = sorted(found["sparsity"].unique()), {}
    for key, group in groups(found, ["bound", "sparsity"]):
        share, ratio = (np.average(group[name].astype(float), weights=group["n_pairs"]) for name in ("share", "ratio"))
        cells[key] = f"{share:.0%}, x{ratio:.2g} ({group['n_pairs'].sum()})"
    names = sorted(found["bound"].unique(), key=lambda name: (name.split(":")[0] == "radius", name))
    lines = [[f"`{name}`", *(cells.get((name, level), "-") for level in levels)] for name in names]
    return [
        *sections,
        "Share of pairs (environment, variant, seed, eps) in which the bound of the pruned agent is below its dense agent's, "
        "mean ratio pruned / dense, and number of pairs. A total variation (`tv`) is at most 1: where both bounds are 1, none "
        "is lower.",
        table(["bound", *(f"sparsity {level:g}" for level in levels)], lines),
    ]


def _supported(frame: pd.DataFrame, confidence: float) -> list[str]:
    counted = ("supported", "harmful", "undecided", "without_interval", "tried")
    lines = [
        [row["stage"], _WHAT[row["quantity"]], *(row[name] for name in counted), f"{row['by_chance']:.2g}"]
        for row in rows_of(supported(frame, confidence))
    ]
    spots = [
        [row["stage"], _WHAT[row["criterion"]], *(row[name] for name in ("supported", "dense_best", "tried"))]
        for row in rows_of(sweet_spots_shown(frame, confidence))
    ]
    header = ["stage", "better than dense in", "supported", "worse", "undecided", "no interval (under two pairs)", "tried"]
    return [
        "### 2. Is there a sweet spot?",
        "Comparisons (environment, variant, eps, sparsity) with the dense agents, paired by seed. Corrected for the "
        "sparsities of a variant in an environment, not for the number of environments and variants: if pruning did nothing, "
        "the last column is how many would be supported by chance, on average.",
        table([*header, "by chance"], lines),
        "Comparisons (environment, variant, eps) in which the best sparsity is a sweet spot that the data support:",
        table(["stage", "best in", "supported", "dense is best", "tried"], spots),
    ]


def _kept(frame: pd.DataFrame, named: Named) -> list[str]:
    found = clean_kept(frame)
    sections = ["### 3. Is the clean return kept?"]
    if found.empty:
        return [*sections, "No pruned agent has its dense agent yet."]
    lines = [
        [stage, named[tuple(variant)], f"{sparsity:g}", group["n_pairs"].sum(), *_shares(group)]
        for (stage, *variant, sparsity), group in groups(found, ["stage", *VARIANT, "sparsity"])
    ]
    return [
        *sections,
        "Agents that keep 90 % of the clean return of their dense agent, and that have more than it, over all environments.",
        table(["stage", "variant", "sparsity", "agents", "keep 90 %", "better than dense"], lines),
    ]


def _shares(rows: pd.DataFrame) -> list[str]:
    return [f"{np.average(rows[name].astype(float), weights=rows['n_pairs']):.0%}" for name in ("share", "better")]


def _frontier(frame: pd.DataFrame, named: Named) -> list[str]:
    found = not_dominated(frame)
    sections = ["### 4. Is pruning on the frontier of clean and worst return?"]
    if found.empty:
        return [*sections, "No pruned agent has its dense agent yet."]
    lines = [
        [stage, named[tuple(variant)], f"{sparsity:g}", len(one), (~one["dominated"]).sum(), one["dominates"].sum()]
        for (stage, *variant, sparsity), one in groups(found, ["stage", *VARIANT, "sparsity"])
    ]
    return [
        *sections,
        "Comparisons (environment, eps) by means over pairs, whatever their spread: *not dominated* means that dense is worse "
        "in clean or in worst return, *dominates* that it is worse in one and no better in the other.",
        table(["stage", "variant", "sparsity", "compared", "not dominated by dense", "dominates dense"], lines),
    ]
