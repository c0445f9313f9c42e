"""Certified return 2 by hand: likelihood ratios, their products, the credit after an own end, and the cap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sb3_prune_robust.certificates import (
    categorical_log_ratio,
    gaussian_log_ratio,
    likelihood_return_bound,
    likelihood_samples,
)


def test_gaussian_ratio_by_hand():
    """z = (3, 4): by the norm 5 * .2 + .02; by dimensions 3 * .1 + .005 + 4 * .1 + .005."""
    z = [[3.0, 4.0]]
    np.testing.assert_allclose(gaussian_log_ratio(z, [0.2], [[1.0, 1.0]]), [-1.02])
    np.testing.assert_allclose(gaussian_log_ratio(z, [0.2], [[0.1, 0.1]]), [-0.71])
    assert gaussian_log_ratio(z, [0.0], [[0.0, 0.0]])[0] == 0.0
    assert gaussian_log_ratio(z, [np.inf], [[0.1, 0.1]])[0] == pytest.approx(-0.71)
    assert gaussian_log_ratio([[0.0, 0.0]], [np.inf], [[np.inf, 0.0]])[0] == -np.inf


def test_gaussian_ratio_is_a_bound_and_attained():
    rng = np.random.default_rng(0)
    for dim in (1, 3):
        z, radius = rng.normal(size=(200, dim)), rng.uniform(0.0, 0.5, size=(200, dim))
        delta = rng.uniform(0.3, 1.0, size=200) * np.linalg.norm(radius, axis=1)
        bound = gaussian_log_ratio(z, delta, radius)
        for worst in (-np.sign(z) * radius, *(rng.uniform(-1, 1, size=(60, 200, dim)) * radius)):
            u = worst * np.minimum(1.0, delta / np.linalg.norm(worst, axis=1))[:, None]
            ratio = stats.norm.logpdf(z - u).sum(axis=1) - stats.norm.logpdf(z).sum(axis=1)
            assert np.all(bound <= ratio + 1e-12)
    u = -np.sign(z[:, :1]) * radius[:, :1]
    exact = stats.norm.logpdf(z[:, :1] - u)[:, 0] - stats.norm.logpdf(z[:, :1])[:, 0]
    np.testing.assert_allclose(gaussian_log_ratio(z[:, :1], radius[:, 0], radius[:, :1]), exact, atol=1e-12)


def test_categorical_ratio_by_hand():
    """p = 1/4, e^omega = 3: 1 / (1/4 + 9/4) = .4; two groups multiply."""
    log_p, omega = np.log([[0.25, 0.5]]), np.log([[3.0, 2.0]])
    np.testing.assert_allclose(np.exp(categorical_log_ratio(log_p[:, :1], omega[:, :1])), [0.4])
    np.testing.assert_allclose(np.exp(categorical_log_ratio(log_p, omega)), [0.4 / 1.5])


def test_categorical_ratio_at_the_ends():
    assert categorical_log_ratio([[0.0]], [[5.0]])[0] == 0.0  # an action that is certain, and remains so
    assert categorical_log_ratio([[-1.0]], [[0.0]])[0] == 0.0
    assert categorical_log_ratio([[-1.0]], [[np.inf]])[0] == -np.inf
    assert categorical_log_ratio([[-1e-3]], [[5000.0]])[0] == pytest.approx(-5000.0)
    assert categorical_log_ratio([[-1e-12]], [[1.0]])[0] == pytest.approx(-np.expm1(1.0) * 1e-12, rel=1e-3)


def test_categorical_ratio_is_a_bound_and_attained():
    rng, closest = np.random.default_rng(0), np.inf
    for _ in range(2000):
        p, change = rng.dirichlet(np.ones(3)), rng.normal(size=3) * rng.choice([0.1, 3.0])
        if rng.random() < 0.5:
            change = np.array([0.0, 1.0, 1.0]) * abs(change[0])
        q = p * np.exp(change) / np.sum(p * np.exp(change))
        bound = categorical_log_ratio(np.log(p)[:, None], np.full((3, 1), np.ptp(change)))
        assert np.all(bound <= np.log(q / p) + 1e-12)
        closest = min(closest, float(np.min(np.log(q / p) - bound)))
    assert closest < 1e-7


def test_samples_by_hand():
    """Ratios 1/2 and 1/4: 1 / 2 + gamma 2 / 8. With c = 1: 2 / 2 + gamma 3 / 8, and 2 steps of c after the end, times 1/8."""
    rewards, ratios = [[1.0, 2.0]], [np.log([0.5, 0.25])]
    assert likelihood_samples(rewards, ratios, [True], 0.5, 4)[0] == pytest.approx(0.5 + 0.125)
    assert likelihood_samples(rewards, ratios, [True], 0.5, 4, floor=-1.0)[0] == pytest.approx(
        1 + 3 / 16 + (1 / 4 + 1 / 8) / 8
    )
    assert likelihood_samples(rewards, ratios, [True], 0.5, None, floor=-1.0)[0] == pytest.approx(1 + 3 / 16 + 0.5 / 8)
    assert likelihood_samples(rewards, ratios, [False], 0.5, None, floor=-1.0)[0] == pytest.approx(1 + 3 / 16)
    assert likelihood_samples(rewards, [[0.0, -np.inf]], [True], 1.0, 9, floor=-1.0)[0] == pytest.approx(2.0)


def test_bound_by_hand():
    """All samples at the top of their range: the betting bound of one sample 1 at alpha 1/2 is 3/7."""
    result = likelihood_return_bound([[1.0, 1.0]], [[0.0, 0.0]], [False], 1.0, 2, high=1.0, alpha=0.5)
    assert result.lower == pytest.approx(2 * 3 / 7, rel=1e-6)
    assert (result.clean, result.n_episodes, result.method, result.budget) == (2.0, 1, "likelihood-ratio", None)
    capped = likelihood_return_bound([[1.0, 1.0]], [[0.0, 0.0]], [False], 1.0, 2, cap=0.7, alpha=0.5)
    assert capped.lower == pytest.approx(0.7 * 3 / 7, rel=1e-6)
    shifted = likelihood_return_bound([[-1.0, 1.0]], [[0.0, 0.0]], [False], 1.0, 2, floor=-1.0, high=1.0, alpha=0.5)
    assert shifted.lower < shifted.clean == 0.0


def test_where_all_rewards_are_negative_the_largest_payment_is_that_of_an_ended_episode():
    """-1 per step, ended after 1 of 10: the shifted return is 9, not ``(high - floor) T = 0``, and J >= -1 nearly."""
    n = 2000
    result = likelihood_return_bound([[-1.0]] * n, [[0.0]] * n, [True] * n, 1.0, 10, floor=-1.0, high=-1.0)
    assert -2.0 - 0.05 < result.lower <= -1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"floor": 0.0}, r"a reward of -1 was seen in episode 0, below the floor of 0"),
        ({"floor": 0.5}, "floor must be finite and at most 0"),
        ({"high": None}, "high or cap must be given"),
        ({"cap": np.inf}, "cap must be finite and not negative"),
        ({"log_ratios": [[0.1, 0.0]]}, "log_ratios of episode 0 must be 2 numbers <= 0"),
        ({"log_ratios": [[0.0]]}, "log_ratios of episode 0 must be 2 numbers <= 0"),
        ({"log_ratios": [[np.nan, 0.0]]}, "log_ratios of episode 0 must be 2 numbers <= 0"),
        ({"log_ratios": []}, "1 episodes of rewards and 0 of log_ratios given"),
        ({"alpha": 0.7}, r"alpha must be in \(0, 0.5\]"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"rewards": [[-1.0, 2.0]], "log_ratios": [[0.0, -0.1]], "terminated": [True], "gamma": 0.9, "horizon": 2}
    with pytest.raises(ValueError, match=message):
        likelihood_return_bound(**{**arguments, "floor": -1.0, "high": 2.0, **change})


def test_bad_ratios():
    with pytest.raises(ValueError, match="noise, delta and radius must be"):
        gaussian_log_ratio([[1.0]], [0.1], [[0.1, 0.1]])
    with pytest.raises(ValueError, match="noise must be finite, delta and radius not negative"):
        gaussian_log_ratio([[1.0]], [np.nan], [[0.1]])
    with pytest.raises(ValueError, match="log_prob and omega must both be of shape"):
        categorical_log_ratio([-1.0], [1.0])
    with pytest.raises(ValueError, match="log_prob must be at most 0 and omega not negative"):
        categorical_log_ratio([[0.1]], [[1.0]])
