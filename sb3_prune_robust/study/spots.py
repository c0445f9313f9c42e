"""The best sparsity of each variant, and whether the data say that it beats the dense agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sb3_prune_robust.evaluation.sweet_spots import CRITERIA, Candidate, SweetSpot, sweet_spots
from sb3_prune_robust.study.statistics import COMPARED, Array, ends_of, groups, pairs

_ENDS = ["mean", "low", "high", "worst_mean", "worst_low", "worst_high"]
_COLUMNS = [*COMPARED, "n_tried", "n_pairs", "n_unpaired", "criterion", "sparsity", "supported", *_ENDS]


def best_sparsities(frame: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """
    The sweet spots of each variant: :func:`~sb3_prune_robust.evaluation.sweet_spots.sweet_spots` of agents.

    Sparsities are compared on the seeds that have all of them, at that stage, and their pair. The correction is for all
    sparsities that were tried at any stage: those of a later stage were chosen on an earlier one.

    :param frame: of the results
    :param confidence: level, jointly over the sparsities
    :return: a row for each environment, variant, stage, eps and ``criterion``, with ``n_tried`` (sparsities), ``n_pairs``
        (seeds), ``n_unpaired`` (pruned agents left out), ``sparsity`` (NaN without any seed), ``mean``, ``low``, ``high`` of
        the criterion's paired gain, the same of the worst return (``worst_mean``, ...; NaN where the dense agent is best) and
        ``supported``
    """
    rows = []
    for key, group in groups(pairs(frame), COMPARED) if len(frame) else ():
        levels, tried = group["sparsity"].nunique(), int(group["n_tried"].iloc[0])
        paired = group[group["paired"]]
        whole = paired[paired.groupby("seed")["seed"].transform("size") == levels]
        same = {**dict(zip(COMPARED, key, strict=True)), "n_tried": tried}
        same |= {"n_pairs": whole["seed"].nunique(), "n_unpaired": len(group) - len(whole)}
        joint = 1 - (1 - confidence) * levels / tried  # sweet_spots divides by the number it is given
        spots = sweet_spots(_candidates(whole), joint) if len(whole) else [None] * len(CRITERIA)
        rows += [{**same, "criterion": c.name, **_spot(spot)} for c, spot in zip(CRITERIA, spots, strict=True)]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _candidates(whole: pd.DataFrame) -> Sequence[Candidate]:
    """Of agents with a worst return of their own, by seed: one attack of the name "worst"."""
    levels = [group.sort_values("seed") for _, group in whole.groupby("sparsity")]
    dense = Candidate(0.0, levels[0]["dense_clean"].to_numpy(), {"worst": levels[0]["dense_worst"].to_numpy()}, True)
    return [dense, *(Candidate(float(one["sparsity"].iloc[0]), *_returns(one), of_agents=True) for one in levels)]


def _returns(rows: pd.DataFrame) -> tuple[Array, dict[str, Array]]:
    return rows["clean"].to_numpy(), {"worst": rows["worst"].to_numpy()}


def _spot(spot: SweetSpot | None) -> dict[str, Any]:
    worst = {f"worst_{name}": end for name, end in ends_of(None if spot is None else spot.worst_gain).items()}
    found = (
        {"sparsity": np.nan, "supported": False} if spot is None else {"sparsity": spot.sparsity, "supported": spot.supported}
    )
    return {**found, **ends_of(None if spot is None else spot.gain), **worst}
