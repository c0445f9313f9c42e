"""
All environments at once, by rliable (Agarwal et al. 2021): normalised returns as a matrix of seeds and environments.

One eps for each environment: the first of its list, as configured, unless another is asked for.
The bootstrap is stratified by environment; with few seeds its intervals are too short. They are not corrected for the number
of sparsities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from rliable import library, metrics

from sb3_prune_robust.study.statistics import REPS, VARIANT, Array, groups, normalised, pairs, seeded, with_dense

TAUS = np.linspace(-0.25, 1.25, 61)


def at_one_eps(frame: pd.DataFrame, stage: str, eps: Mapping[str, float] | None = None) -> pd.DataFrame:
    """
    The rows of a stage at one eps for each environment.

    :param frame: of the results
    :param stage: ``"short"`` or ``"strong"``
    :param eps: by environment; the first of its list for those that are not in it
    :return: the rows
    :raises ValueError: if an environment was not attacked at the eps given for it
    """
    rows = frame[frame["stage"] == stage]
    first = {str(env): radius for env, radius in rows.groupby("env")["eps"].first().items()}
    for env, radius in (eps or {}).items():
        known = sorted(rows.loc[rows["env"] == env, "eps"].unique())
        if radius not in known:
            raise ValueError(f"eps: {env} was not attacked at {radius!r} in stage {stage!r}, but at {known}")
    return rows[rows["eps"] == rows["env"].map({**first, **(eps or {})})]


def aggregate(
    frame: pd.DataFrame,
    references: Mapping[str, float],
    stage: str = "short",
    eps: Mapping[str, float] | None = None,
    confidence: float = 0.95,
    reps: int = REPS,
) -> pd.DataFrame:
    """
    What pruning does over all environments.

    :param frame: of the results
    :param references: by environment, the mean return of uniformly random actions
    :param stage: ``"short"`` or ``"strong"``
    :param eps: by environment; the first of its list for those that are not in it
    :param confidence: level
    :param reps: bootstrap repetitions
    :return: a row for each variant, sparsity (0: dense) and ``quantity``: IQM of normalised ``clean`` and ``worst``;
        ``difference`` (IQM) and ``difference_mean`` of the paired difference in normalised worst return; ``improvement``, the
        probability that a pruned agent's worst return exceeds a dense one's, seeds regardless. With ``value``, ``low``,
        ``high`` (NaN with one seed), ``envs``, ``left_out`` (environments without such a pair) and ``n_seeds``, the seeds
        common to ``envs``
    :raises ValueError: as :func:`~.statistics.normalised`
    """
    rows = at_one_eps(normalised(frame, references), stage, eps)
    both = pairs(rows)
    found = [
        {**key, **one}
        for key, group in _groups(with_dense(rows), rows)
        for one in _estimates(_levels(group), confidence, reps)
    ]
    found += [
        {**key, **one}
        for key, group in _groups(both[both["paired"]], rows)
        for one in _estimates(_paired(group), confidence, reps)
    ]
    return pd.DataFrame(found)


def _groups(table: pd.DataFrame, rows: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Each variant and sparsity with the rows of the seeds that all its environments have."""
    found = []
    for key, group in groups(table, [*VARIANT, "sparsity"]):
        envs = sorted(group["env"].unique())
        common = group[group.groupby("seed")["env"].transform("nunique") == len(envs)]
        named = dict(zip([*VARIANT, "sparsity"], key, strict=True))
        left_out = sorted(set(rows["env"]) - set(envs))
        found.append(({**named, "envs": envs, "left_out": left_out, "n_seeds": common["seed"].nunique()}, common))
    return found


def _matrix(rows: pd.DataFrame, column: str) -> Array:
    """Shape ``(n_seeds, n_environments)``."""
    return rows.pivot(index="seed", columns="env", values=column).to_numpy(dtype=float)


Estimate = tuple[str, Callable[..., Any], tuple[Array, ...]]


def _levels(rows: pd.DataFrame) -> list[Estimate]:
    return [(name, metrics.aggregate_iqm, (_matrix(rows, name),)) for name in ("clean", "worst")]


def _paired(rows: pd.DataFrame) -> list[Estimate]:
    pruned, dense = _matrix(rows, "worst"), _matrix(rows, "dense_worst")
    return [
        ("difference", metrics.aggregate_iqm, (pruned - dense,)),
        ("difference_mean", metrics.aggregate_mean, (pruned - dense,)),
        ("improvement", probability_of_improvement, (pruned, dense)),
    ]


def probability_of_improvement(x: Array, y: Array) -> float:
    """
    :func:`rliable.metrics.probability_of_improvement` a hundred times faster, which the bootstrap needs.

    :param x: scores, shape ``(n_runs_x, n_tasks)``
    :param y: scores, shape ``(n_runs_y, n_tasks)``
    :return: mean over tasks of the probability that a run of ``x`` is above one of ``y``, ties half
    """
    above = x[:, None] - y[None, :]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def _estimates(asked: list[Estimate], confidence: float, reps: int) -> list[dict[str, Any]]:
    return [{"quantity": name, **_estimate(function, scores, confidence, reps)} for name, function, scores in asked]


def _estimate(function: Callable[..., Any], scores: tuple[Array, ...], confidence: float, reps: int) -> dict[str, float]:
    n_seeds = len(scores[0])
    if n_seeds == 0:
        return dict.fromkeys(("value", "low", "high"), np.nan)
    if n_seeds == 1:
        return {"value": float(function(*scores)), "low": np.nan, "high": np.nan}
    with seeded():
        points, intervals = library.get_interval_estimates(
            {"": scores[0] if len(scores) == 1 else scores},
            lambda *x: np.array([function(*x)]),
            reps=reps,
            confidence_interval_size=confidence,
        )
    low, high = intervals[""][:, 0]
    return {"value": float(points[""][0]), "low": float(low), "high": float(high)}


def profiles(
    frame: pd.DataFrame,
    references: Mapping[str, float],
    stage: str = "short",
    eps: Mapping[str, float] | None = None,
    confidence: float = 0.95,
    reps: int = REPS,
) -> pd.DataFrame:
    """
    Performance profiles: the share of agents whose normalised worst return exceeds ``tau``.

    :param frame: of the results
    :param references: by environment, the mean return of uniformly random actions
    :param stage: ``"short"`` or ``"strong"``
    :param eps: by environment; the first of its list for those that are not in it
    :param confidence: level, at each ``tau``
    :param reps: bootstrap repetitions
    :return: a row for each variant, sparsity (0: dense) and ``tau`` of :data:`TAUS`, with ``share``, ``low``, ``high``,
        ``envs``, ``left_out`` and ``n_seeds`` as :func:`aggregate`; none for those without a common seed
    :raises ValueError: as :func:`~.statistics.normalised`
    """
    rows = at_one_eps(normalised(frame, references), stage, eps)
    tables = []
    for key, group in _groups(with_dense(rows), rows):
        if key["n_seeds"]:
            share, low, high = _profile(_matrix(group, "worst"), confidence, reps)
            points = zip(TAUS, share, low, high, strict=True)
            tables += [{**key, **dict(zip(("tau", "share", "low", "high"), point, strict=True))} for point in points]
    return pd.DataFrame(tables)


def _profile(scores: Array, confidence: float, reps: int) -> tuple[Array, Array, Array]:
    if len(scores) == 1:
        share = _shares(scores, TAUS)
        return share, np.full_like(share, np.nan), np.full_like(share, np.nan)
    with seeded():
        found, intervals = library.create_performance_profile(
            {"": scores}, TAUS, custom_profile_func=_shares, reps=reps, confidence_interval_size=confidence
        )
    return found[""], intervals[""][0], intervals[""][1]


def _shares(scores: Array, taus: Array) -> Array:
    """rliable's own is a Python loop over ``taus``."""
    return np.asarray((scores[..., None] > taus).mean(axis=(0, 1)))
