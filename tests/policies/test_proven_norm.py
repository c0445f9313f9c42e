"""Norms of large layers after a step: never too low, and at most 0.1 % too high."""

import numpy as np
import pytest
import torch as th

from sb3_prune_robust.layers import LipschitzProjection, _ProvenNorm


def exact(weight):
    return np.linalg.svd(weight.numpy().astype(np.float64), compute_uv=False)[0]


@pytest.mark.parametrize("shape", [(80, 80), (72, 300), (300, 72)])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_an_upper_bound_and_a_tight_one_through_many_steps(shape, seed):
    generator = th.Generator().manual_seed(seed)
    weight, measure = th.randn(shape, generator=generator), _ProvenNorm()
    for _ in range(30):
        norm = measure(weight)
        assert exact(weight) * (1 - 1e-5) <= norm <= exact(weight) * (1 + 1.1e-3)
        weight += 0.05 * th.randn(shape, generator=generator)


def test_an_estimate_that_falls_short_is_not_believed():
    weight = th.diag(th.arange(1.0, 81.0))
    measure = _ProvenNorm()
    measure._vector = th.eye(80)[3]  # an eigenvector, but not the largest one's: power iterations never leave it
    assert measure(weight) == pytest.approx(80.0, rel=1e-4)


def test_layers_of_zeros_and_what_comes_after_them():
    measure = _ProvenNorm()
    assert measure(th.zeros(80, 80)) == 0.0
    assert measure(3 * th.eye(80)) == pytest.approx(3.0, rel=1.1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_reported(bad):
    weight = th.randn(80, 80)
    projection = LipschitzProjection([weight], 1.0, proven=True)
    projection.project()
    weight[2, 3] = bad
    with pytest.raises(ValueError, match=r"NaN or infinite: training has diverged"):
        projection.after_step()
