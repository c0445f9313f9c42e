"""No point of the ball exceeds a bound: random points, corners and PGD, for many networks and every activation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from random_networks import ACTIVATIONS, attack_points, random_network

from sb3_prune_robust.bounds import METHODS, Ball, output_interval
from sb3_prune_robust.bounds.action import groups
from sb3_prune_robust.bounds.interval import activation_interval
from sb3_prune_robust.network import activation_of


def distance(network, change):
    """What the bound `ActionChange.distance` bounds, for changes of the outputs, from its definition."""
    if network.is_gaussian:
        return np.linalg.norm(change / network.std, axis=1)[:, None]
    return np.stack([np.ptp(change[:, group], axis=1) for group in groups(network)], axis=1)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_attack_exceeds_any_bound(name, norm):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        network = random_network(seed, ["gaussian", "categorical", "multi"][seed % 3], name)
        eps = rng.choice([0.003, 0.1, 0.8]) * rng.choice([0.0, 0.5, 1.0], size=4)
        region, states = Ball.create(eps, norm, (4,)), rng.normal(size=(3, 4))
        smallest_std = network.std.min() if network.is_gaussian else 1.0
        bounds = {method: bound(network, states, region) for method, bound in METHODS.items()}
        lower, upper = output_interval(network, states, region)
        for i, state in enumerate(states):
            outputs = network(state + attack_points(network, state, region, seed))
            change = outputs - network(state[None])
            # the points themselves are rounded: 1e-13 of the sizes at hand, 1e5 times less than what a wrong bound shows
            slack = 1e-13 * (1 + np.abs(outputs).max())
            assert np.all((outputs >= lower[i] - slack) & (outputs <= upper[i] + slack))
            for method, bound in bounds.items():
                assert np.all(np.abs(change) <= bound.radius[i] + slack), method
                assert np.all(distance(network, change) <= bound.distance[i] + slack / smallest_std), method


def test_bounds_are_attained_by_a_linear_network():
    """One layer: bounds A and C are exact, so an attack reaches them and any smaller bound is wrong."""
    for norm in ("linf", "l2"):
        network = random_network(3, sizes=(4,))
        region = Ball.create([0.1, 0.2, 0.0, 0.3], norm, (4,))
        rows = network.weights[0] * region.eps
        reached = np.abs(rows).sum(axis=1) if norm == "linf" else np.linalg.norm(rows, axis=1)
        for method in ("abs", "interval"):
            radius = METHODS[method](network, np.ones((1, 4)), region).radius[0]
            np.testing.assert_allclose(radius, reached, rtol=1e-10)
            assert np.all(radius >= reached)
    euclidean = METHODS["spectral"](network, np.ones((1, 4)), region)
    np.testing.assert_allclose(euclidean.distance[0, 0], np.linalg.norm(rows / network.std[:, None], 2), rtol=1e-6)


def test_spectral_bound_is_attained_in_the_box():
    """A row of equal weights and the corner of the l_inf ball: eps n |w| = sqrt(n) eps ||w||_2, attackable inputs only."""
    network = random_network(3, sizes=(4,))
    network = type(network)((np.full((3, 4), 0.5),), network.biases, (), np.ones(3))
    change = METHODS["spectral"](network, np.ones((1, 4)), Ball.create([0.1, 0.1, 0.1, 0.0], "linf", (4,)))
    np.testing.assert_allclose(change.radius, 0.15, rtol=1e-12)
    np.testing.assert_allclose(change.distance, 0.15 * np.sqrt(3), rtol=1e-6)
    assert np.all(change.radius >= 0.15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_range_and_constant(name):
    """The interval holds a dense grid's values and its constant the grid's slopes; the interval is tight."""
    activation = activation_of(ACTIVATIONS[name])
    rng = np.random.default_rng(0)
    for _ in range(300):
        low = rng.uniform(-6, 5)
        high = low + 10.0 ** rng.uniform(-4, 0.8)
        grid = np.linspace(low, high, 2001)
        values = activation.function(grid)
        below, above = activation_interval(activation, np.array(low), np.array(high))
        assert below <= values.min() and values.max() <= above
        assert values.min() - below <= 1e-3 * (high - low)
        assert above - values.max() <= 1e-13
        assert np.max(np.abs(np.diff(values)) / np.diff(grid)) <= activation.lipschitz * (1 + 1e-9)


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if np.isfinite(activation_of(ACTIVATIONS[n]).argmin)])
def test_argmin_is_where_the_activation_is_smallest(name):
    """To rounding: an interval's lower end rests on it."""
    activation = activation_of(ACTIVATIONS[name])
    around = activation.argmin + np.linspace(-1e-3, 1e-3, 20001)
    lowest = activation.function(np.array([activation.argmin]))[0]
    assert lowest <= activation.function(around).min() + 1e-15


def exact_output(network, state):
    """The output of a ReLU network in rational arithmetic."""
    hidden = [Fraction(float(x)) for x in state]
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        hidden = [
            sum((Fraction(float(w)) * h for w, h in zip(row, hidden, strict=True)), Fraction(float(b)))
            for row, b in zip(weight, bias, strict=True)
        ]
        if layer < len(network.activations):
            hidden = [max(h, Fraction(0)) for h in hidden]
    return hidden


@pytest.mark.parametrize("sizes", [(5,), (4, 9), (4, 9, 7)])
def test_interval_encloses_the_exact_output_and_not_much_more(sizes):
    for seed in range(30):
        network = random_network(seed, activation="ReLU", sizes=sizes)
        state = np.random.default_rng(seed).normal(size=sizes[0])
        lower, upper = output_interval(network, state[None])
        for low, exact, high in zip(lower[0], exact_output(network, state), upper[0], strict=True):
            assert Fraction(float(low)) <= exact <= Fraction(float(high))
        assert np.all(upper - lower <= 1e-11 * (1 + np.abs(lower)))


def test_radius_is_not_the_half_width():
    """ReLU at a state where it is flat: the interval is [0, 0.5], its half-width 0.25, the change 0.5."""
    network = random_network(0, activation="ReLU", sizes=(1, 1))
    network = type(network)((np.ones((1, 1)), np.ones((3, 1))), (np.zeros(1), np.zeros(3)), network.activations, network.std)
    change = METHODS["interval"](network, np.array([[-0.5]]), Ball.create(1.0, "linf", (1,)))
    np.testing.assert_allclose(change.radius, 0.5, rtol=1e-12)


def test_no_budget_no_change():
    network, region = random_network(1), Ball.create(0.0, "linf", (4,))
    for method in ("abs", "spectral"):
        assert np.all(METHODS[method](network, np.ones((2, 4)), region).radius == 0.0)
    assert np.all(METHODS["interval"](network, np.ones((2, 4)), region).radius < 1e-11)


def test_overflow_is_no_bound_and_never_a_number():
    network = random_network(1)
    huge = type(network)(tuple(w * 1e200 for w in network.weights), network.biases, network.activations, network.std)
    with np.errstate(all="ignore"):
        for method, bound in METHODS.items():
            change = bound(huge, np.ones((2, 4)), Ball.create(0.1, "l2", (4,)))
            assert np.all(change.distance > 1e100), method
            assert not np.any(np.isnan(change.radius)), method


@pytest.mark.parametrize(
    ("eps", "norm", "message"),
    [
        (-0.1, "linf", "eps must be finite and >= 0, got -0.1"),
        (np.nan, "linf", "eps must be finite"),
        (np.inf, "l2", "eps must be finite"),
        ([0.1, 0.2], "linf", r"eps must be a number or an array of shape \(4,\), got shape \(2,\)"),
        ("small", "linf", "eps must be a number"),
        (0.1, "l1", "norm must be one of 'linf', 'l2'; got 'l1'"),
    ],
)
def test_bad_balls(eps, norm, message):
    with pytest.raises(ValueError, match=message):
        Ball.create(eps, norm, (4,))
