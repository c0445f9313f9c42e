"""The confidence band on a survival function: how often it fails, and how tight it is where returns lie."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sb3_prune_robust.certificates import survival_band
from sb3_prune_robust.certificates.noise import shifted_mean


def reached(law, x):
    """``P(X >= x)``, atoms included."""
    return law.sf(x) + (law.pmf(x) if hasattr(law.dist, "pmf") else 0.0)


LAWS = {
    "uniform": stats.uniform(),
    "heavy tail": stats.pareto(0.7),
    "two atoms": stats.bernoulli(0.9),
    "many ties": stats.binom(6, 0.7),
    "rarely small": stats.beta(8.0, 0.3),
}


@pytest.mark.parametrize("n", [3, 40, 300])
@pytest.mark.parametrize("name", LAWS)
def test_the_band_fails_no_more_often_than_stated(name, n):
    law, alpha, trials = LAWS[name], 0.2, 800
    samples = law.rvs(size=(trials, n), random_state=np.random.default_rng(n))
    failures = 0
    for row in samples:
        thresholds, probabilities = survival_band(row, alpha)
        failures += bool(np.any(reached(law, thresholds) < probabilities))
    assert failures <= stats.binom(trials, alpha).ppf(0.9999)
    if name == "uniform":  # not by being vacuous: the union bound over dependent ranks costs a factor of a few, no more
        assert failures >= alpha / 8 * trials


@pytest.mark.parametrize("k", [1, 5, 30])
def test_the_bound_of_one_rank_is_exact(k):
    """``P(X >= X_(k))`` of a continuous law falls below the Beta quantile with probability alpha, not only at most."""
    from scipy.special import betaincinv

    n, alpha, trials = 40, 0.1, 20_000
    ordered = np.sort(np.random.default_rng(k).random((trials, n)), axis=1)
    fails = np.mean(1.0 - ordered[:, k - 1] < betaincinv(n - k + 1, k, alpha))
    assert abs(fails - alpha) < 4 * math.sqrt(alpha * (1 - alpha) / trials)


def test_by_hand():
    """One sample: it is exceeded by a like one with probability a at least, but for probability a. One rank only."""
    thresholds, probabilities = survival_band([3.0], 0.1)
    assert thresholds.tolist() == [3.0]
    assert probabilities[0] == pytest.approx(0.05)
    assert probabilities[0] < 0.05  # rounded down
    thresholds, probabilities = survival_band(np.arange(1000)[::-1], 0.001)
    assert np.all(np.diff(thresholds) == 1) and np.all(np.diff(probabilities) <= 0)
    assert probabilities[0] == pytest.approx((0.0005 / 32) ** 0.001, rel=1e-3)
    assert probabilities[500] == pytest.approx(0.5 - math.sqrt(math.log(2000) / 2000), rel=1e-6)


def dkw(samples, alpha):
    n = len(samples)
    return np.sort(samples), np.maximum(np.arange(n, 0, -1) / n - math.sqrt(math.log(1 / alpha) / (2 * n)), 0.0)


@pytest.mark.parametrize("budget", [0.3, 0.6, 1.5])
def test_tighter_than_dkw_where_returns_lie(budget):
    """Episodes that reach the cap but for 3 in 100; returns that vary by 15 %; and what a spread-out return loses at most."""
    rng, n, alpha = np.random.default_rng(0), 1000, 0.001
    capped, normal = np.where(rng.random(n) < 0.03, rng.random(n), 1.0), rng.normal(1.0, 0.15, size=n).clip(0.0)
    for samples in (capped, normal):
        ours, theirs = shifted_mean(*survival_band(samples, alpha), budget), shifted_mean(*dkw(samples, alpha), budget)
        truth = shifted_mean(np.sort(samples), np.arange(n, 0, -1) / n, budget)
        assert ours < truth
        assert truth - ours < 0.75 * (truth - theirs)
    spread = rng.random(n)
    assert shifted_mean(*survival_band(spread, alpha), budget) > 0.985 * shifted_mean(*dkw(spread, alpha), budget)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0.05), "samples must be a non-empty vector of finite numbers"),
        (([np.nan], 0.05), "samples must be a non-empty vector of finite numbers"),
        (([1.0], 0.6), r"alpha must be in \(0, 0.5\]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        survival_band(*arguments)
