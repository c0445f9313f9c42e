"""Certified return 3 by hand: shifts of categoricals, what is counted and what is credited, and the choice of a budget."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from sb3_prune_robust.certificates import (
    categorical_shift,
    noise_certificate,
    noise_return_bound,
    promised_bound,
    shift_offset,
    stopped_returns,
)
from sb3_prune_robust.certificates.noise import shifted_mean, shifted_probability


def test_categorical_shift_by_hand():
    assert categorical_shift([2.0])[0] == pytest.approx(2 * stats.norm.ppf(1 / (1 + math.exp(-1.0))), rel=1e-8)
    both = categorical_shift([[2.0, 0.5], [0.0, 0.5]])
    np.testing.assert_allclose(both, [math.hypot(*categorical_shift([2.0, 0.5])), categorical_shift([0.5])[0]], rtol=1e-12)


def test_categorical_shift_at_the_ends():
    assert categorical_shift([0.0, np.inf]).tolist() == [0.0, np.inf]
    tiny, large = categorical_shift([1e-12, 4000.0])
    assert tiny == pytest.approx(math.sqrt(2 * math.pi) / 4 * 1e-12, rel=1e-9)
    assert large == pytest.approx(2 * math.sqrt(2 * 2000), rel=0.01)  # -log Phi(-x) ~ x^2 / 2
    omega = np.geomspace(1e-15, 1e6, 4000)
    assert np.all(np.diff(categorical_shift(omega)) > 0)
    for bad in ([-1.0], [np.nan], [[[1.0]]]):
        with pytest.raises(ValueError, match="omega must be of shape"):
            categorical_shift(bad)


def test_categorical_shift_covers_every_event_and_is_attained():
    """Most powerful tests of random categoricals against those of ``N(0, 1)`` and ``N(d, 1)``; equal at the symmetric pair."""
    rng, least = np.random.default_rng(0), np.inf
    for _ in range(3000):
        p = rng.dirichlet(np.full(int(rng.integers(2, 7)), rng.choice([0.1, 1.0, 5.0])))
        change = rng.normal(size=len(p)) * rng.choice([0.1, 1.0, 4.0])
        if rng.random() < 0.5:
            change = np.sign(change) * np.abs(change).max()
        q = p * np.exp(change) / np.sum(p * np.exp(change))
        order = np.argsort(change)
        clean, attacked = np.cumsum(p[order])[:-1], np.cumsum(q[order])[:-1]
        least = min(least, np.min(attacked - shifted_probability(clean, categorical_shift([np.ptp(change)])[0])))
    assert -1e-12 <= least
    for omega in (0.1, 1.0, 6.0):
        attained = shifted_probability(expit(omega / 2), categorical_shift([omega])[0])
        assert attained == pytest.approx(expit(-omega / 2), rel=1e-7)


REWARDS, SHIFTS = [[1.0, 2.0, 4.0], [8.0]], [[0.3, 0.4, 1.2], [0.5]]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(0.29, [0, 0]), (0.31, [1, 0]), (0.49, [1, 0]), (0.51, [3, 8]), (1.29, [3, 8]), (1.31, [7, 8])],
)
def test_stopped_returns_by_hand(budget, expected):
    """Budgets .3, .5 and 1.3 are Pythagorean: ``sqrt(.09 + .16) = .5``, ``sqrt(.25 + 1.44) = 1.3``."""
    np.testing.assert_allclose(stopped_returns(REWARDS, SHIFTS, [True, True], budget, 1.0, horizon=3), expected)


def test_rounding_stops_rather_than_not():
    """Budgets within rounding of what an episode spends: no step counts whose squares exceed D^2 in exact arithmetic."""
    rng, counted = np.random.default_rng(0), 0
    for _ in range(300):
        shifts = rng.random(20)
        budget = math.sqrt(math.fsum(shifts**2)) * (1 + rng.choice([-1e-16, 0.0, 2e-16, 1e-9]))
        exact = sum(Fraction(d) ** 2 for d in shifts.tolist())
        whole = stopped_returns([[1.0] * 20], [shifts], [False], budget, 1.0, horizon=20)[0] == 20.0
        assert not whole or exact <= Fraction(budget) ** 2
        counted += whole
    assert counted >= 50  # the margin is far below 1e-9


def test_shift_and_credit_by_hand():
    """c = 2, T = 4, gamma = 1/2: rewards -1, -2 count 1 + 0; an own end after 2 steps is worth 2/4 + 2/8."""
    rewards, shifts = [[-1.0, -2.0]], [[0.3, 0.4]]

    def at(budget, terminated=True, horizon=4):
        return stopped_returns(rewards, shifts, [terminated], budget, 0.5, horizon, floor=-2.0)[0]

    assert at(0.6) == pytest.approx(1.75)
    assert at(0.4) == pytest.approx(1.0)  # the budget stopped it: no credit
    assert at(0.6, horizon=2) == pytest.approx(1.0)
    assert at(0.6, horizon=None) == pytest.approx(1.0 + 2 * 0.25 / 0.5)
    assert at(0.6, terminated=False, horizon=None) == pytest.approx(1.0)  # what a time limit cut off counts as the least
    assert shift_offset(0.5, 4, -2.0) == pytest.approx(3.75)
    assert shift_offset(0.5, None, -2.0) == pytest.approx(4.0)
    assert shift_offset(1.0, 4, -2.0) == pytest.approx(8.0)
    # without an adversary the shift is undone exactly: -1 - 2/2 = -2
    assert at(0.6) - shift_offset(0.5, 4, -2.0) == pytest.approx(-2.0)


def test_integral_by_hand():
    """R_D is 2 for certain but for 1 in 10, where it is 1."""
    value = shifted_mean(np.array([1.0, 2.0]), np.array([1.0, 0.9]), 0.6)
    assert value == pytest.approx(1.0 + stats.norm.cdf(stats.norm.ppf(0.9) - 0.6))
    assert shifted_probability(0.94, 0.6) == pytest.approx(0.83, abs=0.005)
    assert shifted_probability(0.94, 1.1) == pytest.approx(0.67, abs=0.01)
    assert shifted_probability([0.0, 1.0], 3.0).tolist() == [0.0, 1.0]


def test_bound_by_hand():
    """One sample of value 2 at alpha .1: P >= .05, of which a shift by 1 leaves Phi(-1.645 - 1)."""
    expected = 2 * stats.norm.cdf(stats.norm.ppf(0.05) - 1.0)
    assert noise_return_bound([2.0], 1.0, 0.1) == pytest.approx(expected, rel=1e-6)
    assert noise_return_bound([2.0], 1.0, 0.1, offset=5.0) == pytest.approx(expected - 5.0, rel=1e-6)
    result = noise_certificate([[1.0, 1.0]] * 1000, [[0.1, 0.1]] * 1000, [False] * 1000, 0.2, 1.0, 2, alpha=0.001)
    assert result.lower == pytest.approx(2 * stats.norm.cdf(stats.norm.ppf((0.0005 / 32) ** 0.001) - 0.2), rel=1e-3)
    assert (result.clean, result.budget, result.n_episodes, result.method) == (2.0, 0.2, 1000, "action-noise")
    assert result.confidence == pytest.approx(0.999)


def test_clean_return_is_that_of_the_rewards_given():
    result = noise_certificate([[-1.0], [-3.0]], [[0.0], [0.0]], [True, True], 0.0, 1.0, 5, floor=-3.0, alpha=0.5)
    assert result.clean == pytest.approx(-2.0)
    assert -15.0 <= result.lower < result.clean


def test_no_adversary_no_loss_but_the_confidence():
    samples = np.random.default_rng(0).uniform(0.9, 1.0, size=5000)
    assert 0.9 < noise_return_bound(samples, 0.0, 0.001) < samples.mean()


def long_episodes(n, rng, d=0.05, steps=100):
    """Reward 1 per step; one in twenty ends at a random step."""
    lengths = np.where(rng.random(n) < 0.05, rng.integers(1, steps, size=n), steps)
    return [np.ones(m) for m in lengths], [np.full(m, d) for m in lengths], [bool(m < steps) for m in lengths]


@pytest.mark.parametrize(("d", "whole"), [(0.01, True), (0.3, False), (1.0, False)])
def test_the_budget_chosen_is_nearly_the_best(d, whole):
    """Small shifts: the whole episode. Large ones: stop early. Against a fine search on the certifying episodes themselves."""
    calibration, certifying = (long_episodes(n, np.random.default_rng(n), d) for n in (100, 500))
    chosen, promised = promised_bound(*calibration, 1.0, 100, alpha=0.001, n_certify=500)
    bounds = {
        steps: noise_certificate(*certifying, d * math.sqrt(steps) * (1 + 1e-9), 1.0, 100, alpha=0.001).lower
        for steps in range(1, 101, 1 if d == 1.0 else 5)
    }
    reached = noise_certificate(*certifying, chosen, 1.0, 100, alpha=0.001).lower
    assert reached >= 0.95 * max(bounds.values())
    assert promised == pytest.approx(reached, rel=0.15)
    assert (chosen >= d * 10) == whole


def test_the_budget_is_chosen_for_the_episodes_to_come():
    """With 10 certifying episodes the band is so wide that a smaller budget pays: few calibration episodes do not matter."""
    calibration = long_episodes(100, np.random.default_rng(0), 0.1)
    few, many = (promised_bound(*calibration, 1.0, 100, alpha=0.001, n_certify=n)[0] for n in (10, 10_000))
    assert few != many
    with pytest.raises(ValueError, match="n_certify must be at least 1"):
        promised_bound(*calibration, 1.0, 100, n_certify=0)


def test_no_finite_budget_certifies_nothing():
    arguments = [[1.0, 1.0]] * 4, [[np.inf, 0.1]] * 4, [False] * 4
    assert promised_bound(*arguments, 1.0, 2) == (0.0, 0.0)
    assert noise_certificate(*arguments, 7.0, 1.0, 2).lower == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"floor": 0.0}, r"a reward of -1 was seen in episode 0, below the floor of 0: no certificate"),
        ({"floor": 1.0}, "floor must be finite and at most 0"),
        ({"floor": -np.inf}, "floor must be finite and at most 0"),
        ({"budget": -1.0}, "budget must be finite and not negative"),
        ({"budget": np.inf}, "budget must be finite and not negative"),
        ({"shifts": [[0.1]]}, "shifts of episode 0 must be 2 non-negative numbers"),
        ({"shifts": [[0.1, np.nan]]}, "shifts of episode 0 must be 2 non-negative numbers"),
        ({"shifts": [[0.1, -0.1]]}, "shifts of episode 0 must be 2 non-negative numbers"),
        ({"shifts": []}, "1 episodes of rewards and 0 of shifts given"),
        ({"horizon": 3, "terminated": [False]}, "episode 0 has 2 steps and is incomplete"),
        ({"gamma": 1.0, "horizon": None}, "gamma = 1 needs a horizon"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"rewards": [[-1.0, 2.0]], "shifts": [[0.1, 0.1]], "terminated": [True], "budget": 1.0, "gamma": 0.9}
    with pytest.raises(ValueError, match=message):
        stopped_returns(**{**arguments, "horizon": 2, "floor": -1.0, **change})


def test_negative_samples_are_refused():
    with pytest.raises(ValueError, match="samples must not be negative, got -1"):
        noise_return_bound([-1.0, 2.0], 0.5)


def test_a_float32_reward_at_its_floor_is_not_below_it():
    rewards = [np.array([-0.1], dtype=np.float32)]
    assert stopped_returns(rewards, [[0.0]], [False], 1.0, 1.0, 1, floor=-0.1)[0] == pytest.approx(0.0, abs=1e-7)
