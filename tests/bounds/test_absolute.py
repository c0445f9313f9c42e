"""Bound A: Theorem 1 (exactly, rounding included), its formulas, and the counterexamples around it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import pruned, random_network, with_weights

from sb3_prune_robust.bounds import METHODS, Ball, absolute_path_product, path_norm, path_radius, spectral_norm
from sb3_prune_robust.bounds.absolute import nonnegative_spectral_norm

KINDS = st.sampled_from(["gaussian", "categorical", "multi"])
NORMS = st.sampled_from(["linf", "l2"])
SEEDS = st.integers(0, 2**32 - 1)


def ball(norm="linf", eps=0.1, n=4):
    return Ball.create(eps, norm, (n,))


@settings(max_examples=150, deadline=None)
@given(kind=KINDS, norm=NORMS, seed=SEEDS, shares=st.lists(st.floats(0, 0.6), min_size=1, max_size=4), data=st.data())
def test_theorem_1_pruning_and_shrinking_never_raise_bound_a(kind, norm, seed, shares, data):
    eps = np.array(data.draw(st.lists(st.floats(0, 2), min_size=4, max_size=4)))
    network, region, state = random_network(seed, kind), ball(norm, eps), np.zeros((1, 4))
    before = METHODS["abs"](network, state, region)
    for k, share in enumerate(shares):
        factor = data.draw(st.sampled_from([1.0, 0.999, 1 - 2**-53, 0.5]))
        network = pruned(network, seed + k + 1, share, factor)
        after = METHODS["abs"](network, state, region)
        assert np.all(after.radius <= before.radius)
        assert np.all(after.distance <= before.distance)
        before = after


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, rows=st.integers(1, 6), columns=st.integers(1, 6), shift=st.integers(-300, 300))
def test_monotone_spectral_norm_is_above_the_norm_and_level_or_falling(seed, rows, columns, shift):
    rng = np.random.default_rng(seed)
    matrix = np.exp(rng.normal(scale=rng.choice([0.1, 3.0]), size=(rows, columns))) * 10.0 ** (shift / 10)
    smaller = matrix * (rng.random(matrix.shape) < rng.choice([0.5, 0.99])) * rng.choice([1.0, 1 - 2**-53])
    bound = nonnegative_spectral_norm(matrix)
    assert nonnegative_spectral_norm(smaller) <= bound
    exact = np.linalg.norm(matrix, 2)
    assert exact * (1 - 1e-14) <= bound <= exact * 1.000002


def test_monotone_spectral_norm_of_known_matrices():
    assert nonnegative_spectral_norm(np.zeros((3, 5))) == 0.0
    assert nonnegative_spectral_norm(np.array([[3.0, 4.0]])) == pytest.approx(5.0, rel=1e-12)
    assert nonnegative_spectral_norm(np.array([[1.0, 1.0], [1.0, 0.0]])) == pytest.approx((1 + 5**0.5) / 2, rel=2e-6)
    assert nonnegative_spectral_norm(np.array([[np.inf]])) == np.inf


def test_path_norm_does_not_rise_where_a_singular_value_decomposition_does():
    """Zeroing a weight too small to matter leaves the norm level, or moves LAPACK's by a rounding, up or down."""
    rng, region, rises = np.random.default_rng(0), ball("l2"), 0
    for _ in range(300):
        product = rng.random((3, 4))
        product[0, 0] = 1e-16
        less = np.where(product == 1e-16, 0.0, product)
        rises += np.linalg.norm(less, 2) > np.linalg.norm(product, 2)
        assert path_norm(less, region) <= path_norm(product, region)
    assert rises > 0


def test_path_product_by_hand():
    network = with_weights(
        random_network(0, sizes=(2, 2)),
        [np.array([[1.0, -2.0], [0.0, 3.0]]), np.array([[1.0, -1.0], [-2.0, 0.0], [0.0, 0.5]])],
    )
    region = ball("linf", [0.1, 0.2], 2)
    product = absolute_path_product(network, region)
    np.testing.assert_allclose(product, [[0.1, 1.0], [0.2, 0.8], [0.0, 0.3]], rtol=1e-12)  # |W_2| |W_1| diag(eps)
    np.testing.assert_allclose(path_radius(product, region), [1.1, 1.0, 0.3], rtol=1e-12)
    np.testing.assert_allclose(path_norm(product, region), np.sqrt(1.1**2 + 1.0 + 0.3**2), rtol=1e-12)
    euclidean = ball("l2", [0.1, 0.2], 2)
    np.testing.assert_allclose(path_radius(product, euclidean), np.sqrt([1.01, 0.68, 0.09]), rtol=1e-12)
    np.testing.assert_allclose(path_norm(product, euclidean), np.linalg.norm(product, 2), rtol=2e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_never_looser_than_the_product_of_the_layers_absolute_norms(norm):
    order = np.inf if norm == "linf" else 2
    for seed in range(30):
        network, region = random_network(seed), ball(norm, 1.0)
        product = np.prod([np.linalg.norm(np.abs(w), order) for w in network.weights])
        bound = path_radius(absolute_path_product(network, region), region).max()
        assert bound <= product * (1 + 1e-5)


def test_counterexample_zeroing_a_weight_raises_the_spectral_norm():
    assert spectral_norm(np.array([[1.0, 1.0], [1.0, -1.0]])) == pytest.approx(np.sqrt(2))
    assert spectral_norm(np.array([[1.0, 1.0], [1.0, 0.0]])) == pytest.approx((1 + np.sqrt(5)) / 2)


def test_counterexample_whitening_by_a_full_covariance_without_its_absolute_value():
    """With ``Sigma^(-1/2) P`` in place of ``|Sigma^(-1/2)| P`` the bound is 0.7 where a real change has length 1.58."""
    whitening = np.array([[1.0, -0.5], [-0.5, 1.0]])
    weight = np.array([[1.0, 0.0], [0.0, 1.0]])
    change = weight @ np.array([1.0, -1.0])  # a corner of the unit l_inf ball
    wrong = np.linalg.norm(whitening @ np.abs(weight) @ np.ones(2))
    right = np.linalg.norm(np.abs(whitening) @ np.abs(weight) @ np.ones(2))
    assert wrong < np.linalg.norm(whitening @ change) <= right


def test_counterexample_path_bound_of_a_difference_of_logits_is_not_monotone():
    rows = np.array([[1.0], [1.0]])
    pruned_rows = np.array([[1.0], [0.0]])
    assert abs(rows[0] - rows[1]).sum() < abs(pruned_rows[0] - pruned_rows[1]).sum()


def test_spectral_and_interval_bounds_are_not_monotone():
    """Known, and why only bound A carries the claim: if this ever fails the documentation is too modest."""
    rises = {"spectral": 0, "interval": 0}
    for seed in range(60):
        network, state, region = random_network(seed, activation="ReLU"), np.ones((1, 4)), ball("linf", 0.05)
        for name in rises:
            before = METHODS[name](network, state, region)
            after = METHODS[name](pruned(network, seed, 0.05), state, region)
            rises[name] += bool(np.any(after.radius > before.radius * (1 + 1e-9)))
    assert rises["spectral"] > 0
    assert rises["interval"] > 0
