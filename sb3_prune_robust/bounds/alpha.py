"""
Bound C with optimised lines, alpha-CROWN: for each output and state the lines that suit it best.

After Xu et al. 2021 (arXiv 2011.13824), who optimise the slopes of ReLU. Here every neuron has up to three pairs of lines
(:func:`~sb3_prune_robust.bounds.relaxation.candidates`), any convex combination of which is sound: gradient steps on the
weights in torch only look for good ones, and the bound itself is then computed as CROWN computes it, rounding included. The
bounds on hidden layers stay CROWN's. Some 150 times slower than CROWN; NOT monotone under pruning.
"""

from __future__ import annotations

import numpy as np
import torch as th

from sb3_prune_robust.bounds.ball import UNIT_ROUNDOFF, Ball, rounding_margin
from sb3_prune_robust.bounds.crown import (
    CHUNK,
    Layer,
    LinearChange,
    backward,
    chunks,
    layer_error,
    linear_change,
    relaxed_layers,
)
from sb3_prune_robust.bounds.relaxation import candidates
from sb3_prune_robust.network import Array, Network

_STEPS = 20
# States, rows, both sides and hidden neurons together: a few hundred MB with the optimiser's state.
_LARGEST = 2**20
_LEARNING_RATE = 0.5
# The start: nearly all weight on the lines of CROWN, but gradients through the others.
_FIRST_LOGIT = 3.0

# One side's lines of a layer: slopes and offsets of the candidates, each of shape (n, 1, width, k).
Side = tuple[Array, Array]


def optimised_change(network: Network, observations: Array, ball: Ball, rows: Array) -> LinearChange:
    """
    As :func:`~sb3_prune_robust.bounds.crown.linear_change`, never looser for any row and side, and often tighter.

    :param network: a network in float64
    :param observations: shape ``(n, n_inputs)``, float64
    :param ball: the perturbations
    :param rows: linear functions of the output, shape ``(m, n_outputs)``
    :return: the enclosure of their change
    """
    if not network.activations:
        return linear_change(network, observations, ball, rows)
    last = rows @ network.weights[-1]
    n_weights = 2 * len(rows) * sum(len(weight) for weight in network.weights[:-1])
    size = min(CHUNK, max(1, _LARGEST // n_weights))
    parts = [_chunk(network, *part, last) for part in chunks(observations, ball, size)]
    return LinearChange(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _chunk(network: Network, observations: Array, ball: Ball, last: Array) -> tuple[Array, Array, Array, Array]:
    layers = relaxed_layers(network, observations, ball)
    plain = backward(network, layers, ball, last)
    sides = [_sides(layer) for layer in layers]
    both = np.concatenate([-last, last])  # a lower bound is minus an upper bound of minus the row
    slope, offset = _upper(network, layers, sides, _weights(network, sides, ball, both), both)
    slope = slope * (ball.eps if ball.eps.ndim == 1 else ball.eps[:, None, :])
    m = len(last)
    better = LinearChange(-slope[:, :m], -offset[:, :m], slope[:, m:], offset[:, m:])
    (below, above), (plain_below, plain_above) = better.bounds(ball), plain.bounds(ball)
    low, high = below > plain_below, above < plain_above
    return (
        np.where(low[:, :, None], better.lower_slope, plain.lower_slope),
        np.where(low, better.lower_offset, plain.lower_offset),
        np.where(high[:, :, None], better.upper_slope, plain.upper_slope),
        np.where(high, better.upper_offset, plain.upper_offset),
    )


def _sides(layer: Layer) -> tuple[Side, Side]:
    """All lower and all upper lines of a layer."""
    lines = candidates(layer.activation, layer.interval)
    lower, upper = zip(*((pair.lower, pair.upper) for pair in lines), strict=True)
    return _stacked(lower), _stacked(upper)


def _stacked(lines: tuple[tuple[Array, Array], ...]) -> Side:
    slopes, offsets = zip(*lines, strict=True)
    return np.stack(slopes, axis=-1)[:, None], np.stack(offsets, axis=-1)[:, None]


def _weights(network: Network, sides: list[tuple[Side, Side]], ball: Ball, rows: Array) -> list[tuple[Array, Array]]:
    """Weights of the lower and the upper lines, for each layer of shape ``(n, m, width, k)``, by Adam on the upper bounds."""
    lines = [tuple(tuple(th.as_tensor(array) for array in side) for side in pair) for pair in sides]
    matrices = [th.as_tensor(weight) for weight in network.weights[:-1]]
    eps = th.as_tensor(ball.eps if ball.eps.ndim == 1 else ball.eps[:, None, :])
    logits = []
    for (lower, _), _ in lines:
        start = th.zeros(lower.shape[0], len(rows), *lower.shape[2:], dtype=th.float64)
        start[..., 0] = _FIRST_LOGIT
        logits += [start.clone().requires_grad_(), start.clone().requires_grad_()]
    optimizer = th.optim.Adam(logits, lr=_LEARNING_RATE)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        coefficients, bound = th.as_tensor(rows)[None], th.zeros((), dtype=th.float64)
        for i in reversed(range(len(lines))):
            low, high = (th.softmax(logit, dim=-1) for logit in logits[2 * i : 2 * i + 2])
            (low_slope, low_offset), (high_slope, high_offset) = lines[i]
            negative, positive = coefficients.clamp(max=0.0), coefficients.clamp(min=0.0)
            bound = bound + (positive * (high * high_offset).sum(-1) + negative * (low * low_offset).sum(-1)).sum()
            coefficients = (positive * (high * high_slope).sum(-1) + negative * (low * low_slope).sum(-1)) @ matrices[i]
        bound = bound + th.linalg.vector_norm(coefficients * eps, ord=1 if ball.norm == "linf" else 2, dim=-1).sum()
        bound.backward()
        optimizer.step()
    chosen = [th.softmax(logit.detach(), dim=-1).numpy() for logit in logits]
    return [(low, high) for low, high in zip(chosen[::2], chosen[1::2], strict=True)]


def _upper(
    network: Network, layers: list[Layer], sides: list[tuple[Side, Side]], weights: list[tuple[Array, Array]], rows: Array
) -> tuple[Array, Array]:
    """The upper bound with combined lines: slopes, before ``eps``, and offsets with all that rounding can do."""
    coefficients, offset = rows[None], np.zeros((1, len(rows)))
    for layer, (lower, upper), (low, high), matrix in reversed(
        list(zip(layers, sides, weights, network.weights[:-1], strict=True))
    ):
        error = _error(layer, lower, upper, matrix)[:, None, :]
        negative, positive = np.minimum(coefficients, 0.0), np.maximum(coefficients, 0.0)
        terms = positive * (_mixed(high, upper[1]) + error) + negative * (_mixed(low, lower[1]) - error)
        margin = rounding_margin(coefficients.shape[-1] + 8)
        offset = offset + terms.sum(axis=-1) + margin * (np.abs(terms).sum(axis=-1) + np.abs(offset))
        coefficients = (positive * _mixed(high, upper[0]) + negative * _mixed(low, lower[0])) @ matrix
    return coefficients, offset


def _mixed(weights: Array, values: Array) -> Array:
    return np.asarray((weights * values).sum(axis=-1) / weights.sum(axis=-1))


def _error(layer: Layer, lower: Side, upper: Side, matrix: Array) -> Array:
    """
    Rounding of one step, as :func:`~sb3_prune_robust.bounds.crown.layer_error` with the largest of all lines.

    Weights that add up to 1 but for rounding put a line off by as much of itself: the 16 further operations.
    """
    size = layer_error(layer, matrix)
    for slopes, offsets in (lower, upper):
        largest = np.abs(slopes).max(axis=-1)[:, 0] * layer.reach + np.abs(offsets).max(axis=-1)[:, 0]
        size = size + rounding_margin(2 * max(matrix.shape) + 32) * largest
    return size + UNIT_ROUNDOFF * 1e-250
