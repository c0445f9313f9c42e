"""Bound L: no attack passes it, it is at most bound B, near the optimum of its semidefinite program, and proved in float64."""

from __future__ import annotations

import numpy as np
import pytest
from random_networks import ACTIVATIONS, attack_points, pruned, random_network, with_weights
from torch import nn

from sb3_prune_robust.bounds import METHODS, Ball, lipsdp
from sb3_prune_robust.bounds.action import groups
from sb3_prune_robust.bounds.lipsdp import change_bounds, slope_range
from sb3_prune_robust.network import RELU, activation_of

SIZES = {2: (4, 9), 3: (4, 9, 7), 4: (4, 8, 7, 6)}  # by number of layers
LEAKY = {f"LeakyReLU({slope})": nn.LeakyReLU(slope) for slope in (-2.5, -1.0, -0.4, 0.1, 1.0, 3.0)}
ALL = {**ACTIVATIONS, **LEAKY, "ELU(0.3)": nn.ELU(0.3)}


def unit_ball(norm, n=4):
    return Ball.create(1.0, norm, (n,))


def bound_of(network, ball, method="lipsdp"):
    return METHODS[method](network, np.zeros((1, network.n_inputs)), ball)


def jacobians(network, states):
    """The output's derivatives at each state, from the chain rule."""
    hidden, jacobian = states, network.weights[0][None]
    for weight, bias, activation, after in zip(
        network.weights, network.biases, network.activations, network.weights[1:], strict=False
    ):
        before = hidden @ weight.T + bias
        hidden = activation.function(before)
        jacobian = after @ (activation.derivative(before, hidden)[:, :, None] * jacobian)
    return jacobian


@pytest.mark.parametrize("name", ALL)
def test_slope_range_holds_all_slopes_and_is_tight(name):
    activation = activation_of(ALL[name])
    low, high = slope_range(activation)
    grid = np.concatenate([np.linspace(-12, 12, 400_001), [-1e3, 1e3]])
    slopes = activation.derivative(grid, activation.function(grid))
    assert low - 1e-12 <= slopes.min() <= low + 2e-3
    assert high - 1e-3 <= slopes.max() <= high + 1e-12


def sizes_of(network, change):
    """What `ActionChange.distance` bounds, from its definition."""
    if network.is_gaussian:
        return np.linalg.norm(change / network.std, axis=1)[:, None]
    return np.stack([np.ptp(change[:, group], axis=1) for group in groups(network)], axis=1)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("depth", SIZES)
def test_no_attack_exceeds_it(name, norm, depth):
    for seed, kind in enumerate(("gaussian", "categorical", "multi")):
        rng = np.random.default_rng(seed)
        network, state = random_network(seed + 10 * depth, kind, name, SIZES[depth]), rng.normal(size=4)
        ball = Ball.create(rng.choice([0.01, 0.3, 2.0]) * np.array([1.0, 0.5, 0.0, 2.0]), norm, (4,))
        bound = bound_of(network, ball)
        change = network(state + attack_points(network, state, ball, seed)) - network(state[None])
        assert np.all(np.abs(change) <= bound.radius + 1e-12 * (1 + np.abs(change).max()))
        assert np.all(sizes_of(network, change) <= bound.distance + 1e-12 * (1 + sizes_of(network, change).max()))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("depth", SIZES)
def test_no_derivative_exceeds_it(name, depth):
    """The bound is linear in eps and the same at every state, so that it is above the slopes of the network everywhere."""
    corners = np.array([[(-1.0) ** (k >> i) for i in range(4)] for k in range(16)])
    states = np.random.default_rng(0).normal(size=(300, 4)) * np.geomspace(0.1, 30, 300)[:, None]
    for seed in range(2):
        network = random_network(seed, "gaussian", "Tanh", SIZES[depth])
        network = type(network)(network.weights, network.biases, (activation_of(ALL[name]),) * (depth - 1), network.std)
        slopes = jacobians(network, states)
        whitened = slopes / network.std[:, None]
        euclidean, box = bound_of(network, unit_ball("l2")), bound_of(network, unit_ball("linf"))
        assert np.linalg.norm(whitened, 2, axis=(1, 2)).max() <= euclidean.distance[0, 0]
        assert np.linalg.norm(whitened @ corners.T, axis=1).max() <= box.distance[0, 0]
        assert np.all(np.linalg.norm(slopes, axis=2).max(axis=0) <= euclidean.radius[0])
        assert np.all(np.abs(slopes).sum(axis=2).max(axis=0) <= box.radius[0])


@pytest.mark.parametrize("kind", ["categorical", "multi"])
def test_no_derivative_of_a_difference_of_logits_exceeds_it(kind):
    states = np.random.default_rng(0).normal(size=(300, 4))
    for seed in range(5):
        network = random_network(seed, kind, "Tanh", (4, 9, 7))
        slopes = jacobians(network, states)
        for norm, order in (("l2", 2), ("linf", 1)):
            bound = bound_of(network, unit_ball(norm))
            for omega, group in zip(bound.distance[0], groups(network), strict=True):
                pairs = slopes[:, group][:, :, None] - slopes[:, group][:, None]
                largest = np.linalg.norm(pairs, order, axis=3).max()
                assert largest <= omega
                assert omega <= 4 * largest


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["gaussian", "categorical", "multi"])
def test_never_looser_than_the_product_of_spectral_norms(name, norm, kind):
    for seed in range(2):
        network, ball = random_network(seed, kind, "Tanh", (4, 9, 7)), unit_ball(norm)
        network = type(network)(network.weights, network.biases, (activation_of(ALL[name]),) * 2, network.std, network.nvec)
        bound, product = bound_of(network, ball), bound_of(network, ball, "spectral")
        assert np.all(bound.radius <= product.radius)
        assert np.all(bound.distance <= product.distance)


def test_without_bound_b_beside_it_is_not_looser_either():
    """In l_2 the optimiser starts from bound B (2e-3 of it per layer are lost to slope ranges [-b, b])."""
    for name in ALL:
        network, ball = random_network(3, "gaussian", "Tanh", (4, 9, 7)), unit_ball("l2")
        network = type(network)(network.weights, network.biases, (activation_of(ALL[name]),) * 2, network.std)
        rows = network.weights[-1] / network.std[:, None]
        assert change_bounds(network, ball, rows, [])[0] <= bound_of(network, ball, "spectral").distance[0, 0]


@pytest.mark.parametrize(("norm", "share"), [("l2", 0.6), ("linf", 0.6)])
def test_much_tighter_than_bound_b_on_wide_random_networks(norm, share):
    for seed in range(3):
        network = random_network(seed, sizes=(11, 64, 64))
        ball = unit_ball(norm, 11)
        assert bound_of(network, ball).distance[0, 0] <= share * bound_of(network, ball, "spectral").distance[0, 0]


def test_optimum_of_the_semidefinite_program():
    """Within 0.2 % of what an interior-point solver (Clarabel 0.11 through CVXPY) gave for the same network."""
    rng = np.random.default_rng(5)
    weights = [rng.normal(size=(20, 15)), rng.normal(size=(18, 20)), rng.normal(size=(3, 18))]
    network = with_weights(random_network(0, sizes=(15, 20, 18)), weights)
    for norm, optimum in (("l2", 137.29086), ("linf", 486.34806)):
        bound = change_bounds(network, unit_ball(norm, 15), weights[-1], [])[0]
        assert optimum * (1 - 1e-6) <= bound <= optimum * 1.002


def test_one_neuron_by_hand():
    """``f(x) = 3 tanh(2 x_1 + x_2)``: the slope 3 at 0 times the row's dual norm is attained, and is the bound."""
    network = random_network(0, sizes=(2, 1))
    network = type(network)((np.array([[2.0, 1.0]]), np.full((3, 1), 3.0)), network.biases, network.activations, np.ones(3))
    np.testing.assert_allclose(bound_of(network, unit_ball("l2", 2)).radius, 3 * np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(bound_of(network, unit_ball("linf", 2)).radius, 9.0, rtol=1e-6)


def test_it_knows_that_activations_rise():
    """``relu(x) + relu(-x) = |x|``: slope 1, as the two rise in opposite directions; bounds A and B say 2."""
    network = random_network(0, activation="ReLU", sizes=(1, 2))
    weights = (np.array([[1.0], [-1.0]]), np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0]]))
    network = type(network)(weights, (np.zeros(2), np.zeros(3)), (RELU,), np.ones(3))
    bounds = {method: bound_of(network, unit_ball("l2", 1), method).radius[0] for method in ("abs", "spectral", "lipsdp")}
    assert np.all(bounds["lipsdp"] >= 1.0)
    np.testing.assert_allclose(bounds["abs"][:2], 2.0, rtol=1e-9)
    np.testing.assert_allclose(bounds["spectral"][:2], 2.0, rtol=1e-9)
    # relu(x) - relu(-x) = x has slope 1 as well, but that the two are never both active is not in the constraints
    np.testing.assert_allclose(bounds["lipsdp"], [1.0, 2.0, 1.0], rtol=0.02)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_attained_by_a_linear_network(norm, kind):
    network, eps = random_network(3, kind, sizes=(4,)), np.array([0.1, 0.2, 0.0, 0.3])
    bound, rows = bound_of(network, Ball.create(eps, norm, (4,))), network.weights[0] * eps
    corners = np.array([[(-1.0) ** (k >> i) for i in range(4)] for k in range(16)])
    reached = np.abs(rows).sum(axis=1) if norm == "linf" else np.linalg.norm(rows, axis=1)
    assert np.all(bound.radius[0] >= reached)
    np.testing.assert_allclose(bound.radius[0], reached, rtol=1e-10)
    if network.is_gaussian:
        whitened = rows / network.std[:, None]
        joint = np.linalg.norm(whitened @ corners.T, axis=0).max() if norm == "linf" else np.linalg.norm(whitened, 2)
        assert joint <= bound.distance[0, 0] <= joint * (1 + 1e-6)
    else:
        order = 1 if norm == "linf" else 2
        pairs = [np.linalg.norm(a - b, order) for a in rows for b in rows]
        assert max(pairs) <= bound.distance[0, 0]


@pytest.mark.parametrize(("norm", "omega"), [("l2", 6.0), ("linf", 12.0)])
def test_two_choices_are_exact(norm, omega):
    """Logits ``2 sum x`` and ``-sum x``: a difference of ``3 sum x``; through a tanh from one neuron as well."""
    network = random_network(0, "categorical", sizes=(4,))
    linear = type(network)((np.array([[2.0] * 4, [-1.0] * 4]),), (np.zeros(2),), (), None, (2,))
    deep = type(network)(
        (np.ones((1, 4)), np.array([[2.0], [-1.0]])), (np.zeros(1), np.zeros(2)), (activation_of(nn.Tanh()),), None, (2,)
    )
    for case in (linear, deep):
        assert omega <= bound_of(case, unit_ball(norm)).distance[0, 0] <= omega * (1 + 1e-6)


def test_layers_that_act_as_one_are_exact():
    """LeakyReLU of slope 1 is the identity: a deep linear network, whose norm is that of the product of its matrices."""
    network = random_network(1, sizes=(4, 9, 7))
    network = type(network)(network.weights, network.biases, (activation_of(nn.LeakyReLU(1.0)),) * 2, network.std)
    exact = np.linalg.norm(network.weights[2] @ network.weights[1] @ network.weights[0] / network.std[:, None], 2)
    bound = bound_of(network, unit_ball("l2")).distance[0, 0]
    assert exact <= bound <= exact * 1.01
    assert bound < 0.8 * bound_of(network, unit_ball("l2"), "spectral").distance[0, 0]


def test_it_is_not_monotone_under_pruning():
    """By far more than the optimiser leaves open. If this ever fails the documentation is too modest."""
    rises = 0
    for seed in range(40):
        network, ball = random_network(seed, activation="ReLU"), unit_ball("l2")
        before, after = bound_of(network, ball), bound_of(pruned(network, seed, 0.05), ball)
        rises += bool(np.any(after.distance > before.distance * 1.01))
    assert rises > 0


def test_no_budget_and_dead_layers_do_not_move():
    network = random_network(1)
    for norm in ("linf", "l2"):
        assert np.all(bound_of(network, Ball.create(0.0, norm, (4,))).distance == 0.0)
        for dead in range(3):
            weights = [w * (i != dead) for i, w in enumerate(network.weights)]
            assert np.all(bound_of(with_weights(network, weights), unit_ball(norm)).radius == 0.0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_dead_neurons_rows_and_inputs(norm):
    """Zero rows and columns, a neuron that nothing reads, and layers that miss each other's neurons: sound, and a number."""
    network = random_network(2)
    first, middle, last = (w.copy() for w in network.weights)
    first[:, 1], first[3], middle[:, :4], middle[2], last[1], last[:, 5] = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    network = with_weights(network, [first, middle, last])
    bound = bound_of(network, unit_ball(norm))
    slopes = jacobians(network, np.random.default_rng(0).normal(size=(200, 4)))
    assert bound.radius[0, 1] == 0.0
    assert np.all(np.linalg.norm(slopes, axis=2).max(axis=0) <= bound.radius[0])
    assert np.all(np.isfinite(bound.distance))
    disjoint = [first, middle * (np.arange(9) >= 4), last]
    disjoint[0] = first * (np.arange(9) < 4)[:, None]
    assert np.all(bound_of(with_weights(network, disjoint), unit_ball(norm)).radius <= 1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("sizes", SIZES.values())
def test_scale_of_layers_and_neurons_does_not_matter(norm, sizes):
    """ReLU: a neuron's weights times c and those that read it divided by c is the same function, whatever its multipliers."""
    network = random_network(4, activation="ReLU", sizes=sizes)
    neurons = 10.0 ** np.random.default_rng(0).uniform(-3, 3, size=network.weights[0].shape[0])
    weights = [network.weights[0] * neurons[:, None], network.weights[1] / neurons, *network.weights[2:]]
    plain, scaled = bound_of(network, unit_ball(norm)), bound_of(with_weights(network, weights), unit_ball(norm))
    slopes = jacobians(network, np.random.default_rng(0).normal(size=(200, 4)))
    assert np.all(np.linalg.norm(slopes, axis=2).max(axis=0) <= scaled.radius[0])
    assert scaled.distance[0, 0] < 0.2 * bound_of(with_weights(network, weights), unit_ball(norm), "spectral").distance[0, 0]
    layers = [w * c for w, c in zip(network.weights, (1e-90, 1e80, 1e-70, 1e60), strict=False)]
    moved = bound_of(with_weights(network, layers), unit_ball(norm))
    factor = np.prod((1e-90, 1e80, 1e-70, 1e60)[: len(layers)])
    np.testing.assert_allclose(moved.distance / factor, plain.distance, rtol=1e-2)


@pytest.mark.parametrize("value", [1e300, np.inf, np.nan])
def test_huge_weights_are_no_bound(value):
    network = random_network(1)
    weights = [w * 1e200 for w in network.weights]
    weights[1][0, 0] = value
    with np.errstate(all="ignore"):
        change = bound_of(with_weights(network, weights), unit_ball("l2"))
    assert np.all(change.radius == np.inf)
    assert np.all(change.distance == np.inf)


def test_only_what_is_proved_is_used(monkeypatch):
    """Multipliers out of the domain, from a bad optimiser, are refused, and the start is used in their place."""
    network, ball = random_network(1), unit_ball("l2")
    rows = network.weights[-1] / network.std[:, None]
    good = change_bounds(network, ball, rows, [])[0]
    monkeypatch.setattr(lipsdp, "_optimised", lambda problem, variables, schedule: variables - 3.0)
    assert good < change_bounds(network, ball, rows, [])[0] <= bound_of(network, ball, "spectral").distance[0, 0]
    monkeypatch.setattr(lipsdp, "_is_semidefinite", lambda problem, multipliers, gram: False)
    assert change_bounds(network, ball, network.weights[-1], [])[0] == np.inf


def problem_of(network, norm="l2"):
    rows = network.weights[-1]
    return lipsdp._Problem(network.weights[:-1], tuple(slope_range(a) for a in network.activations), rows, norm == "linf")


@pytest.mark.parametrize("name", ["Tanh", "GELU", "LeakyReLU", "LeakyReLU-"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_gradient_of_the_objective(name, norm):
    problem = problem_of(random_network(5, activation=name, sizes=(4, 8, 7, 6)), norm)
    point, rng = lipsdp._start(problem), np.random.default_rng(0)
    point = point + 0.3 + 0.05 * rng.normal(size=point.shape)
    objective, direction = lipsdp._objective(problem, 8.0), rng.normal(size=point.shape)
    slope = (objective(point + 1e-6 * direction)[0] - objective(point - 1e-6 * direction)[0]) / 2e-6
    assert objective(point)[1] @ direction == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("name", ["Tanh", "GELU", "LeakyReLU", "LeakyReLU-"])
def test_proof_refuses_what_is_a_little_too_small(name):
    """The recursion's G is the smallest possible: a share of 1e-6 less and the form has a negative eigenvalue."""
    problem = problem_of(random_network(5, activation=name, sizes=(4, 8, 7, 6)))
    multipliers, _ = problem.split(lipsdp._start(problem))
    gram, _ = lipsdp._recursion(problem, multipliers)
    assert lipsdp._is_semidefinite(problem, multipliers, gram * (1 + 1e-6))
    assert not lipsdp._is_semidefinite(problem, multipliers, gram * (1 - 1e-6))
    assert not lipsdp._is_semidefinite(problem, [t * 0.3 for t in multipliers], gram * 1e6)
    form = lipsdp._form(problem, multipliers, gram)
    assert np.abs(np.linalg.eigvalsh(form)[0]) <= 1e-9 * np.abs(form).max()


def test_what_roundings_could_have_made_is_not_proved():
    """One neuron, ``T = 2``: the form ``[[G, -1], [-1, 1]]``, semidefinite from 1 on, by too little to tell just above it."""
    problem = lipsdp._Problem((np.ones((1, 1)),), ((0.0, 1.0),), np.ones((1, 1)), in_box=False)
    above, too_little = np.array([[1.0 + 1e-12]]), np.array([[1.0 + 1e-15]])
    assert lipsdp._is_semidefinite(problem, [np.array([2.0])], above)
    assert not lipsdp._is_semidefinite(problem, [np.array([2.0])], too_little)


@pytest.mark.parametrize("name", ["Tanh", "GELU", "LeakyReLU", "LeakyReLU-"])
def test_form_is_its_definition(name):
    """At the changes of the network itself and at any others, from the sum in the module's first lines."""
    network = random_network(5, activation=name, sizes=(4, 8, 7, 6))
    problem, rng = problem_of(network), np.random.default_rng(0)
    multipliers = [rng.random(len(w)) for w in problem.weights]
    gram = np.diag(rng.random(4))
    form = lipsdp._form(problem, multipliers, gram)
    for _ in range(5):
        changes = [rng.normal(size=4), *(rng.normal(size=len(w)) for w in problem.weights)]
        expected = changes[0] @ gram @ changes[0] - np.sum((problem.rows @ changes[-1]) ** 2)
        for before, weight, (low, high), t, after in zip(
            changes, problem.weights, problem.slopes, multipliers, changes[1:], strict=False
        ):
            z = weight @ before
            expected -= np.sum(t * (after - low * z) * (high * z - after))
        vector = np.concatenate(changes)
        assert vector @ form @ vector == pytest.approx(expected, rel=1e-9)


def test_parts_agree_with_running_them_alone():
    """A row refined from all rows' multipliers: sound, and within 10 % of a run of its own."""
    network, ball = random_network(6, sizes=(4, 20, 15)), unit_ball("linf")
    rows = network.weights[-1]
    _, refined = change_bounds(network, ball, rows, [row[None] for row in rows])
    alone = [change_bounds(network, ball, row[None], [])[0] for row in rows]
    np.testing.assert_allclose(refined, alone, rtol=0.1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_large_networks_get_fewer_iterations_and_are_sound(monkeypatch, norm):
    """Budgets and limits as if the network were large: some eigenvalues only, then no parts, then nothing but bound B."""
    network, ball = random_network(8, "categorical", sizes=(4, 9, 7)), unit_ball(norm)
    slopes = jacobians(network, np.random.default_rng(0).normal(size=(200, 4)))
    monkeypatch.setattr(lipsdp, "_MAX_ALL_EIGENVALUES", 3)
    monkeypatch.setattr(lipsdp, "_EIGENVALUES", 2)
    fewer = bound_of(network, ball)
    monkeypatch.setattr(lipsdp, "_PARTS_BUDGET", 1.0)
    joint = bound_of(network, ball)
    monkeypatch.setattr(lipsdp, "_BUDGET", 2e7)
    short = bound_of(network, ball)
    monkeypatch.setattr(lipsdp, "_MAX_INPUTS", 3)
    product = bound_of(network, ball)
    bounds = [fewer.distance[0, 0], joint.distance[0, 0], short.distance[0, 0], product.distance[0, 0]]
    assert np.all(np.diff(bounds) > 0)
    for bound in (fewer, joint, short, product):
        assert np.all(np.linalg.norm(slopes, axis=2).max(axis=0) <= bound.radius[0])
        assert np.ptp(slopes @ np.array([0.5, 0.5, 0.5, 0.5]), axis=1).max() <= bound.distance[0, 0]
    np.testing.assert_array_equal(product.radius, bound_of(network, ball, "spectral").radius)


def test_the_same_twice():
    network, ball = random_network(7), unit_ball("linf")
    np.testing.assert_array_equal(bound_of(network, ball).radius, bound_of(network, ball).radius)
