"""CROWN, alpha-CROWN, branch and bound: sound against attacks, equal to plain implementations, exact where that is known."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from random_networks import ACTIVATIONS, attack_points, pruned, random_network

from sb3_prune_robust.bounds import METHODS, Ball, alpha, output_interval
from sb3_prune_robust.bounds.action import distance_from_radius, groups, inverse_std
from sb3_prune_robust.bounds.crown import CHUNK, Layer, backward, linear_change
from sb3_prune_robust.bounds.exact import exact_change
from sb3_prune_robust.bounds.local import alpha_change, crown_change, interval_change, joint_norm
from sb3_prune_robust.bounds.relaxation import Interval, Lines, relax
from sb3_prune_robust.network import ActionNetwork, Network, activation_of

KINDS = ["gaussian", "categorical", "multi"]
LOCAL = {"crown": crown_change, "alpha": alpha_change}


def distance(network, change):
    """What `ActionChange.distance` bounds, from its definition."""
    if network.is_gaussian:
        return np.linalg.norm(change / network.std, axis=1)[:, None]
    return np.stack([np.ptp(change[:, group], axis=1) for group in groups(network)], axis=1)


def lead(network, state, outputs):
    """By how much the choice that is likeliest at the state is above the others, elsewhere."""
    clean, margins = network(state[None])[0], []
    for group in groups(network):
        top = clean[group].argmax()
        others = np.delete(outputs[:, group], top, axis=1)
        margins.append(outputs[:, group][:, top] - others.max(axis=1, initial=-np.inf))
    return np.stack(margins, axis=1)


def linear(rows, nvec=(), biases=None):
    """A network of one layer."""
    rows = np.asarray(rows, dtype=np.float64)
    biases = np.zeros(len(rows)) if biases is None else np.asarray(biases, dtype=np.float64)
    return ActionNetwork((rows,), (biases,), (), None if nvec else np.ones(len(rows)), nvec)


def scaled(network, factor):
    return ActionNetwork(
        tuple(w * factor for w in network.weights), network.biases, network.activations, network.std, network.nvec
    )


def cube(eps, n):
    return Ball.create(eps, "linf", (n,))


# Plain CROWN: one state, one neuron after the other, values and not changes, no rounding.


def plain_lines(activation, low, high, z):
    """Slopes and intercepts ``(s, t, S, T)``: ``s x + t <= phi(x) <= S x + T``."""
    if activation.name == "ReLU":
        if low >= 0 or high <= 0:
            return float(high > 0), 0.0, float(high > 0), 0.0
        secant = high / (high - low)
        return float(high > -low), 0.0, secant, -secant * low
    pair = relax(activation, Interval(*(np.full((1, 1), v) for v in (low, high, z, 0.0))))
    phi = activation.function(np.array([z]))[0]
    (s, t), (S, T) = ((a.item(), b.item()) for a, b in (pair.lower, pair.upper))
    return s, t + phi - s * z, S, T + phi - S * z


def plain_bounds(network, lines, state, ball, rows, bias):
    """Bounds on ``rows h + bias``, ``h`` the layer after ``lines``."""
    bounds = []
    for sign in (-1.0, 1.0):  # a lower bound is minus an upper bound of the negative
        result = []
        for row, constant in zip(sign * rows, sign * bias, strict=True):
            for layer in reversed(range(len(lines))):
                new = np.zeros(len(row))
                for j, coefficient in enumerate(row):
                    s, t, S, T = lines[layer][j]
                    new[j] = coefficient * (S if coefficient > 0 else s)
                    constant = constant + coefficient * (T if coefficient > 0 else t)
                constant = constant + np.einsum("j,j->", new, network.biases[layer])
                row = np.einsum("j,jk->k", new, network.weights[layer])
            dual = np.abs(row * ball.eps).sum() if ball.norm == "linf" else np.sqrt(((row * ball.eps) ** 2).sum())
            result.append(sign * (np.einsum("k,k->", row, state) + constant + dual))
        bounds.append(np.array(result))
    return bounds


def plain_crown(network, state, ball, rows):
    """Bounds on the change of ``rows f``."""
    lines, hidden = [], state
    for weight, bias, activation in zip(network.weights, network.biases, network.activations, strict=False):
        low, high = plain_bounds(network, lines, state, ball, weight, bias)
        z = weight @ hidden + bias
        lines.append([plain_lines(activation, *triple) for triple in zip(low, high, z, strict=True)])
        hidden = activation.function(z)
    low, high = plain_bounds(network, lines, state, ball, rows @ network.weights[-1], rows @ network.biases[-1])
    clean = rows @ network(state[None])[0]
    return low - clean, high - clean


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equals_plain_crown(name, norm):
    for seed, sizes in enumerate([(4,), (4, 6), (4, 6, 5), (4, 5, 6, 5)]):
        network, state = random_network(seed, activation=name, sizes=sizes), np.random.default_rng(seed).normal(size=4)
        ball = Ball.create([0.05, 0.2, 0.1, 0.0], norm, (4,))
        rows = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, -1.0], [-1.0, 0.0, 1.0]])
        low, high = plain_crown(network, state, ball, rows)
        below, above = linear_change(network, state[None], ball, rows).bounds(ball)
        np.testing.assert_allclose(below[0], low, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(above[0], high, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_attack_exceeds_a_bound(name, norm):
    for seed, sizes in enumerate([(4, 9), (4, 9, 7), (4, 6, 6, 5), (4, 9, 7)]):
        rng = np.random.default_rng(seed)
        network = random_network(seed, KINDS[seed % 3], name, sizes)
        eps = rng.choice([0.003, 0.1, 0.8]) * rng.choice([0.0, 0.5, 1.0], size=4)
        ball, states = Ball.create(eps, norm, (4,)), rng.normal(size=(2, 4))
        smallest_std = network.std.min() if network.is_gaussian else 1.0
        for method, bound in LOCAL.items():
            change = bound(network, states, ball)
            assert change.radius.shape == (2, network.n_outputs)
            for i, state in enumerate(states):
                outputs = network(state + attack_points(network, state, ball, seed))
                moved = outputs - network(state[None])
                slack = 1e-13 * (1 + np.abs(outputs).max())  # the points themselves are rounded
                assert np.all(np.abs(moved) <= change.radius[i] + slack), method
                assert np.all(distance(network, moved) <= change.distance[i] + slack / smallest_std), method
                if not network.is_gaussian:
                    assert np.all(lead(network, state, outputs) >= change.margin[i] - slack), method


def exact_relu_output(network, state):
    """In rational arithmetic."""
    hidden = list(state)
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        rows = [[Fraction(float(w)) for w in row] for row in weight]
        hidden = [
            sum((w * h for w, h in zip(row, hidden, strict=True)), Fraction(float(b)))
            for row, b in zip(rows, bias, strict=True)
        ]
        if layer < len(network.activations):
            hidden = [max(h, Fraction(0)) for h in hidden]
    return hidden


@pytest.mark.parametrize("eps", [0.0, 1e-14, 1e-9, 1e-3])
def test_holds_for_relu_networks_in_rational_arithmetic(eps):
    """No tolerance. Biases of 1e6 make the outputs' rounding errors 1e6 times those of their change."""
    for seed, (sizes, method) in enumerate(product([(3,), (3, 6), (3, 6, 5)], LOCAL)):
        network = random_network(seed, "categorical", "ReLU", sizes)
        biases = tuple(b * (1e6 if seed % 2 else 1.0) for b in network.biases)
        network = ActionNetwork(network.weights, biases, network.activations, None, network.nvec)
        state, ball = np.random.default_rng(seed).normal(size=3), cube(eps, 3)
        change = LOCAL[method](network, state[None], ball)
        clean = exact_relu_output(network, [Fraction(x) for x in state])
        top = max(range(5), key=clean.__getitem__)
        for signs in product([-1, 1], repeat=3):
            out = exact_relu_output(network, [Fraction(x) + s * Fraction(eps) for x, s in zip(state, signs, strict=True)])
            moved = [a - b for a, b in zip(out, clean, strict=True)]
            assert all(abs(m) <= Fraction(r) for m, r in zip(moved, change.radius[0], strict=True))
            assert max(moved) - min(moved) <= Fraction(change.distance[0, 0])
            assert out[top] - max(o for i, o in enumerate(out) if i != top) >= Fraction(change.margin[0, 0])


@pytest.mark.parametrize("eps", [1e-17, 1e-16, 1e-15])
def test_holds_where_rounding_decides_on_which_side_of_a_kink_a_state_is(eps):
    """Pre-activations that are zero but for rounding: the state may be where ReLU rises while float64 says that it is flat."""
    for seed in range(12):
        network, state = random_network(seed, "categorical", "ReLU", (3, 6)), np.random.default_rng(seed).normal(size=3)
        biases = (-(network.weights[0] @ state), network.biases[1] * 0.0)
        network = ActionNetwork(network.weights, biases, network.activations, None, network.nvec)
        clean = exact_relu_output(network, [Fraction(x) for x in state])
        # Unit vectors one at a time and no output's own rounding: what is left is the hidden layer's.
        below, above = linear_change(network, state[None], cube(eps, 3), np.eye(5)).bounds(cube(eps, 3))
        for signs in product([-1, 1], repeat=3):
            out = exact_relu_output(network, [Fraction(x) + s * Fraction(eps) for x, s in zip(state, signs, strict=True)])
            for a, b, low, high in zip(out, clean, below[0], above[0], strict=True):
                assert Fraction(low) <= a - b <= Fraction(high)


@pytest.mark.parametrize("depth", [1, 2])
def test_rounding_of_the_products_is_covered(depth):
    """Lines without errors of their own, and a product that cancels but for rounding: what is left is that of the products."""
    activation, ball = random_network(0).activations[0], cube(1.0, 1)
    for seed in range(60):
        rng, width = np.random.default_rng(seed), 20
        slopes = rng.random((depth, width))
        rows, matrices = rng.normal(size=(1, width)), [rng.normal(size=(width, width)) for _ in range(depth - 1)]
        exact = [Fraction(r) * Fraction(s) for r, s in zip(rows[0], slopes[-1], strict=True)]
        for matrix, slope in zip(reversed(matrices), slopes[-2::-1], strict=True):
            columns = [sum(e * Fraction(w) for e, w in zip(exact, column, strict=True)) for column in matrix.T]
            exact = [c * Fraction(s) for c, s in zip(columns, slope, strict=True)]
        first = rng.normal(size=width)
        first[-1] = float(-sum(e * Fraction(w) for e, w in zip(exact[:-1], first[:-1], strict=True)) / exact[-1])
        slope = sum(e * Fraction(w) for e, w in zip(exact, first, strict=True))
        weights = (first[:, None], *matrices, rows)
        layers, reach = [], np.abs(first)[None]
        for k in range(depth):
            zeros = np.zeros((1, width))
            reach = reach if k == 0 else (slopes[k - 1] * reach) @ np.abs(weights[k]).T
            lines = Lines(slopes[k][None], zeros, zeros, zeros)
            layers.append(Layer(lines, reach, Interval(-reach, reach, zeros, zeros), activation))
        plain = Network(weights, tuple(np.zeros(len(w)) for w in weights), (activation,) * depth)
        below, above = backward(plain, layers, ball, rows).bounds(ball)
        assert Fraction(below.item()) <= -abs(slope) and abs(slope) <= Fraction(above.item())
        sides = [((layer.lines.slope[:, None, :, None], np.zeros((1, 1, width, 1))),) * 2 for layer in layers]
        ones = [(np.ones((1, 1, width, 1)),) * 2] * depth
        one_way, offset = alpha._upper(plain, layers, sides, ones, rows)
        assert abs(slope) <= Fraction(np.abs(one_way).item() * (1 + 1e-15) + offset.item())


def test_relu_network_by_hand():
    """``y = relu(x) - relu(x - 1)`` around 0.5 with eps 1, ``x`` in [-0.5, 1.5].

    Triangles: ``relu(x) <= 3/4 (x + 1/2)``, ``relu(x - 1) <= 1/4 (x + 1/2)``; lower lines ``x`` (longer side) and 0. So
    ``x - (x + 1/2) / 4 <= y <= 3/4 (x + 1/2)``: between -1/2 and 3/2, while ``y(0.5) = 1/2``.
    """
    relu = random_network(0, activation="ReLU").activations[0]
    network = ActionNetwork(
        (np.array([[1.0], [1.0]]), np.array([[1.0, -1.0]])), (np.array([0.0, -1.0]), np.zeros(1)), (relu,), np.ones(1)
    )
    below, above = linear_change(network, np.array([[0.5]]), cube(1.0, 1), np.eye(1)).bounds(cube(1.0, 1))
    assert (below.item(), above.item()) == pytest.approx((-1.0, 1.0), abs=1e-12)
    np.testing.assert_allclose(crown_change(network, np.array([[0.5]]), cube(1.0, 1)).distance, 1.0, rtol=1e-6)
    assert exact_change(network, np.array([0.5]), cube(1.0, 1)).lower == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_is_exact_and_has_a_row_for_each_state(kind, norm):
    network, ball = random_network(2, kind, sizes=(4,)), Ball.create([0.1, 0.2, 0.0, 0.3], norm, (4,))
    rows, states = network.weights[0] * ball.eps, np.random.default_rng(0).normal(size=(CHUNK + 3, 4))
    for bound in LOCAL.values():
        change = bound(network, states, ball)
        np.testing.assert_allclose(change.radius, np.tile(ball.row_norms(rows), (len(states), 1)), rtol=1e-10)
        if not network.is_gaussian:
            omega = [
                max(ball.row_norms(rows[i : i + 1] - rows[group]).max() for i in range(group.start, group.stop))
                for group in groups(network)
            ]
            np.testing.assert_allclose(change.distance, np.tile(omega, (len(states), 1)), rtol=1e-10)
    if network.is_gaussian:
        whitened = rows * inverse_std(network)[:, None]
        corners = np.array(list(product([-1.0, 1.0], repeat=4)))
        exact = np.linalg.norm(corners @ whitened.T, axis=1).max() if norm == "linf" else np.linalg.norm(whitened, 2)
        np.testing.assert_allclose(crown_change(network, states, ball).distance, exact, rtol=1e-9)


def test_greedy_margin_of_one_layer_is_attained():
    network = linear([[1.0, 0.0], [0.5, 1.0], [-1.0, -1.0]], nvec=(3,), biases=[1.0, 0.0, 0.0])
    state = np.array([[0.5, 0.0]])  # logits 1.5, 0.25, -0.5; z_0 - z_1 loses 1.5 eps, z_0 - z_2 3 eps
    assert crown_change(network, state, cube(0.5, 2)).margin.item() == pytest.approx(1.25 - 0.75, rel=1e-12)
    assert crown_change(network, state, cube(0.8, 2)).margin.item() == pytest.approx(2.0 - 2.4, rel=1e-12)


def test_no_attack_flips_a_greedy_choice_whose_margin_is_positive():
    held = 0
    for seed in range(40):
        network, state = random_network(seed, "categorical", "Tanh"), np.random.default_rng(seed).normal(size=(1, 4))
        ball = cube(0.05, 4)
        outputs = network(state[0] + attack_points(network, state[0], ball, seed))
        flipped = np.any(outputs.argmax(axis=1) != network(state)[0].argmax())
        for bound in LOCAL.values():
            safe = bound(network, state, ball).margin.item() > 0
            assert not (safe and flipped)
            held += safe
    assert held > 30  # the claim is not an empty one


def test_pairs_see_logits_that_move_together():
    """Both follow the same neuron: each moves by 1 eps, their difference not at all."""
    network = random_network(0, "categorical", "ReLU", (1, 1))
    network = ActionNetwork(
        (np.ones((1, 1)), np.array([[1.0], [1.0]])), (np.zeros(1), np.zeros(2)), network.activations, None, (2,)
    )
    change = crown_change(network, np.ones((1, 1)), cube(0.1, 1))
    np.testing.assert_allclose(change.radius, 0.1, rtol=1e-10)
    assert change.distance.item() <= 1e-12
    assert distance_from_radius(network, change.radius).item() == pytest.approx(0.2)


def test_joint_norm_is_tighter_than_the_box_of_the_outputs():
    """``(x + y, x - y)``: length 2 at a corner, sqrt(8) if both could be at their worst at once."""
    change = crown_change(linear([[1.0, 1.0], [1.0, -1.0]]), np.zeros((1, 2)), cube(1.0, 2))
    assert change.distance.item() == pytest.approx(2.0, rel=1e-6)
    assert distance_from_radius(linear(np.eye(2)), change.radius).item() == pytest.approx(8**0.5, rel=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_joint_norm_holds_where_the_two_lines_differ(norm):
    """Enclosures whose two slopes are unlike, ``M`` zero or not: every function between them is shorter than the bound."""
    rng = np.random.default_rng(0)
    for spread in (0.0, 0.3, 3.0):
        ball = Ball.create(1.0, norm, (3,))
        change = linear_change(random_network(0, sizes=(3,)), np.zeros((1, 3)), ball, np.eye(3))
        half = spread * rng.normal(size=(1, 3, 3))
        wide = type(change)(change.lower_slope - half, -rng.random((1, 3)), change.upper_slope + half, rng.random((1, 3)))
        scales = np.array([1.0, 2.0, 0.5])
        unit = rng.normal(size=(2000, 3))
        unit = np.sign(unit) if norm == "linf" else unit / np.linalg.norm(unit, axis=1, keepdims=True)
        ends = np.stack(
            [wide.lower_slope[0] @ unit.T + wide.lower_offset.T, wide.upper_slope[0] @ unit.T + wide.upper_offset.T]
        )
        longest = np.linalg.norm(np.abs(ends).max(axis=0) * scales[:, None], axis=0).max()
        assert longest <= joint_norm(wide, scales, ball).item()


@pytest.mark.parametrize("name", ["Tanh", "ReLU", "GELU"])
@pytest.mark.parametrize("kind", KINDS)
def test_small_balls_have_bounds_in_proportion(name, kind):
    """No floor of rounding: at eps 1e-6 it is the gradient's norm, to what curvature and kinks add at 1e-4."""
    network, states = random_network(3, kind, name), np.random.default_rng(0).normal(size=(20, 4))
    small, larger = crown_change(network, states, cube(1e-6, 4)), crown_change(network, states, cube(1e-4, 4))
    steps = 1e-6 * np.concatenate([np.eye(4), -np.eye(4)])
    slopes = np.stack([(network(states + d) - network(states - d)) / 2e-6 for d in steps[:4]])
    calm = np.abs(small.radius / 1e-6 - np.abs(slopes).sum(axis=0)) <= 1e-3 * small.radius / 1e-6
    assert calm.mean() > 0.9
    assert np.median(np.abs(small.distance * 100 - larger.distance) / (larger.distance + 1e-300)) < 2e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_states_are_bounded_each_by_itself(kind, norm):
    network, states = random_network(4, kind), np.random.default_rng(0).normal(size=(CHUNK + 40, 4))
    ball = Ball.create([0.1, 0.0, 0.2, 0.1], norm, (4,))
    together = crown_change(network, states, ball)
    for i in (0, 1, CHUNK - 1, CHUNK, CHUNK + 39):
        alone = crown_change(network, states[i : i + 1], ball)
        for field in ("radius", "distance", "margin")[: 2 if kind == "gaussian" else 3]:
            np.testing.assert_allclose(getattr(together, field)[i], getattr(alone, field)[0], rtol=1e-10)


def test_a_ball_for_each_state():
    network, rng = random_network(5), np.random.default_rng(0)
    states, eps = rng.normal(size=(CHUNK + 5, 4)), rng.random((CHUNK + 5, 4))
    change = linear_change(network, states, Ball(eps, "linf"), np.eye(3))
    below, above = change.bounds(Ball(eps, "linf"))
    for i in (0, 7, CHUNK + 4):
        single = linear_change(network, states[i : i + 1], Ball(eps[i], "linf"), np.eye(3)).bounds(Ball(eps[i], "linf"))
        np.testing.assert_allclose((below[i], above[i]), (single[0][0], single[1][0]), rtol=1e-10)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_tighter_than_interval_propagation_on_small_balls(name):
    """On average; not at each state and output, and pruning can raise it."""
    ratios = []
    for seed in range(6):
        network, states = random_network(seed, activation=name), np.random.default_rng(seed).normal(size=(20, 4))
        ratios.append(
            crown_change(network, states, cube(0.01, 4)).radius / interval_change(network, states, cube(0.01, 4)).radius
        )
    assert np.mean(ratios) < 0.9


def test_not_monotone_under_pruning():
    """Known, and why only bound A carries the claim."""
    rises = 0
    for seed in range(40):
        network, state = random_network(seed, activation="ReLU"), np.ones((1, 4))
        before, after = (crown_change(n, state, cube(0.05, 4)).radius for n in (network, pruned(network, seed, 0.05)))
        rises += bool(np.any(after > before * (1 + 1e-9)))
    assert rises >= 5


def test_optimised_lines_are_never_looser_for_any_row():
    """Their rounding errors, which count at eps 1e-13, are larger: CROWN's lines are kept where they are better."""
    for seed, eps in enumerate([1e-13, 1e-6, 1e-3, 0.3] * 2):
        network, states = random_network(seed, activation="ReLU"), np.random.default_rng(seed).normal(size=(4, 4))
        ball = cube(eps, 4)
        plain, better = (f(network, states, ball, np.eye(3)).bounds(ball) for f in (linear_change, alpha.optimised_change))
        assert np.all(better[0] >= plain[0] * (1 + 1e-12)) and np.all(better[1] <= plain[1] * (1 + 1e-12))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_alpha_is_never_looser_and_often_tighter(norm):
    tighter = total = 0
    for seed, name in enumerate(["Tanh", "ReLU", "GELU", "Hardswish", "Sigmoid", "LeakyReLU"] * 2):
        network, states = random_network(seed, KINDS[seed % 3], name), np.random.default_rng(seed).normal(size=(3, 4))
        ball = Ball.create([0.3, 0.8, 0.0, 0.5], norm, (4,))
        plain, better = crown_change(network, states, ball), alpha_change(network, states, ball)
        assert np.all(better.radius <= plain.radius) and np.all(better.distance <= plain.distance)
        assert plain.margin is None or np.all(better.margin >= plain.margin)
        tighter, total = tighter + np.sum(better.radius < 0.98 * plain.radius), total + plain.radius.size
    assert tighter > 0.3 * total


@pytest.mark.parametrize("name", ["Tanh", "ReLU"])
@pytest.mark.parametrize("kind", KINDS)
def test_overflow_is_no_bound_and_never_a_number(kind, name):
    states, ball = np.ones((2, 4)), Ball.create(0.1, "l2", (4,))
    with np.errstate(all="ignore"):
        for factor in (1e100, 1e154, 1e200, 1e300):
            network = scaled(random_network(1, kind, name), factor)
            for bound in LOCAL.values():
                change = bound(network, states, ball)
                assert np.all(change.radius > 1e90)
                assert not np.any(np.isnan(change.distance))
                assert change.margin is None or not np.any(np.isnan(change.margin))
            assert exact_change(network, states[0], ball, max_boxes=50).upper > 1e90


def distances_on(network, state, points):
    changes = distance(network, network(state + points) - network(state[None]))
    return changes.max(axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_branch_and_bound_finds_the_maximum(kind, norm):
    """Two inputs: a grid of 160,000 points, and no method below what a point reaches."""
    axis = np.linspace(-1, 1, 401)
    unit = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    unit = unit if norm == "linf" else unit[np.linalg.norm(unit, axis=1) <= 1]
    for seed, name in enumerate(["Tanh", "ReLU", "GELU"]):
        network, state = random_network(seed, kind, name, (2, 6, 5)), np.random.default_rng(seed).normal(size=2)
        ball = Ball.create([0.7, 0.4], norm, (2,))
        result = exact_change(network, state, ball, tolerance=0.005)
        reached = distances_on(network, state, unit * ball.eps).max()
        assert reached <= result.upper * (1 + 1e-9)
        assert reached >= result.lower * (1 - 0.01)
        assert result.lower <= result.upper <= 1.0051 * result.lower
        # the std is taken 2^-21 smaller than it is
        assert distances_on(network, state, result.point[None]).item() == pytest.approx(result.lower, rel=1e-6)
        assert np.all(np.abs(result.point) <= ball.eps)
        for bound in (*METHODS.values(), alpha_change):
            assert bound(network, state[None], ball).distance.max() >= result.lower * (1 - 1e-12)


def test_branch_and_bound_that_is_stopped_is_a_bound_all_the_same():
    network, state, ball = random_network(0, activation="Tanh"), np.ones(4), cube(1.0, 4)
    long = exact_change(network, state, ball, tolerance=0.02)
    previous = np.inf
    for max_boxes in (1, 50, 2000):
        stopped = exact_change(network, state, ball, tolerance=1e-6, max_boxes=max_boxes)
        assert long.lower <= stopped.upper <= previous
        assert stopped.n_boxes <= max_boxes + 2 * CHUNK
        previous = stopped.upper


def test_branch_and_bound_of_what_cannot_move():
    """No budget, a network of zeros, a categorical of one choice: no endless halving, nothing but rounding."""
    network, state = random_network(1), np.ones(4)
    for still, eps in ((network, 0.0), (scaled(network, 0.0), 0.5), (linear([[1.0, 2.0, 3.0, 4.0]], nvec=(1,)), 0.5)):
        result = exact_change(still, state, cube(eps, 4))
        assert result.lower <= result.upper <= 1e-10
        assert result.n_boxes < 10


def test_branch_and_bound_halves_inputs_across_which_the_lines_are_flat():
    """``h(x) + h(y) - h(-3 - y)``, ``h`` Hardswish, is ``h(x)``: 3/8 at most. But all secants over [-3, 0] have slope 0."""
    activation = activation_of(ACTIVATIONS["Hardswish"])
    weights = (np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), np.array([[1.0, 1.0, -1.0]]))
    network = ActionNetwork(weights, (np.array([0.0, 0.0, -3.0]), np.zeros(1)), (activation,), np.ones(1))
    result = exact_change(network, np.full(2, -1.5), cube(1.5, 2), tolerance=0.1, max_boxes=50_000)
    assert result.lower == pytest.approx(0.375, rel=1e-2)
    assert result.upper <= 1.101 * result.lower


def test_alpha_takes_few_states_at_a_time_where_there_are_many_rows(monkeypatch):
    """A categorical of 32 choices has 528 rows: weights for 256 states at once would take gigabytes."""
    network, states = random_network(0, "categorical"), np.random.default_rng(0).normal(size=(6, 4))
    whole = alpha_change(network, states, cube(0.2, 4))
    sizes = []
    relaxed = alpha.relaxed_layers
    monkeypatch.setattr(alpha, "_LARGEST", 1000)  # 15 rows, both sides, 16 neurons: 480 for each state
    monkeypatch.setattr(alpha, "relaxed_layers", lambda n, s, b: sizes.append(len(s)) or relaxed(n, s, b))
    parts = alpha_change(network, states, cube(0.2, 4))
    assert sizes == [2, 2, 2]
    np.testing.assert_allclose(parts.radius, whole.radius, rtol=1e-9)
    np.testing.assert_allclose(parts.distance, whole.distance, rtol=1e-9)


def test_branch_and_bound_refuses():
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        exact_change(random_network(0), np.ones(4), cube(0.1, 4), tolerance=0)
    large = linear(np.ones((40, 4)), nvec=(40,))
    with pytest.raises(ValueError, match="categoricals of 40 choices are too large"):
        exact_change(large, np.ones(4), cube(0.1, 4))
    assert crown_change(large, np.ones((1, 4)), cube(0.1, 4)).distance.item() == pytest.approx(0.8)  # r_i + r_j all the same


def test_unperturbed_outputs_are_within_their_interval():
    """In rational arithmetic; the interval without a ball is narrower than rounding could need only by a mistake."""
    for seed in range(20):
        network, state = random_network(seed, activation="ReLU"), np.random.default_rng(seed).normal(size=4)
        lower, upper = output_interval(network, np.tile(state, (300, 1)))
        assert np.all(lower == lower[:1]) or np.allclose(lower, lower[:1], rtol=0, atol=1e-12)
        for low, exact, high in zip(
            lower[299], exact_relu_output(network, [Fraction(x) for x in state]), upper[299], strict=True
        ):
            assert Fraction(low) <= exact <= Fraction(high)
