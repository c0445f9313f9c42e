"""The closed forms against hand-computed values and numerical integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from sb3_prune_robust.certificates import divergences as d


def numeric_tv(p, q, points):
    def gap(x):
        return 0.5 * abs(p.pdf(x) - q.pdf(x))

    return integrate.quad(gap, -40, 40, points=points, limit=400)[0]


def numeric_kl(p, q):
    return integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -15, 15, limit=400)[0]


@pytest.mark.parametrize(("mean", "std"), [(0.01, 1.0), (0.7, 0.5), (2.0, 1.5), (5.0, 0.8)])
def test_gaussian_formulas_against_integration(mean, std):
    p, q = stats.norm(0, std), stats.norm(mean, std)
    delta = mean / std
    assert d.gaussian_tv(delta) == pytest.approx(numeric_tv(p, q, [0, mean / 2, mean]), abs=1e-9)
    assert d.gaussian_kl(delta) == pytest.approx(numeric_kl(p, q), abs=1e-7)


def test_two_dimensional_gaussian_against_integration():
    mean, std = np.array([0.6, -0.9]), np.array([0.5, 1.2])
    p, q = stats.multivariate_normal([0, 0], np.diag(std**2)), stats.multivariate_normal(mean, np.diag(std**2))
    x = np.linspace(-9, 9, 1201)
    grid = np.stack(np.meshgrid(x, x), axis=-1)
    numeric = 0.5 * np.abs(p.pdf(grid) - q.pdf(grid)).sum() * (x[1] - x[0]) ** 2
    assert d.gaussian_tv(np.linalg.norm(mean / std)) == pytest.approx(numeric, abs=1e-4)


def test_gaussian_values_by_hand():
    assert d.gaussian_tv(0.0) == 0.0
    assert d.gaussian_tv(2.0) == pytest.approx(0.6826894921370859)  # 2 Phi(1) - 1
    assert d.gaussian_kl(3.0) == 4.5


def test_gaussians_of_different_std():
    """The formula for equal covariances would say 0 where the total variation is 0.32."""
    p, q = stats.norm(0, 1), stats.norm(0, 0.5)
    cross = math.sqrt(2 * math.log(2) / 3)
    tv = numeric_tv(p, q, [-cross, 0, cross])
    assert tv == pytest.approx(0.3227, abs=1e-3)
    one, half, zero = np.array([1.0]), np.array([0.5]), np.zeros((1, 1))
    forward, backward = d.diagonal_gaussian_kl(zero, one, zero, half), d.diagonal_gaussian_kl(zero, half, zero, one)
    assert forward[0] == pytest.approx(math.log(0.5) + 4 / 2 - 0.5)
    assert backward[0] == pytest.approx(numeric_kl(q, p))
    for kl in (forward[0], backward[0]):
        assert tv <= d.tv_from_kl(kl) < 1


def test_kl_of_equal_std_is_delta_squared_by_two():
    rng = np.random.default_rng(0)
    mean, other, std = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), np.array([0.5, 1.0, 2.0])
    delta = np.linalg.norm((mean - other) / std, axis=1)
    np.testing.assert_allclose(d.diagonal_gaussian_kl(mean, std, other, std), d.gaussian_kl(delta))


LOGITS = st.lists(st.floats(-8, 8), min_size=2, max_size=6)


@settings(max_examples=200, deadline=None)
@given(logits=LOGITS, data=st.data())
def test_categorical_bounds_hold(logits, data):
    change = data.draw(st.lists(st.floats(-5, 5), min_size=len(logits), max_size=len(logits)))
    z, other = np.array(logits), np.array(logits) + np.array(change)
    omega = np.ptp(other - z)
    assert d.categorical_tv(z, other) <= d.categorical_tv_bound(omega) + 1e-12
    assert d.categorical_kl(z, other) <= d.categorical_kl_bound(omega) + 1e-12
    assert d.categorical_kl(other, z) <= d.categorical_kl_bound(omega) + 1e-12


def test_categorical_tv_bound_is_attained():
    for omega in (0.1, 1.0, 4.0):
        z = np.array([-omega / 4, omega / 4])
        assert d.categorical_tv(z, -z) == pytest.approx(float(d.categorical_tv_bound(omega)))


def test_categorical_values_by_hand():
    p, q = np.log([0.5, 0.3, 0.2]), np.log([0.2, 0.3, 0.5]) + 7.0  # the shift changes nothing
    assert d.categorical_tv(p, q) == pytest.approx(0.3)
    assert d.categorical_kl(p, q) == pytest.approx(0.3 * math.log(2.5))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_products_of_categoricals(seed):
    """MultiDiscrete, by enumeration: total variation of the product within both bounds, divergences add up."""
    rng = np.random.default_rng(seed)
    z, change = [rng.normal(size=n) for n in (3, 2, 2)], [rng.normal(size=n) for n in (3, 2, 2)]
    joint = sum(np.meshgrid(*z, indexing="ij")).ravel()
    other = sum(np.meshgrid(*[a + b for a, b in zip(z, change, strict=True)], indexing="ij")).ravel()
    omega = sum(np.ptp(c) for c in change)
    each = [d.categorical_tv(a, a + b) for a, b in zip(z, change, strict=True)]
    tv = d.categorical_tv(joint, other)
    assert tv <= d.categorical_tv_bound(omega) + 1e-12
    assert max(each) - 1e-12 <= tv <= d.product_tv_bound(np.array(each)) + 1e-12
    added = sum(d.categorical_kl(a, a + b) for a, b in zip(z, change, strict=True))
    assert d.categorical_kl(joint, other) == pytest.approx(added, abs=1e-12)


def test_pinsker_and_bretagnolle_huber():
    np.testing.assert_allclose(d.tv_from_kl([0.0, 0.02, 50.0]), [0.0, 0.1, 1.0], atol=1e-10)
    assert d.tv_from_kl(3.0) == pytest.approx(math.sqrt(1 - math.exp(-3.0)))
