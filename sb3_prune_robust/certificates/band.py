"""A lower confidence band on a survival function ``x -> P(X >= x)``, from samples: no assumption on their distribution."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtr, ndtri

from sb3_prune_robust.certificates.confidence import check_alpha
from sb3_prune_robust.network import Array

# Number of ranks with a bound of their own; fixed beforehand, as the union bound over them requires.
_N_RANKS = 32
# Many times what `betaincinv` and the arithmetic around it lose, and nothing against the width of a band.
_ROUNDING = 1e-9


def survival_band(samples: npt.ArrayLike, alpha: float) -> tuple[Array, Array]:
    """
    ``P(X >= thresholds[j]) >= probabilities[j]`` for all ``j`` at once, with probability at least ``1 - alpha``.

    The larger of two bands that fail with probability at most ``alpha / 2`` each, ``X_(k)`` the ``k``-th smallest of ``n``:

        P(X >= X_(k)) >= (n - k + 1) / n - sqrt(ln(2 / alpha) / (2 n))                        for every k
        P(X >= X_(k)) >= a-quantile of Beta(n - k + 1, k),  a = alpha / (2 K)                  for each of K fixed ranks k

    The first is Dvoretzky, Kiefer and Wolfowitz's with Massart's constant (one-sided, 1990). The second is exact for each
    rank: with ``F`` continuous ``P(X >= X_(k))`` IS a ``Beta(n - k + 1, k)`` variable, with atoms it is stochastically larger.
    It is there for the tails, where returns that are nearly always reached lie, and which a shift by ``D`` standard deviations
    magnifies: with 1,000 samples and alpha = .001 the first says .938 of the smallest one, the second .989.

    :param samples: independent and identically distributed, any order, shape ``(n,)``
    :param alpha: probability that the band fails, in ``(0, 0.5]``
    :return: thresholds, ascending (with ties if samples are tied), and probabilities, descending; both of shape ``(n,)``
    :raises ValueError: for no samples, samples that are not finite, or another ``alpha``
    """
    thresholds = np.sort(np.asarray(samples, dtype=np.float64))
    if thresholds.ndim != 1 or len(thresholds) == 0 or not np.all(np.isfinite(thresholds)):
        raise ValueError(f"samples must be a non-empty vector of finite numbers, got shape {thresholds.shape}")
    check_alpha(alpha)
    n = len(thresholds)
    probabilities = np.maximum(_uniform_band(n, alpha / 2.0), _rank_band(n, alpha / 2.0))
    return thresholds, np.maximum(probabilities - _ROUNDING * np.minimum(probabilities, 1.0 - probabilities), 0.0)


def _uniform_band(n: int, alpha: float) -> Array:
    return np.arange(n, 0, -1) / n - math.sqrt(math.log(1.0 / alpha) / (2.0 * n))


def _rank_band(n: int, alpha: float) -> Array:
    """Between the ranks: ``P(X >= x)`` falls with ``x``, so that a threshold has the bound of the next rank above it."""
    ranks = _fixed_ranks(n)
    band = np.zeros(n)
    band[ranks - 1] = betaincinv(n - ranks + 1, ranks, alpha / len(ranks))
    return np.maximum.accumulate(band[::-1])[::-1]


def _fixed_ranks(n: int) -> npt.NDArray[np.int64]:
    """A function of ``n`` alone: evenly spaced normal quantiles, from the smallest sample to just beyond the median."""
    levels = ndtr(np.linspace(ndtri(1.0 / (n + 1)), 0.5, _N_RANKS))
    return np.unique(np.clip(np.ceil(n * levels), 1, n).astype(np.int64))
