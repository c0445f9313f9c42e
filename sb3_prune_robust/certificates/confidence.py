"""One-sided confidence bounds on the mean of bounded, independent samples: finite-sample, no assumption on their shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.network import Array

BETTING = "betting (Waudby-Smith and Ramdas 2024)"
# The largest share of what can be staked: below 1, so that no sample makes the wealth zero (their section 4.4).
_LARGEST_STAKE = 0.75


@dataclass(frozen=True)
class MeanBound:
    """
    A mean over episodes and its one-sided confidence bound.

    :param mean: the samples' mean, itself without guarantee
    :param bound: upper (or lower) bound on the expectation, which holds with probability ``confidence``
    :param confidence: ``1 - alpha``
    :param n_episodes: number of samples
    :param method: how the bound was made
    """

    mean: float
    bound: float
    confidence: float
    n_episodes: int
    method: str = BETTING


def upper_mean(samples: npt.ArrayLike, low: float, high: float, alpha: float = 0.05) -> MeanBound:
    """
    An upper confidence bound on an expectation.

    For a candidate mean ``m`` (samples scaled to ``[0, 1]``), ``K_n = prod_i (1 + l_i (m - x_i))`` with stakes
    ``0 <= l_i <= 0.75 / (1 - m)`` that depend on earlier samples only is a non-negative supermartingale if the expectation is
    at least ``m``, so that it reaches ``1 / alpha`` with probability at most ``alpha`` (Ville). ``K_n`` rises with ``m``: the
    bound is where it reaches ``1 / alpha``. Waudby-Smith and Ramdas 2024, JRSS B 86(1), one-sided. Never above ``high``.

    :param samples: independent and identically distributed, in the order drawn (sorting them voids the bound), shape ``(n,)``
    :param low: smallest value a sample can take
    :param high: largest value a sample can take
    :param alpha: probability that the bound fails, in ``(0, 0.5]``
    :return: the bound
    :raises ValueError: for no samples, samples outside ``[low, high]``, or another ``alpha``
    """
    array = _check_samples(samples, low, high, alpha)
    mean = float(array.mean())
    if high == low:
        return MeanBound(mean, high, 1.0 - alpha, len(array))
    scaled = np.clip((array - low) / (high - low), 0.0, 1.0)
    bound = low + (high - low) * _betting_bound(scaled, alpha)
    return MeanBound(mean, min(bound, high), 1.0 - alpha, len(array))


def lower_mean(samples: npt.ArrayLike, low: float, high: float, alpha: float = 0.05) -> MeanBound:
    """
    A lower confidence bound on an expectation: :func:`upper_mean` of the negated samples.

    :param samples: independent and identically distributed, in the order drawn, shape ``(n,)``
    :param low: smallest value a sample can take
    :param high: largest value a sample can take
    :param alpha: probability that the bound fails, in ``(0, 0.5]``
    :return: the bound
    :raises ValueError: as :func:`upper_mean`
    """
    array = _check_samples(samples, low, high, alpha)
    mirrored = upper_mean(-array, -high, -low, alpha)
    return MeanBound(-mirrored.mean, -mirrored.bound, mirrored.confidence, mirrored.n_episodes)


def _check_samples(samples: npt.ArrayLike, low: float, high: float, alpha: float) -> Array:
    array = np.asarray(samples, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"samples must be a non-empty vector, got shape {array.shape}")
    check_alpha(alpha)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"low and high must be finite with low <= high, got {low!r} and {high!r}")
    slack = 1e-9 * max(abs(low), abs(high), 1e-300)  # rounding of sums
    if not np.all((array >= low - slack) & (array <= high + slack)):
        raise ValueError(
            f"samples must lie in [low, high] = [{low:g}, {high:g}], got values from {array.min():g} to {array.max():g}: "
            "the range given is not one that holds"
        )
    return array


def check_alpha(alpha: float) -> None:
    """Refuse an ``alpha`` outside ``(0, 0.5]``."""
    if not 0 < alpha <= 0.5:
        raise ValueError(f"alpha must be in (0, 0.5], got {alpha!r}")


def _stakes(scaled: Array, alpha: float) -> Array:
    """Their predictable plug-in stakes: ``sqrt(2 ln(1/alpha) / (n v))``, ``v`` the variance of the samples seen before."""
    n = len(scaled)
    counts = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(scaled)) / (counts + 1)
    variances = (0.25 + np.cumsum(np.square(scaled - means))) / (counts + 1)
    return np.sqrt(2.0 * math.log(1.0 / alpha) / (n * np.concatenate([[0.25], variances[:-1]])))


def _betting_bound(scaled: Array, alpha: float) -> float:
    stakes, target = _stakes(scaled, alpha), math.log(1.0 / alpha)

    def reaches(m: float) -> bool:
        stake = np.minimum(stakes, _LARGEST_STAKE / (1.0 - m))
        return float(np.log1p(stake * (m - scaled)).sum()) >= target

    below, above = 0.0, 1.0
    for _ in range(50):
        middle = 0.5 * (below + above)
        below, above = (below, middle) if reaches(middle) else (middle, above)
    return above
