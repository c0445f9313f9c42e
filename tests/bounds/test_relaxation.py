"""Lines hold on dense grids, rounding included; they are the best ones where those are known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import erfc
from torch import nn

from sb3_prune_robust.bounds.relaxation import Interval, candidates, relax
from sb3_prune_robust.network import activation_of

MODULES = {
    "Tanh": nn.Tanh(),
    "ReLU": nn.ReLU(),
    "Sigmoid": nn.Sigmoid(),
    "Softplus": nn.Softplus(),
    "ELU": nn.ELU(),
    "ELU0": nn.ELU(0.0),
    "ELU.3": nn.ELU(0.3),
    **{f"LeakyReLU{slope}": nn.LeakyReLU(slope) for slope in (0.1, 0.0, 1.0, 3.0, -0.4, -1.0, -2.0)},
    "SELU": nn.SELU(),
    "GELU": nn.GELU(),
    "SiLU": nn.SiLU(),
    "Mish": nn.Mish(),
    "Hardswish": nn.Hardswish(),
}
EXTENDED = np.longdouble
SPECIAL = [-745.0, -20.0, -3.0, -1.5, 0.0, 3.0, 20.0, 710.0]


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


# Written once more, in extended precision and from their definitions.
FORMULAS = {
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Softplus": softplus,
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "Mish": lambda x: x * np.tanh(softplus(x)),
    "GELU": lambda x: x * EXTENDED(0.5) * erfc((-x / np.sqrt(EXTENDED(2))).astype(np.float64)),
}


def values(name, x):
    activation = activation_of(MODULES[name])
    return FORMULAS.get(activation.name, activation.function)(x.astype(EXTENDED))


def intervals(n, seed):
    """Of all sizes and places; some at kinks, some points, some with the centre at an end."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=n) * 10.0 ** rng.uniform(-8, 2.5, size=n)
    width = 10.0 ** rng.uniform(-18, 3, size=n) * rng.choice([0.0, 1.0], size=n, p=[0.1, 0.9])
    share = np.where(rng.random(n) < 0.3, rng.choice([0.0, 1.0], size=n), rng.random(n))
    special = rng.choice([0, 1, 2], size=n, p=[0.7, 0.15, 0.15])  # a special point at neither end, below, above
    point = rng.choice(SPECIAL, size=n)
    lower = np.choose(special, [middle - width * share, point, point - width])
    upper = np.choose(special, [middle + width * (1 - share), point + width, point])
    place = np.where(rng.random(n) < 0.4, rng.choice([0.0, 1.0], size=n), rng.random(n))
    return lower, upper, np.clip(lower + place * (upper - lower), lower, upper)


def grid(name, lower, upper):
    """Dense, denser at the ends, and at the kinks."""
    near = 10.0 ** np.linspace(-12, -2, 30)
    share = np.concatenate([np.linspace(0, 1, 150), near, 1 - near])[:, None]
    kinks = [np.clip(k, lower, upper)[None] for k in (0.0, *activation_of(MODULES[name]).kinks)]
    return np.concatenate([np.clip(lower + share * (upper - lower), lower, upper), *kinks])


def excess(name, lines, x, centre):
    """By how much the function is outside the lines."""
    change, step = values(name, x) - values(name, centre), x.astype(EXTENDED) - centre
    (low_slope, low), (high_slope, high) = lines.lower, lines.upper
    return np.maximum(low_slope * step + low - change, change - high_slope * step - high)


def interval_of(lower, upper, centre, uncertainty=0.0):
    arrays = (np.atleast_2d(np.asarray(a, dtype=np.float64)) for a in (lower, upper, centre))
    lower, upper, centre = arrays
    return Interval(lower, upper, centre, np.full_like(centre, uncertainty))


@pytest.mark.parametrize("name", MODULES)
def test_all_lines_hold_to_the_last_bit(name):
    """No tolerance: 2,000 intervals, 200 points each, all candidates."""
    lower, upper, centre = intervals(2000, seed=0)
    activation, x = activation_of(MODULES[name]), grid(name, lower, upper)
    lines = candidates(activation, interval_of(lower, upper, centre))
    assert 2 <= len(lines) <= 3
    for pair in lines:
        outside = excess(name, pair, x, centre)
        assert np.all(outside <= 0.0), (lower[np.where(outside > 0)[1][0]], upper[np.where(outside > 0)[1][0]])
    first = relax(activation, interval_of(lower, upper, centre))
    assert np.array_equal(first.slope, lines[0].slope) and np.array_equal(first.offset_half, lines[0].offset_half)


@pytest.mark.parametrize("name", MODULES)
def test_lines_hold_for_every_centre_within_its_uncertainty(name):
    rng = np.random.default_rng(1)
    for uncertainty in (1e-9, 1e-3, 0.2):
        centre = rng.normal(scale=2.0, size=150)
        lower = centre - uncertainty - rng.exponential(size=150) * rng.choice([0, 1], size=150)
        upper = centre + uncertainty + rng.exponential(size=150) * rng.choice([0, 1], size=150)
        for pair in candidates(activation_of(MODULES[name]), interval_of(lower, upper, centre, uncertainty)):
            for true_centre in (centre - uncertainty, centre + uncertainty, centre + 0.3 * uncertainty):
                assert np.all(excess(name, pair, grid(name, lower, upper), true_centre) <= 0.0)


@pytest.mark.parametrize("name", MODULES)
def test_a_point_has_lines_of_rounding_size_only(name):
    """``l = u``: nothing but rounding, relative to the point (and ``phi(0)``), so that small balls have small bounds."""
    activation = activation_of(MODULES[name])
    point = np.concatenate([np.linspace(-30, 30, 601), 10.0 ** np.linspace(-300, -1, 60)])
    zero = abs(activation.function(np.zeros(1))[0])
    for pair in candidates(activation, interval_of(point, point, point)):
        for offset in (pair.lower[1], pair.upper[1]):
            assert np.all(np.abs(offset) <= 4e-14 * (zero + 8 * activation.lipschitz * np.abs(point)))


@pytest.mark.parametrize("name", MODULES)
def test_lines_are_close_together_on_narrow_intervals(name):
    """Their distance shrinks like the width squared, or the lines are no linear relaxation; kinks apart."""
    activation = activation_of(MODULES[name])
    centre = np.linspace(-4.0, 4.0, 403) + 0.0037
    for width in (1e-1, 1e-3):
        pair = relax(activation, interval_of(centre - width, centre + width, centre))
        smooth = np.all([np.abs(centre - kink) > width for kink in (*activation.kinks, np.inf)], axis=0)
        apart = pair.upper[1] - pair.lower[1] + np.abs(pair.upper[0] - pair.lower[0]) * width
        assert np.all(apart[0, smooth] <= 3.0 * activation.curvature * width**2 + 1e-11)


def test_relu_is_in_its_triangle():
    pairs = candidates(
        activation_of(nn.ReLU()), interval_of([-1.0, -3.0, 1.0, -2.0], [3.0, 1.0, 2.0, -1.0], [1.0, -1.0, 1.5, -1.5])
    )
    (low_slope, low), (high_slope, high) = pairs[0].lower, pairs[0].upper
    np.testing.assert_allclose(high_slope[0], [0.75, 0.25, 1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(high[0], [0.5, 0.5, 0.0, 0.0], atol=1e-12)  # 3/4 (1 + 1) - 1; 1/4 (-1 + 3) - 0
    np.testing.assert_allclose(low_slope[0], [1.0, 0.0, 1.0, 0.0], atol=1e-12)  # the longer side's
    np.testing.assert_allclose(low[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(pairs[1].lower[0][0], [0.0, 1.0, 1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(pairs[1].lower[1][0], [-1.0, -1.0, 0.0, 0.0], atol=1e-12)


def test_leaky_relu_by_hand():
    pair = relax(activation_of(nn.LeakyReLU(0.5)), interval_of(-2.0, 2.0, 0.0))
    assert [a.item() for a in (*pair.upper, *pair.lower)] == pytest.approx([0.75, 0.5, 0.5, 0.0], abs=1e-12)
    steep = relax(activation_of(nn.LeakyReLU(3.0)), interval_of(-1.0, 1.0, 0.0))  # concave: the secant below
    assert [a.item() for a in (*steep.lower, *steep.upper)] == pytest.approx([2.0, -1.0, 2.0, 0.0], abs=1e-12)


@pytest.mark.parametrize(("lower", "upper"), [(-2.0, 2.0), (-0.5, 0.4), (-4.0, 2.5), (-1.0, 1.5), (-30.0, 5.0)])
def test_tanh_tangent_through_the_end_or_at_the_midpoint(lower, upper):
    """Crossing 0, tangent at ``max(d*, midpoint)``; ``d*``, by bisection here, is that of the tangent through the end."""

    def miss(d):
        return np.tanh(d) + (1 - np.tanh(d) ** 2) * (lower - d) - np.tanh(lower)

    touch = max(brentq(miss, 0.0, upper, xtol=1e-14), 0.5 * (lower + upper))
    pair = relax(activation_of(nn.Tanh()), interval_of(lower, upper, 0.0))
    slope, height = pair.upper[0].item(), pair.upper[1].item()
    assert slope == pytest.approx(1 - np.tanh(touch) ** 2, rel=2e-3)
    assert height == pytest.approx(np.tanh(touch) - slope * touch, rel=1e-3)
    mirrored = relax(activation_of(nn.Tanh()), interval_of(-upper, -lower, 0.0))
    assert [a.item() for a in mirrored.lower] == pytest.approx([slope, -height], rel=1e-12)


def test_tanh_on_one_side_of_zero():
    pair = relax(activation_of(nn.Tanh()), interval_of([1.0, -3.0], [3.0, -1.0], [2.0, -2.0]))
    secant = (np.tanh(3.0) - np.tanh(1.0)) / 2
    np.testing.assert_allclose(pair.upper[0][0], [1 - np.tanh(2.0) ** 2, secant], rtol=1e-12)  # tangent at the midpoint
    np.testing.assert_allclose(pair.lower[0][0], [secant, 1 - np.tanh(2.0) ** 2], rtol=1e-12)
    np.testing.assert_allclose(pair.upper[1][0, 0], 0.0, atol=1e-12)
    np.testing.assert_allclose(pair.lower[1][0, 0], np.tanh(1.0) + secant - np.tanh(2.0), rtol=1e-10)


def test_tanh_takes_the_secant_where_it_lies_above():
    pair = relax(activation_of(nn.Tanh()), interval_of(-2.0, 0.1, -1.0))
    assert pair.upper[0].item() == pytest.approx((np.tanh(0.1) + np.tanh(2.0)) / 2.1, rel=1e-12)


def test_sigmoid_is_half_of_tanh_of_half():
    tanh = relax(activation_of(nn.Tanh()), interval_of(-1.0, 2.0, 0.5))
    sigmoid = relax(activation_of(nn.Sigmoid()), interval_of(-2.0, 4.0, 1.0))
    np.testing.assert_allclose(sigmoid.upper[0], tanh.upper[0] / 4, rtol=1e-12)
    np.testing.assert_allclose(sigmoid.upper[1], tanh.upper[1] / 2, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("Tanh", "Sigmoid")])
def test_wide_intervals_cost_no_more_than_the_slope_between_points_of_the_grid(name):
    """At +-1000 the curvature alone would allow 4,000 times that."""
    activation = activation_of(MODULES[name])
    pair = relax(activation, interval_of(-1000.0, 1000.0, 0.0))
    assert (pair.upper[1] - pair.lower[1]).item() <= 1000 * 2.0 * activation.lipschitz


@pytest.mark.parametrize("name", MODULES)
def test_overflow_gives_no_line_that_is_too_low(name):
    """Each end infinite or near the largest number: offsets are infinite or not a number, or the lines hold."""
    ends = np.array([-np.inf, -1e308, -1e200, -1.0, 0.0, 1.0, 1e200, 1e308, np.inf])
    lower, upper = (a.ravel() for a in np.meshgrid(ends, ends))
    lower, upper = lower[lower <= upper], upper[lower <= upper]
    centre = np.clip(0.0, lower, upper)
    with np.errstate(all="ignore"):
        for pair in candidates(activation_of(MODULES[name]), interval_of(lower, upper, centre)):
            for x in (lower, upper, centre, np.clip(-1.0, lower, upper), np.clip(1.0, lower, upper)):
                outside = excess(name, pair, x, centre)[0]
                real = np.isfinite(x) & np.isfinite(centre)
                assert not np.any(outside[real] > 0.0)


@pytest.mark.parametrize("name", MODULES)
def test_derivative_curvature_and_kinks_are_those_of_the_function(name):
    activation = activation_of(MODULES[name])
    step = 1e-4
    x = np.arange(-12.0, 12.0, step) + 0.37 * step
    slope = activation.derivative(x, activation.function(x))
    away = np.all([np.abs(x - kink) > 2 * step for kink in (*activation.kinks, np.inf)], axis=0)
    differences = (activation.function(x + step) - activation.function(x - step)) / (2 * step)
    np.testing.assert_allclose(slope[away], differences[away], atol=1e-7)
    second = np.abs(np.diff(slope)) / step
    second = second[away[1:] & away[:-1]]
    assert second.max() <= activation.curvature * (1 + 1e-9) + 1e-11
    assert second.max() >= activation.curvature * 0.99 - 1e-9  # rounded up, not guessed
    for kink in activation.kinks:
        around = np.array([kink - 1e-6, kink + 1e-6])
        jump = np.diff(activation.derivative(around, activation.function(around)))
        is_smooth = name in ("ELU", "LeakyReLU1.0")  # of slope 1 on both sides
        assert is_smooth or abs(jump[0]) > 0.1
