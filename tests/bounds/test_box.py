"""The maximum of ``||M x||`` over the box: never below brute force, equal to it for few inputs, close to it for many."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_prune_robust.bounds.box import MAX_ENUMERATED, box_norm_bound, box_quadratic_bound

SEEDS = st.integers(0, 2**32 - 1)


def random_matrix(seed, m, n):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, n)) * np.exp(-rng.choice([0.0, 2.0, 12.0]) * rng.random(n)) * (rng.random((m, n)) < 0.8)


def brute_force(matrix):
    corners = np.array(list(product([-1.0, 1.0], repeat=matrix.shape[1])))
    return np.linalg.norm(corners @ matrix.T, axis=1).max()


def local_search(matrix, seed, n_starts=60):
    """Corners improved by single flips: from below."""
    gram, corners = matrix.T @ matrix, np.sign(np.random.default_rng(seed).normal(size=(n_starts, matrix.shape[1])))
    for _ in range(100):
        gain = np.diag(gram) - corners * (corners @ gram)
        best = gain.argmax(axis=1)
        rises = gain[np.arange(n_starts), best] > 1e-12
        corners[rises, best[rises]] *= -1.0
    return np.linalg.norm(corners @ matrix.T, axis=1).max()


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, m=st.integers(1, 6), n=st.integers(1, 10), shift=st.integers(-80, 80))
def test_few_inputs_are_exact_and_rounded_up(seed, m, n, shift):
    matrix = random_matrix(seed, m, n) * 10.0**shift
    exact = brute_force(matrix)
    assert exact * (1 - 1e-14) <= box_norm_bound(matrix) <= exact * (1 + 1e-11)
    assert exact**2 * (1 - 1e-14) <= box_quadratic_bound(matrix.T @ matrix) <= exact**2 * (1 + 1e-11)


@pytest.mark.parametrize("n", [3, 6])
def test_not_below_the_maximum_in_rational_arithmetic(n):
    for seed in range(40):
        matrix = np.random.default_rng(seed).normal(size=(2, n))
        gram = (matrix.T @ matrix + (matrix.T @ matrix).T) / 2
        norms, squares = [], []
        for corner in product([-1, 1], repeat=n):
            norms.append(sum(sum(Fraction(a) * x for a, x in zip(row, corner, strict=True)) ** 2 for row in matrix.tolist()))
            squares.append(sum(Fraction(gram[i, j]) * corner[i] * corner[j] for i in range(n) for j in range(n)))
        assert Fraction(float(box_norm_bound(matrix))) ** 2 >= max(norms)
        assert Fraction(float(box_quadratic_bound(gram))) >= max(squares)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, m=st.integers(2, 8), n=st.integers(MAX_ENUMERATED + 1, 15))
def test_many_inputs_are_bounded_within_the_shor_ratio(seed, m, n):
    matrix = random_matrix(seed, m, n)
    exact = brute_force(matrix)
    for bound in (box_norm_bound(matrix), np.sqrt(box_quadratic_bound(matrix.T @ matrix))):
        assert exact * (1 - 1e-14) <= bound <= exact * np.sqrt(np.pi / 2)


@pytest.mark.parametrize(("m", "n"), [(2, 13), (6, 17), (8, 27)])
def test_the_dual_bound_is_close_to_local_search_and_below_the_simple_bounds(m, n):
    matrices = np.random.default_rng(0).normal(size=(40, m, n))
    bounds = box_norm_bound(matrices)
    found = np.array([local_search(matrix, 1) for matrix in matrices])
    assert np.all(bounds >= found)
    assert np.mean(bounds / found) < 1.05
    assert np.all(bounds <= np.linalg.norm(np.abs(matrices).sum(axis=2), axis=1) * (1 + 1e-12))
    assert np.all(bounds <= np.sqrt(n) * np.linalg.norm(matrices, 2, axis=(1, 2)) * (1 + 1e-12))


def test_one_row_is_its_l1_norm():
    rows = np.random.default_rng(0).normal(size=(5, 1, 40))
    exact = np.abs(rows).sum(axis=(1, 2))
    assert np.all(box_norm_bound(rows) >= exact)
    np.testing.assert_allclose(box_norm_bound(rows), exact, rtol=1e-12)


def test_by_hand():
    """Equal columns add up; orthogonal ones do not care for signs, so that the maximum is the root of the sum of squares."""
    assert box_norm_bound(np.array([[1.0, 2.0], [1.0, 2.0]])) == pytest.approx(3 * np.sqrt(2), rel=1e-12)
    assert box_norm_bound(np.diag([3.0, 4.0])) == pytest.approx(5.0, rel=1e-12)
    assert box_norm_bound(np.eye(20)) == pytest.approx(np.sqrt(20), rel=1e-6)
    assert box_quadratic_bound(np.ones((20, 20))) == pytest.approx(400.0, rel=1e-6)


@pytest.mark.parametrize("n", [5, 17])
def test_batches_zeros_and_overflow(n):
    matrices = np.random.default_rng(0).normal(size=(3, 4, 2, n))
    matrices[0, 0], matrices[0, 1, 0, 0], matrices[0, 2, 0, 0], matrices[0, 3] = 0.0, np.nan, np.inf, 1e308
    bounds = box_norm_bound(matrices)
    assert bounds.shape == (3, 4)
    np.testing.assert_array_equal(bounds[0], [0.0, np.inf, np.inf, np.inf])
    np.testing.assert_allclose(bounds[1, 2], box_norm_bound(matrices[1, 2]), rtol=1e-12)
    grams = matrices[1].swapaxes(1, 2) @ matrices[1]
    np.testing.assert_allclose(np.sqrt(box_quadratic_bound(grams)), bounds[1], rtol=1e-3)
    assert box_norm_bound(matrices[1:, :0]).shape == (2, 0)
    assert box_norm_bound(matrices[2, 2] * 1e-160) == pytest.approx(bounds[2, 2] * 1e-160, rel=1e-9)


def test_memory_chunks_do_not_change_the_result(monkeypatch):
    matrices = np.random.default_rng(0).normal(size=(9, 3, 8))
    whole = box_norm_bound(matrices)
    monkeypatch.setattr("sb3_prune_robust.bounds.box._CHUNK", 2**8)
    np.testing.assert_allclose(box_norm_bound(matrices), whole, rtol=1e-14)
