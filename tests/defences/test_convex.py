"""Differentiable bounds: by hand, sound against attack, differentiable, never above the interval bound."""

import itertools

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_prune_robust.bounds import Ball, interval_radius
from sb3_prune_robust.defences.convex import Chain
from sb3_prune_robust.network import UnsupportedNetworkError, read_layers

ACTIVATIONS = [nn.Tanh, nn.Sigmoid, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish]


def network(activation, sizes=(3, 8, 8, 2), seed=0, dtype=th.float64):
    th.manual_seed(seed)
    modules = []
    for n_in, n_out in itertools.pairwise(sizes):
        modules += [nn.Linear(n_in, n_out), activation()]
    chain = nn.Sequential(*modules[:-1]).to(dtype)
    for module in chain:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.7)
    return chain


def points(chain, n=5, seed=0):
    rng = np.random.default_rng(seed)
    return th.as_tensor(rng.normal(size=(n, chain[0].in_features)), dtype=chain[0].weight.dtype)


def largest_change(chain, observations, eps, norm, rows, n=2000, seed=1):
    """The largest change of the rows' combinations seen at random points, corners and by signed gradients."""
    rng = np.random.default_rng(seed)
    directions = rng.choice([-1.0, 1.0], size=(n, len(eps))) if norm == "linf" else rng.normal(size=(n, len(eps)))
    if norm == "l2":
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    steps = th.as_tensor(directions) * eps
    with th.no_grad():
        moved = chain(observations[:, None] + steps) - chain(observations)[:, None]
        return (moved @ rows.T).abs().max(dim=1).values


def test_by_hand_tanh():
    """One unit, f = 2 tanh(x), x = 0.5, eps = 0.5: the interval is [0, 1], the box bound 2 max(tanh .5, tanh 1 - tanh .5)."""
    chain = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    with th.no_grad():
        for layer, weight in ((chain[0], 1.0), (chain[2], 2.0)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
    bounds, x, eps = Chain(list(chain)), th.tensor([[0.5]]).double(), th.tensor([0.5]).double()
    box = 2 * max(np.tanh(0.5), np.tanh(1.0) - np.tanh(0.5))
    assert bounds.radius(x, eps, "linf", linear=0.0).item() == pytest.approx(box, abs=1e-12)
    # The slope at 1 is .41997; over the line through (0.5, tanh .5) the rest is -.2521 at 0 and .0895 at 1.
    slope = 1 - np.tanh(1.0) ** 2
    low, high = -np.tanh(0.5) + 0.5 * slope, np.tanh(1.0) - np.tanh(0.5) - 0.5 * slope
    line = 2 * (0.5 * abs(high + low) + 0.5 * (high - low) + 0.5 * slope)
    assert bounds.radius(x, eps, "linf", linear=1.0).item() == pytest.approx(line, abs=1e-12)
    assert bounds.radius(x, eps, "linf", linear=0.25).item() == pytest.approx(0.25 * line + 0.75 * box, abs=1e-12)


def test_by_hand_relu():
    """f = relu(x) - relu(x - 1) at 0.5, eps 1: the pre-activations lie in [-.5, 1.5] and [-1.5, .5]."""
    chain = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with th.no_grad():
        chain[0].weight.fill_(1.0)
        chain[0].bias.copy_(th.tensor([0.0, -1.0]))
        chain[2].weight.copy_(th.tensor([[1.0, -1.0]]))
        chain[2].bias.zero_()
    # Slopes 3/4 and 1/4: the first's rest is 0.25 at the ends and -0.125 at the kink, over the clean value .5; the second's
    # 0.25 and -0.125 over 0; together 0.5 x + [-.375, .375].
    bound = Chain(list(chain)).radius(th.tensor([[0.5]]).double(), th.tensor([1.0]).double(), "linf", linear=1.0)
    assert bound.item() == pytest.approx(0.5 + 0.375, abs=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(3, 8, 8, 2), (3, 6, 2), (3, 5, 5, 5, 2)])
def test_sound(activation, norm, sizes):
    chain = network(activation, sizes)
    observations, eps = points(chain), th.tensor([0.3, 0.0, 0.5]).double()
    rows = th.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]).double()
    seen = largest_change(chain, observations, eps, norm, rows)
    assert (seen > 1e-3).all()
    for linear in (0.0, 0.5, 1.0):
        assert (seen <= Chain(list(chain)).radius(observations, eps, norm, linear, rows) + 1e-9).all()


def test_interval_is_that_of_the_certificates():
    chain = network(nn.Tanh)
    observations, eps = points(chain), np.array([0.1, 0.0, 0.2])
    for norm in ("linf", "l2"):
        expected = interval_radius(read_layers(chain), observations.numpy(), Ball(eps, norm))
        bounds = Chain(list(chain))
        assert bounds.radius(observations, th.as_tensor(eps), norm, 0.0).detach().numpy() == pytest.approx(expected, rel=1e-9)
        lower, upper = bounds.interval(observations, th.as_tensor(eps), norm)
        clean = chain(observations)
        assert th.maximum(upper - clean, clean - lower).detach().numpy() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.ReLU])
def test_linear_is_tighter_than_the_interval_on_small_balls(activation):
    chain = network(activation, seed=4)
    observations, eps = points(chain), th.full((3,), 0.02).double()
    bounds = Chain(list(chain))
    interval, linear = (bounds.radius(observations, eps, "linf", share) for share in (0.0, 1.0))
    assert (linear <= interval + 1e-12).all() and linear.mean() < 0.8 * interval.mean()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("linear", [0.0, 0.3, 1.0])
def test_gradient_against_finite_differences(activation, linear):
    chain = network(activation, seed=2)
    observations, eps, bounds = points(chain), th.tensor([0.2, 0.1, 0.3]).double(), Chain(list(chain))

    def loss():
        return bounds.radius(observations, eps, "linf", linear).square().sum()

    loss().backward()
    for layer in (chain[0], chain[2], chain[4]):
        for index in ((0, 0), (1, 2)):
            gradient = layer.weight.grad[index].item()
            with th.no_grad():
                layer.weight[index] += 1e-6
                above = loss().item()
                layer.weight[index] -= 2e-6
                below = loss().item()
                layer.weight[index] += 1e-6
            assert gradient == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-6)


def test_a_policy_without_hidden_layers():
    chain = nn.Sequential(nn.Linear(3, 2)).double()
    observations, eps = points(chain), th.tensor([0.2, 0.1, 0.3]).double()
    expected = (chain[0].weight.abs() @ eps).expand(5, 2)
    for linear in (0.0, 1.0):
        assert th.allclose(Chain(list(chain)).radius(observations, eps, "linf", linear), expected)


def test_no_radius_no_change():
    chain = network(nn.ReLU)
    for linear in (0.0, 1.0):
        assert Chain(list(chain)).radius(points(chain), th.zeros(3).double(), "linf", linear).abs().max() < 1e-12


def test_what_is_not_covered_is_refused():
    with pytest.raises(UnsupportedNetworkError, match=r"Softmax"):
        Chain([nn.Linear(2, 2), nn.Softmax(dim=1), nn.Linear(2, 1)])
