"""Random networks, masks and adversaries for the tests of the bounds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_prune_robust.bounds import Ball
from sb3_prune_robust.network import ActionNetwork, Array, activation_of

ACTIVATIONS: dict[str, nn.Module] = {
    "Tanh": nn.Tanh(),
    "ReLU": nn.ReLU(),
    "Sigmoid": nn.Sigmoid(),
    "Softplus": nn.Softplus(),
    "ELU": nn.ELU(),
    "LeakyReLU": nn.LeakyReLU(0.1),
    "LeakyReLU-": nn.LeakyReLU(-0.4),
    "SELU": nn.SELU(),
    "GELU": nn.GELU(),
    "SiLU": nn.SiLU(),
    "Mish": nn.Mish(),
    "Hardswish": nn.Hardswish(),
}


def random_network(seed: int, kind: str = "gaussian", activation: str = "Tanh", sizes: Any = (4, 9, 7)) -> ActionNetwork:
    """A network with float32 weights of a random scale, as float64: Gaussian, categorical or multi-categorical."""
    rng = np.random.default_rng(seed)
    nvec = {"gaussian": (), "categorical": (5,), "multi": (3, 1, 2)}[kind]
    n_outputs = sum(nvec) or 3
    widths = [*sizes, n_outputs]
    scale = rng.choice([0.3, 1.0, 2.5])
    weights = [scale * rng.normal(size=(o, i)) / np.sqrt(i) for i, o in pairwise(widths)]
    biases = [rng.normal(size=o) for o in widths[1:]]
    std = np.exp(rng.normal(size=n_outputs)).astype(np.float32) if kind == "gaussian" else None
    return ActionNetwork(
        tuple(w.astype(np.float32).astype(np.float64) for w in weights),
        tuple(b.astype(np.float32).astype(np.float64) for b in biases),
        (activation_of(ACTIVATIONS[activation]),) * (len(weights) - 1),
        std,
        nvec,
    )


def with_weights(network: ActionNetwork, weights: list[Array]) -> ActionNetwork:
    return ActionNetwork(tuple(weights), network.biases, network.activations, network.std, network.nvec)


def pruned(network: ActionNetwork, seed: int, share: float, factor: float = 1.0) -> ActionNetwork:
    """Some more weights at zero, the others times a factor <= 1 (what a projection does)."""
    rng = np.random.default_rng(seed)
    return with_weights(network, [np.where(rng.random(w.shape) < share, 0.0, w * factor) for w in network.weights])


def to_ball(ball: Ball, unit: Array) -> Array:
    """Points of the ball from points of space: projected on the unit ball of the norm, times eps."""
    if ball.norm == "linf":
        return np.clip(unit, -1.0, 1.0) * ball.eps
    return unit / np.maximum(np.linalg.norm(unit, axis=-1, keepdims=True), 1.0) * ball.eps


def attack_points(network: ActionNetwork, state: Array, ball: Ball, seed: int, n: int = 60, steps: int = 12) -> Array:
    """Random, extreme and PGD points of the ball around one state, PGD on each output's and the joint change."""
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=(n, len(state)))
    unit[: n // 3] = np.sign(unit[: n // 3])  # corners
    unit *= 10.0 ** rng.uniform(-1, 2, size=(n, 1))
    found = [to_ball(ball, unit)]
    layers = [(th.as_tensor(w), th.as_tensor(b)) for w, b in zip(network.weights, network.biases, strict=True)]
    module = next(m for m in ACTIVATIONS.values() if activation_of(m).name == network.activations[0].name)
    if network.activations[0].name == "LeakyReLU":
        module = nn.LeakyReLU(-0.4 if network.activations[0].argmin == 0.0 else 0.1)
    direction = th.as_tensor(rng.normal(size=(n, network.n_outputs)))
    for _ in range(steps):
        x = th.as_tensor(unit, dtype=th.float64).requires_grad_()
        hidden = th.as_tensor(state) + x * th.as_tensor(ball.eps)
        for weight, bias in layers[:-1]:
            hidden = module(hidden @ weight.T + bias)
        output = hidden @ layers[-1][0].T + layers[-1][1]
        gradient = th.autograd.grad((output * direction).sum(), x)[0].numpy()
        step = (
            np.sign(gradient) if ball.norm == "linf" else gradient / (np.linalg.norm(gradient, axis=1, keepdims=True) + 1e-30)
        )
        perturbation = to_ball(ball, unit + 0.3 * step)
        unit = np.divide(perturbation, ball.eps, out=np.zeros_like(unit), where=ball.eps > 0)
        found.append(perturbation)
    return np.concatenate(found)
