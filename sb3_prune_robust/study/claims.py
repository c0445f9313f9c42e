"""Where the loss comes from, and the numbers behind each claim. All take the table of the results; see ``statistics``."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sb3_prune_robust.evaluation.sweet_spots import clean_threshold
from sb3_prune_robust.study.spots import best_sparsities
from sb3_prune_robust.study.statistics import COMPARED, differences, pairs

KEYS = [*COMPARED, "sparsity"]
ROUNDING = 1e-9  # bounds that differ by less are equal: a total variation of 1 is often 1 - 2e-16


def regret(frame: pd.DataFrame) -> pd.DataFrame:
    """
    Terms of the regret, means over the pairs, in units of return.

    :param frame: of the results
    :return: a row for each environment, variant, stage, eps and sparsity with ``n_pairs``; ``clean_task``, the best mean clean
        return of any agents in this environment and stage, minus that of the dense ones; ``pruning_loss``, dense minus pruned,
        clean; ``robustness``, clean minus worst, of the pruned agents; ``robustness_gain``, that of the dense ones minus it
    """
    both = _paired(frame)
    best = frame.groupby(KEYS)["clean"].mean().groupby(["env", "stage"]).max().rename("best")
    both = both.merge(best.reset_index(), on=["env", "stage"])
    terms = both[KEYS].assign(
        clean_task=both["best"] - both["dense_clean"],
        pruning_loss=both["dense_clean"] - both["clean"],
        robustness=both["clean"] - both["worst"],
        robustness_gain=(both["dense_clean"] - both["dense_worst"]) - (both["clean"] - both["worst"]),
        n_pairs=1,
    )
    names = ("clean_task", "pruning_loss", "robustness", "robustness_gain")
    return terms.groupby(KEYS).agg({**dict.fromkeys(names, "mean"), "n_pairs": "sum"}).reset_index()


def bounds_tighten(frame: pd.DataFrame) -> pd.DataFrame:
    """
    Claim 1: bounds on the change of the policy tighten as weights are pruned.

    :param frame: of the results
    :return: a row for each environment, variant, stage, eps, sparsity and ``bound`` (``tv:crown``, ...), with ``n_pairs``
        (that have the bound, the dense one above 0), ``share`` of them in which the pruned agent's is lower, and ``ratio``,
        the mean of pruned / dense
    """
    both = pairs(frame)
    both = both[both["dense_clean"].notna()]
    names = [str(name) for name in frame if str(name).startswith(("tv:", "radius:"))]
    found = [_ratios(both, name) for name in names]
    return (
        pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*KEYS, "bound", "n_pairs", "share", "ratio"])
    )


def _ratios(both: pd.DataFrame, name: str) -> pd.DataFrame:
    there = both[both[name].notna() & (both[f"dense_{name}"] > 0)]
    ratios = there[KEYS].assign(ratio=there[name] / there[f"dense_{name}"])
    ratios = ratios.assign(n_pairs=1, share=there[name] < there[f"dense_{name}"] - ROUNDING)
    return ratios.groupby(KEYS).agg({"n_pairs": "sum", "share": "mean", "ratio": "mean"}).reset_index().assign(bound=name)


def supported(frame: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """
    Claim 2: how many sparsities are better than dense, of all that were tried.

    :param frame: of the results
    :param confidence: level, jointly over the sparsities of a variant in an environment
    :return: a row for each stage and ``quantity`` of :func:`~.statistics.differences`, with the number of comparisons
        (environment, variant, eps, sparsity) that are ``supported``, ``harmful``, ``undecided`` (neither, though there is an
        interval), ``without_interval``, and ``tried``, all of them; ``by_chance``, how many would be supported on average if
        pruning did nothing (fewer, for ``gap``)
    """
    table = differences(frame, confidence)
    if table.empty:
        return table
    table = table.assign(
        tried=1,
        without_interval=table["low"].isna(),
        undecided=table["low"].notna() & ~table["supported"] & ~table["harmful"],
        by_chance=table["low"].notna() * (1 - confidence) / 2 / table["n_tried"],
    )
    counted = ["supported", "harmful", "undecided", "without_interval", "tried", "by_chance"]
    return table.groupby(["stage", "quantity"])[counted].sum().reset_index()


def sweet_spots_shown(frame: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """
    Claim 2 again: how many variants have a sweet spot that the data support.

    :param frame: of the results
    :param confidence: level, jointly over the sparsities of a variant in an environment
    :return: a row for each stage and ``criterion``, with the number of comparisons (environment, variant, eps) that are
        ``supported``, in which the dense agent is best (``dense_best``), and ``tried``, all of them
    """
    table = best_sparsities(frame, confidence)
    if table.empty:
        return table
    table = table.assign(tried=1, dense_best=table["sparsity"] == 0)
    return table.groupby(["stage", "criterion"])[["supported", "dense_best", "tried"]].sum().reset_index()


def clean_kept(frame: pd.DataFrame) -> pd.DataFrame:
    """
    Claim 3: the clean return is kept.

    :param frame: of the results
    :return: a row for each environment, variant, stage and sparsity with ``n_pairs``, the ``share`` of pruned agents that keep
        90 % of the clean return of their dense agent, and the share that are ``better``
    """
    both = _paired(frame)
    keys = [key for key in KEYS if key != "eps"]
    both = both.drop_duplicates([*keys, "seed"])  # the clean return knows no eps
    enough = both["dense_clean"].map(clean_threshold)
    found = both[keys].assign(n_pairs=1, share=both["clean"] >= enough, better=both["clean"] > both["dense_clean"])
    return found.groupby(keys).agg({"n_pairs": "sum", "share": "mean", "better": "mean"}).reset_index()


def not_dominated(frame: pd.DataFrame) -> pd.DataFrame:
    """
    Claim 4: the frontier of clean and worst return. Means only: whether a difference is more than chance, it does not say.

    :param frame: of the results
    :return: a row for each environment, variant, stage, eps and sparsity with ``n_pairs``, mean ``clean``, ``worst``,
        ``dense_clean``, ``dense_worst`` of the pairs, ``dominated`` (dense is at least as good in both, and better in one) and
        ``dominates`` (the reverse)
    """
    names = ["clean", "worst", "dense_clean", "dense_worst"]
    means = (
        _paired(frame).assign(n_pairs=1).groupby(KEYS).agg({**dict.fromkeys(names, "mean"), "n_pairs": "sum"}).reset_index()
    )
    ahead = np.sign(means[["clean", "worst"]].to_numpy() - means[["dense_clean", "dense_worst"]].to_numpy())
    return means.assign(
        dominated=(ahead <= 0).all(axis=1) & (ahead < 0).any(axis=1),
        dominates=(ahead >= 0).all(axis=1) & (ahead > 0).any(axis=1),
    )


def _paired(frame: pd.DataFrame) -> pd.DataFrame:
    both = pairs(frame)
    return both[both["paired"]]
