"""
Pruned agents against the dense agents of their own seed.

All functions take the table of :class:`~.results.Results` (``frame``) and answer with a table; they keep stages and eps apart.
What a *variant* is: an algorithm, a policy and a way of pruning. Its dense agents are those of its algorithm and policy.
Where there is no interval (a single seed), its ends are NaN. Tables of pruned agents are empty if there are none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rliable import library, metrics
from scipy.stats import trim_mean

from sb3_prune_robust.evaluation.statistics import Interval, t_interval
from sb3_prune_robust.evaluation.sweet_spots import CRITERIA, clean_threshold

Array = npt.NDArray[Any]

PRUNING = ["scores", "distribution", "schedule"]
VARIANT = ["algorithm", "policy", *PRUNING]
COMPARED = ["env", *VARIANT, "stage", "eps"]  # what the sparsities of one comparison have in common
PAIR = ["env", "algorithm", "policy", "seed", "stage", "eps"]  # what a pruned and its dense agent have in common
REPS = 2000
# v clean + w worst; each the larger the better, so that "gap" is minus the gap
WEIGHTS = {"clean": (1.0, 0.0), **{one.name: (one.clean_weight, one.worst_weight) for one in CRITERIA}}
_COUNTS = ["n_pairs", "n_unpaired", "n_tried"]
_DIFFERENCE = [*COMPARED, "sparsity", *_COUNTS, "quantity", "mean", "low", "high", "kept", "supported", "harmful"]
_KEEP = {one.name: one.keep for one in CRITERIA}


def groups(table: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """
    The rows of a table that agree in some columns, sorted by them.

    :param table: any
    :param keys: columns
    :return: the values of the columns, and the rows
    """
    yield from table.groupby(list(keys))


def with_dense(frame: pd.DataFrame) -> pd.DataFrame:
    """
    The table with each dense agent once for each variant it is the pair of, under that variant's name.

    :param frame: of the results
    :return: the same columns; where an algorithm and policy have no variant their dense agents keep their own ("none"). A
        variant gets the dense agents of its seeds alone: with others, its curve would start where its pairs do not
    :raises ValueError: if a cell is there twice
    """
    frame = _checked(frame)
    dense, pruned = frame[frame["sparsity"] == 0], frame[frame["sparsity"] > 0]
    variants = pruned[["env", *VARIANT]].drop_duplicates()
    named = dense.drop(columns=PRUNING).merge(variants, on=["env", "algorithm", "policy"], how="left")
    own = pd.MultiIndex.from_frame(pruned[["env", *VARIANT, "seed"]])
    named = named[named["scores"].isna() | pd.MultiIndex.from_frame(named[["env", *VARIANT, "seed"]]).isin(own)]
    return pd.concat([named.fillna({axis: "none" for axis in PRUNING}), pruned], ignore_index=True)[frame.columns]


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """
    A row for each pruned agent, stage and eps, beside the dense agent of its seed.

    :param frame: of the results
    :return: the columns of the pruned agents; ``dense_`` with ``clean``, ``worst``, ``attacks_tried`` and each ``attack:``,
        ``tv:`` and ``radius:`` (NaN if there is no dense agent); ``paired``, whether there is one and the same attacks were
        tried on both; ``n_tried``, the number of sparsities of the variant in this environment, at any stage, and in the grid:
        those that are not finished yet count as well
    :raises ValueError: if a cell is there twice
    """
    frame = _checked(frame)
    kinds = ("attack:", "tv:", "radius:")
    values = ["clean", "worst", "attacks_tried", *(name for name in frame if str(name).startswith(kinds))]
    dense = frame.loc[frame["sparsity"] == 0, [*PAIR, *values]].rename(columns={name: f"dense_{name}" for name in values})
    both = frame[frame["sparsity"] > 0].merge(dense, on=PAIR, how="left")
    # The minimum over more attacks is lower: agents on which not the same ones were tried cannot be compared. One that found
    # nothing to learn counts as tried: left out, the pairs lost would be those of agents that only pruning made vulnerable.
    both["paired"] = both["dense_worst"].notna() & (both["attacks_tried"] == both["dense_attacks_tried"])
    both["n_tried"] = both.groupby(["env", *VARIANT])["sparsity"].transform("nunique").clip(lower=both["n_planned"])
    return both


def _checked(frame: pd.DataFrame) -> pd.DataFrame:
    twice = frame.duplicated([*COMPARED, "sparsity", "seed"])
    if twice.any():
        raise ValueError(
            f"frame: a cell is there twice: {frame.loc[twice, [*COMPARED, 'sparsity', 'seed']].iloc[0].to_dict()}"
        )
    return frame


def scale(frame: pd.DataFrame, env: str, references: Mapping[str, float]) -> tuple[float, float]:
    """
    What returns of an environment are normalised by: 0 is random actions, 1 the mean dense plain PPO agent, played clean.

    :param frame: of the results
    :param env: id of the environment
    :param references: by environment, the mean return of uniformly random actions
    :return: the return of random actions, and that of PPO minus it
    :raises ValueError: without a reference or a dense plain PPO agent, or if PPO is no better than random actions
    """
    if env not in references:
        raise ValueError(f"references: no return of random actions for {env}")
    dense = (frame["env"] == env) & (frame["algorithm"] == "ppo") & (frame["policy"] == "plain") & (frame["sparsity"] == 0)
    if not dense.any():
        raise ValueError(f"frame: no dense agent of ppo with the plain policy for {env}")
    # One value a seed, whatever the number of its stages and eps.
    best = float(frame[dense].groupby("seed")["clean"].mean().mean())
    if not best > references[env]:
        raise ValueError(
            f"{env}: dense PPO returns {best:.4g}, random actions {references[env]:.4g}: no scale to normalise returns by"
        )
    return references[env], best - references[env]


def normalised(frame: pd.DataFrame, references: Mapping[str, float]) -> pd.DataFrame:
    """
    The table with returns in units of :func:`scale`.

    :param frame: of the results
    :param references: by environment, the mean return of uniformly random actions
    :return: the table with ``clean`` and ``worst`` normalised
    :raises ValueError: as :func:`scale`, for any environment of the table
    """
    scales = {env: scale(frame, env, references) for env in frame["env"].unique()}
    low, span = (frame["env"].map({env: one[i] for env, one in scales.items()}) for i in (0, 1))
    return frame.assign(clean=(frame["clean"] - low) / span, worst=(frame["worst"] - low) / span)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """rliable's bootstrap draws from NumPy's global generator, whatever ``random_state`` it is given; it is put back after."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def frontier(frame: pd.DataFrame, confidence: float = 0.95, reps: int = REPS) -> pd.DataFrame:
    """
    Returns over seeds for each environment, variant, stage, eps and sparsity, with rliable's bootstrap interval of the IQM.

    With few seeds the interval is too short (see :func:`differences`): it shows the spread, no claim rests on it. The same
    seeds and sparsities of a variant give the same intervals.

    :param frame: of the results
    :param confidence: level
    :param reps: bootstrap repetitions
    :return: a row for each ``quantity`` (``clean``, ``worst``, each ``attack:``) with ``values`` (by seed), ``n``, ``mean``,
        ``iqm``, ``low``, ``high``
    """
    quantities = ["clean", "worst", *(name for name in frame if str(name).startswith("attack:"))]
    rows = with_dense(frame).sort_values("seed")
    keys = [*COMPARED, "sparsity"]
    long = rows.melt([*keys, "seed"], quantities, var_name="quantity").dropna(subset=["value"])
    table = long.groupby([*keys, "quantity"])["value"].agg(list).reset_index(name="values")
    table["n"] = table["values"].map(len)
    table["mean"] = table["values"].map(np.mean)
    table["iqm"] = [float(metrics.aggregate_iqm(np.array(values))) for values in table["values"]]
    table["low"], table["high"] = np.nan, np.nan
    for _, same in table[table["n"] > 1].groupby(["env", *VARIANT, "stage", "n"]):
        low, high = _iqm_intervals(np.stack(list(same["values"]), axis=1), confidence, reps)
        table.loc[same.index, "low"], table.loc[same.index, "high"] = low, high
    return table


def _iqm_intervals(values: Array, confidence: float, reps: int) -> Array:
    """Of each column by itself, shape ``(2, n_columns)``: in one call, since thousands would take an hour."""
    with seeded():
        _, intervals = library.get_interval_estimates(
            {"": values}, lambda x: trim_mean(x, 0.25, axis=0), reps=reps, confidence_interval_size=confidence
        )
    return np.asarray(intervals[""])


def differences(frame: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """
    Paired differences to the dense agent, by seed, corrected for the number of sparsities tried (Bonferroni).

    :param frame: of the results
    :param confidence: level, jointly over the sparsities of a variant in an environment
    :return: a row for each environment, variant, stage, eps, sparsity and ``quantity`` (``clean``, ``worst``, ``mean`` of the
        two, ``gap``: how much smaller it is), with ``n_pairs``, ``n_unpaired`` (agents left out), ``n_tried``, ``mean``,
        ``low``, ``high``, ``kept`` (whether 90 % of the dense clean return is), ``supported`` (the interval is above 0, and
        for ``gap`` the clean return kept) and ``harmful`` (the interval is below 0)
    """
    rows = []
    for key, group in groups(pairs(frame), [*COMPARED, "sparsity"]) if len(frame) else ():
        paired = group[group["paired"]]
        counts = {"n_pairs": len(paired), "n_unpaired": len(group) - len(paired), "n_tried": int(group["n_tried"].iloc[0])}
        same = {**dict(zip([*COMPARED, "sparsity"], key, strict=True)), **counts}
        rows += [{**same, "quantity": name, **_difference(paired, name, counts["n_tried"], confidence)} for name in WEIGHTS]
    return pd.DataFrame(rows, columns=_DIFFERENCE)


def _difference(paired: pd.DataFrame, quantity: str, n_tried: int, confidence: float) -> dict[str, Any]:
    if paired.empty:
        ends = dict.fromkeys(("mean", "low", "high"), np.nan)
        return {**ends, "kept": False, "supported": False, "harmful": False}
    v, w = WEIGHTS[quantity]
    gains = v * (paired["clean"] - paired["dense_clean"]) + w * (paired["worst"] - paired["dense_worst"])
    # Student's t, since there are about five seeds: the percentile bootstrap's 95 % interval of a mean of five normal values
    # covers it in 84 % of cases (its resamples have 4/5 of the variance, and no tails); t's covers in 95 %.
    found = t_interval(gains.to_numpy(), 1 - (1 - confidence) / n_tried)
    kept = bool(paired["clean"].mean() >= clean_threshold(float(paired["dense_clean"].mean())))
    enough = kept or _KEEP.get(quantity) is None
    return {
        **ends_of(found),
        "kept": kept,
        "supported": found.low is not None and found.low > 0 and enough,
        "harmful": found.high is not None and found.high < 0,
    }


def ends_of(interval: Interval | None) -> dict[str, float]:
    """``mean``, ``low`` and ``high``, NaN for what there is not."""
    ends = (None, None, None) if interval is None else (interval.mean, interval.low, interval.high)
    return {name: np.nan if end is None else end for name, end in zip(("mean", "low", "high"), ends, strict=True)}
