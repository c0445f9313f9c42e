"""What a categorical policy's own probabilities allow: total variation exactly, and a shift that is enough and not more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, ndtr, ndtri, softmax

from sb3_prune_robust.certificates import certify
from sb3_prune_robust.certificates.divergences import categorical_tv, categorical_tv_bound
from sb3_prune_robust.certificates.events import LARGEST_CATEGORICAL, event_log_odds, event_shift, event_tv_bound
from sb3_prune_robust.certificates.noise import categorical_shift


def test_event_log_odds_by_hand():
    probabilities = np.array([[0.5, 0.3, 0.2]])
    odds = event_log_odds(np.log(probabilities))
    np.testing.assert_allclose(np.sort(expit(odds[0])), [0.2, 0.3, 0.5, 0.5, 0.7, 0.8], rtol=1e-12)


def moved_logits(rng, logits, omega, n=2000):
    """Logits whose changes span at most omega: the corners that move whole events, and random ones."""
    changes = rng.uniform(0, 1, size=(n, len(logits)))
    changes[: n // 2] = rng.random((n // 2, len(logits))) < 0.5
    return logits + omega * changes


CASES = {"seed": st.integers(0, 2**32 - 1), "k": st.integers(2, 6), "omega": st.floats(1e-6, 20), "scale": st.floats(0, 8)}


@settings(max_examples=150, deadline=None)
@given(**CASES)
def test_total_variation_is_bounded_and_attained(seed, k, omega, scale):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=k)
    bound = event_tv_bound(logits[None], np.array([omega]))[0]
    reached = categorical_tv(np.broadcast_to(logits, (2000, k)), moved_logits(rng, logits, omega)).max()
    assert reached <= bound + 1e-12 <= categorical_tv_bound(omega) + 1e-11
    assert bound <= reached * (1 + 1e-6) + 1e-9  # some corner moves the best event by exactly omega


@settings(max_examples=150, deadline=None)
@given(**CASES, threshold=st.floats(-6, 6))
def test_no_test_between_the_two_policies_is_better_than_between_the_gaussians(seed, k, omega, scale, threshold):
    """Neyman-Pearson tests of P against Q, randomised ones included: power at most that of N(0, 1) against N(d, 1)."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=k)
    shift = event_shift(logits[None], np.array([omega]))[0]
    p = softmax(logits)
    for q in softmax(moved_logits(rng, logits, omega, 40), axis=1):
        ratio = np.log(q) - np.log(p)
        accept = np.clip(0.5 + 5 * (ratio - threshold), 0, 1) if rng.random() < 0.5 else (ratio > threshold).astype(float)
        size, power = float(p @ accept), float(q @ accept)
        assert power <= ndtr(ndtri(np.clip(size, 0, 1)) + shift) + 1e-9


def test_the_shift_is_attained_and_smaller_for_confident_policies():
    odds = logit(np.array([0.5, 0.9, 0.99, 0.999]))
    logits, omega = np.stack([odds, np.zeros(4)], axis=1), np.full(4, 0.3)
    shift = event_shift(logits, omega)
    exact = np.maximum(ndtri(expit(odds + 0.3)) - ndtri(expit(odds)), ndtri(expit(odds)) - ndtri(expit(odds - 0.3)))
    np.testing.assert_allclose(shift, exact, rtol=1e-8)
    assert np.all(np.diff(shift) < 0) and shift[2] < 0.65 * categorical_shift(np.array([0.3]))[0]
    # at p = sigma(-omega / 2) the worst case over all probabilities is attained
    worst = event_shift(np.array([[-0.15, 0.0]]), np.array([0.3]))[0]
    np.testing.assert_allclose(worst, categorical_shift(np.array([0.3]))[0], rtol=1e-8)


def test_large_small_and_no_changes():
    logits = np.array([[3.0, -1.0, 0.0]] * 4)
    omega = np.array([0.0, 1e-9, 60.0, np.inf])
    shift, tv = event_shift(logits, omega), event_tv_bound(logits, omega)
    assert shift[0] == tv[0] == 0.0 and 0 < shift[1] < 1e-9 and 0 < tv[1] < 1e-9
    assert 10 < shift[2] < np.inf and shift[3] == np.inf and tv[3] <= 1.0
    many = np.zeros((1, LARGEST_CATEGORICAL + 1))
    assert event_tv_bound(many, np.array([0.4]))[0] == categorical_tv_bound(0.4)
    assert event_shift(many, np.array([0.4]))[0] == categorical_shift(np.array([0.4]))[0]


@pytest.mark.parametrize("kind", ["categorical", "multi"])
def test_methods_that_look_at_no_state_say_the_same_everywhere(build_policy, kind):
    observations = np.random.default_rng(0).normal(size=(30, 5)) * 5
    by_method = certify(build_policy(kind), observations, 0.1).by_method
    for name in ("abs", "spectral", "lipsdp"):
        assert len(set(by_method[name].tv)) == len(set(by_method[name].shift)) == 1, name
    assert len(set(by_method["crown"].tv)) > 1
    assert np.all(by_method["crown"].shift <= categorical_shift(by_method["crown"].omega) * (1 + 1e-12))
