"""Means with confidence intervals. Everything here is arithmetic on arrays of returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[Any]

# Below this many values the bootstrap's intervals are too short (its distribution has no tails to speak of).
MIN_BOOTSTRAP = 10
N_RESAMPLES = 4999


@dataclass(frozen=True)
class Interval:
    """
    A mean and its two-sided confidence interval.

    :param mean: the mean
    :param low: lower end; ``None`` when one value alone gives no interval
    :param high: upper end; ``None`` likewise
    :param n: number of independent values (episodes, or agents where there are several)
    :param confidence: the level, e.g. 0.95
    :param method: ``"bca"``, ``"t"`` or ``"none"``
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    confidence: float
    method: str


def t_interval(values: Array, confidence: float = 0.95) -> Interval:
    """
    Student's interval of a mean.

    :param values: independent values, shape ``(n,)``
    :param confidence: level in (0, 1)
    :return: the interval; without ends when ``n`` is 1
    """
    values = _checked(values, confidence)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, None, None, len(values), confidence, "none")
    quantile = stats.t.ppf(0.5 + confidence / 2, len(values) - 1)
    half = float(quantile * values.std(ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half, len(values), confidence, "t")


def mean_interval(values: Array, confidence: float = 0.95) -> Interval:
    """
    Interval of a mean: bias-corrected accelerated bootstrap (Efron 1987) from ten values on, else Student's.

    :param values: independent values, shape ``(n,)``
    :param confidence: level in (0, 1)
    :return: the interval; without ends when ``n`` is 1
    """
    values = _checked(values, confidence)
    if len(values) < MIN_BOOTSTRAP or np.ptp(values) == 0:
        return t_interval(values, confidence)
    result = stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=N_RESAMPLES, method="BCa", random_state=_seed(values)
    )
    low, high = (float(end) for end in result.confidence_interval)
    if not (math.isfinite(low) and math.isfinite(high)):  # BCa is undefined when resamples hardly differ
        return t_interval(values, confidence)
    return Interval(float(values.mean()), low, high, len(values), confidence, "bca")


def _seed(values: Array) -> np.random.Generator:
    """The same values give the same interval, whatever was computed before."""
    return np.random.default_rng(len(values))


def _checked(values: Array, confidence: float) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values must be a non-empty vector of finite numbers, got {values!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence!r}")
    return values


def minimum_gain(
    clean: Array,
    attacked: Array,
    base_clean: Array,
    base_attacked: Array,
    weights: tuple[float, float],
    confidence: float,
) -> Interval:
    """
    Interval for the paired gain of ``v clean + w min_a attacked_a`` of one agent over a base agent.

    The minimum is over the means, and which attack attains it is not known: for any attack ``b`` of the base,
    ``gain >= min_a E[v (clean - base_clean) + w (attacked_a - base_attacked_b)]`` (``w >= 0``), and conversely with the
    roles of agent and base exchanged. So ``low = max_b min_a low_ab`` and ``high = min_a max_b high_ab`` over the paired
    Student intervals; the choice of ``b`` (of ``a``) among all attacks is paid for by Bonferroni's correction.

    :param clean: the agent's clean returns, shape ``(n,)``: one for each episode, or for each seed of the agent
    :param attacked: its returns under each attack, shape ``(n_attacks, n)``
    :param base_clean: the base's, paired with ``clean``
    :param base_attacked: the base's, shape ``(n_base_attacks, n)``
    :param weights: ``(v, w)``
    :param confidence: level in (0, 1)
    :return: the interval
    """
    v, w = weights
    if w < 0:
        raise ValueError(f"weights: the worst attack's weight must not be negative, got {w!r}")
    level = 1 - (1 - confidence) / max(len(attacked), len(base_attacked))
    rest = v * (np.asarray(clean) - np.asarray(base_clean))
    pairs = [[t_interval(rest + w * (row - base), level) for base in base_attacked] for row in attacked]
    means = np.array([[pair.mean for pair in row] for row in pairs])
    mean = float(means.max(axis=1).min())
    if pairs[0][0].low is None:
        return Interval(mean, None, None, 1, confidence, "none")
    lows = np.array([[pair.low for pair in row] for row in pairs])
    highs = np.array([[pair.high for pair in row] for row in pairs])
    return Interval(mean, float(lows.min(axis=0).max()), float(highs.max(axis=1).min()), len(rest), confidence, "t")
