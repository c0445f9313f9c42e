"""
Bound C, CROWN: backward linear relaxation around each state. The tightest here, and NOT monotone under pruning.

Zhang et al. 2018 (arXiv 1811.00866). Each activation is put between two lines (:mod:`relaxation`); going backward from linear
functions of the output, every neuron is replaced by its lower or upper line by the sign of its coefficient, until linear
functions of the input are left. Everything is written for CHANGES ``f(s + d) - f(s)``: biases cancel, and so do the roundings
that would swamp a small ball.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sb3_prune_robust.bounds.ball import UNIT_ROUNDOFF, Ball, rounding_margin
from sb3_prune_robust.bounds.interval import activation_interval, affine_interval
from sb3_prune_robust.bounds.relaxation import Interval, Lines, relax
from sb3_prune_robust.network import Activation, Array, Network

# States at a time: what lies between two steps stays in the cache.
CHUNK = 256
# Rows, hidden and input dimension together up to which the first step backward is one matrix product (see `_first_step`).
_LARGEST_PRODUCT = 2**22


@dataclass(frozen=True)
class LinearChange:
    """
    ``lower_slope x + lower_offset <= R (f(s + eps x) - f(s)) <= upper_slope x + upper_offset`` for ``x`` in the unit ball.

    :param lower_slope: shape ``(n, m, n_inputs)``, ``eps`` folded in
    :param lower_offset: shape ``(n, m)``
    :param upper_slope: shape ``(n, m, n_inputs)``
    :param upper_offset: shape ``(n, m)``
    """

    lower_slope: Array
    lower_offset: Array
    upper_slope: Array
    upper_offset: Array

    def bounds(self, ball: Ball) -> tuple[Array, Array]:
        """
        Lower and upper bounds over the ball, rounded outward.

        :param ball: the perturbations
        :return: each of shape ``(n, m)``; infinite where the computation overflowed
        """
        below = self.lower_offset - _dual_norm(self.lower_slope, ball)
        above = self.upper_offset + _dual_norm(self.upper_slope, ball)
        slack = rounding_margin(4) * (np.abs(self.lower_offset) + np.abs(self.upper_offset) + np.abs(below) + np.abs(above))
        below, above = below - slack, above + slack
        return np.where(np.isnan(below), -np.inf, below), np.where(np.isnan(above), np.inf, above)


def _dual_norm(slope: Array, ball: Ball) -> Array:
    """``max_x slope @ x`` over the unit ball, rounded up."""
    margin = 1.0 + rounding_margin(slope.shape[-1] + 4)
    if ball.norm == "linf":
        return np.abs(slope).sum(axis=-1) * margin
    return np.sqrt(np.square(slope).sum(axis=-1)) * margin


@dataclass(frozen=True)
class Layer:
    """
    A hidden layer around ``n`` states.

    :param lines: relaxation of its activation
    :param reach: bound on the change of each pre-activation, summed without cancellation: what rounding errors are relative to
    :param interval: where its pre-activations are
    :param activation: its activation
    """

    lines: Lines
    reach: Array
    interval: Interval
    activation: Activation


def linear_change(network: Network, observations: Array, ball: Ball, rows: Array) -> LinearChange:
    """
    Linear functions of the perturbation that enclose the change of linear functions of the output.

    :param network: a network in float64
    :param observations: shape ``(n, n_inputs)``, float64
    :param ball: the perturbations
    :param rows: ``R``, shape ``(m, n_outputs)``: unit vectors and their differences, so that ``R W`` is rounded once at most
    :return: the enclosure
    """
    if not network.activations:  # the slopes are the same at all states, which are to be as many all the same
        ball = Ball(np.broadcast_to(ball.eps, observations.shape), ball.norm)
    last = rows @ network.weights[-1]
    parts = [backward(network, relaxed_layers(network, *part), part[1], last) for part in chunks(observations, ball)]
    return LinearChange(
        np.concatenate([part.lower_slope for part in parts]),
        np.concatenate([part.lower_offset for part in parts]),
        np.concatenate([part.upper_slope for part in parts]),
        np.concatenate([part.upper_offset for part in parts]),
    )


def chunks(observations: Array, ball: Ball, size: int = CHUNK) -> Iterator[tuple[Array, Ball]]:
    """
    The observations some at a time, with their balls (``eps`` of shape ``(n, n_inputs)`` is one for each).

    :param observations: shape ``(n, n_inputs)``
    :param ball: the perturbations
    :param size: how many at a time
    """
    for start in range(0, len(observations), size):
        part = slice(start, start + size)
        yield observations[part], ball if ball.eps.ndim == 1 else Ball(ball.eps[part], ball.norm)


def relaxed_layers(network: Network, observations: Array, ball: Ball) -> list[Layer]:
    """
    The relaxations of all hidden layers, each over bounds from the layers before it.

    :param network: a network in float64
    :param observations: shape ``(n, n_inputs)``
    :param ball: the perturbations
    :return: one for each activation
    """
    layers: list[Layer] = []
    centre, radius = observations, np.zeros((1, network.n_inputs))
    largest = ball.eps
    for weight, bias, activation in zip(network.weights, network.biases, network.activations, strict=False):
        centre, radius = affine_interval(centre, radius, weight, bias)
        below, above = backward(network, layers, ball, weight).bounds(ball)
        slack = rounding_margin(4) * (np.abs(centre) + radius + np.abs(below) + np.abs(above))
        interval = Interval(centre - radius + below - slack, centre + radius + above + slack, centre, radius)
        reach = np.broadcast_to(largest @ np.abs(weight).T, centre.shape)
        layers.append(Layer(relax(activation, interval), reach, interval, activation))
        low, high = activation_interval(activation, centre - radius, centre + radius)
        centre, radius = 0.5 * (low + high), 0.5 * (high - low)
        largest = activation.lipschitz * np.maximum(np.abs(below), np.abs(above))
    return layers


def backward(network: Network, layers: list[Layer], ball: Ball, rows: Array) -> LinearChange:
    """
    From linear functions of a hidden layer's activations to linear functions of the input.

    :param network: a network in float64
    :param layers: the layers up to that one; none: the functions are of the input itself
    :param ball: the perturbations
    :param rows: their coefficients, shape ``(m, width)``
    :return: the enclosure of their change
    """
    if not layers:
        slope = rows * (ball.eps if ball.eps.ndim == 1 else ball.eps[:, None, :])
        slope = slope if slope.ndim == 3 else slope[None]
        return LinearChange(slope, np.zeros(slope.shape[:2]), slope, np.zeros(slope.shape[:2]))
    weights = network.weights[: len(layers)]
    lower, upper, offsets = _first_step(layers[-1], rows, weights[-1])
    for layer, weight in zip(layers[-2::-1], weights[-2::-1], strict=True):
        lower, upper, offsets = _step(layer, lower, upper, offsets, weight)
    eps = ball.eps if ball.eps.ndim == 1 else ball.eps[:, None, :]
    return LinearChange(lower * eps, offsets[0], upper * eps, offsets[1])


def _first_step(layer: Layer, rows: Array, weight: Array) -> tuple[Array, Array, tuple[Array, Array]]:
    """
    The step for coefficients that are the same for all states: ``(R diag(slope)) W`` is one product of the slopes with
    ``R_ij W_jk``, several times faster than a product for each state.
    """
    lines, absolute = layer.lines, np.abs(rows)
    error = layer_error(layer, weight) @ absolute.T
    offset, half = lines.offset @ rows.T, lines.offset_half @ absolute.T + error
    mean, spread = _scaled_product(lines.slope, rows, weight), _scaled_product(lines.slope_half, absolute, weight)
    return mean - spread, mean + spread, (offset - half, offset + half)


def _scaled_product(slopes: Array, rows: Array, weight: Array) -> Array:
    """``rows diag(slopes) weight`` for each state: ``(n, width)``, ``(m, width)``, ``(width, p)`` to ``(n, m, p)``."""
    if rows.size * weight.shape[1] > _LARGEST_PRODUCT:
        return (rows * slopes[:, None, :]) @ weight
    table = (rows.T[:, :, None] * weight[:, None, :]).reshape(len(weight), -1)
    return (slopes @ table).reshape(len(slopes), len(rows), weight.shape[1])


def _step(
    layer: Layer, lower: Array, upper: Array, offsets: tuple[Array, Array], weight: Array
) -> tuple[Array, Array, tuple[Array, Array]]:
    """The step for coefficients of each state, shape ``(n, m, width)``."""
    lines, error = layer.lines, layer_error(layer, weight)
    slope, half = lines.slope[:, None, :], lines.slope_half[:, None, :]
    size_below, size_above = np.abs(lower), np.abs(upper)
    below = _times(lower, lines.offset) - _times(size_below, lines.offset_half + error)
    above = _times(upper, lines.offset) + _times(size_above, lines.offset_half + error)
    slack = rounding_margin(4) * (np.abs(offsets[0]) + np.abs(offsets[1]) + np.abs(below) + np.abs(above))
    lower, upper = (lower * slope - size_below * half) @ weight, (upper * slope + size_above * half) @ weight
    return lower, upper, (offsets[0] + below - slack, offsets[1] + above + slack)


def _times(coefficients: Array, values: Array) -> Array:
    """``(n, m, width)`` times ``(n, width)``, summed over the width."""
    return np.asarray((coefficients @ values[:, :, None])[:, :, 0])


def layer_error(layer: Layer, weight: Array) -> Array:
    """
    What rounding can do in one step, for each unit of a coefficient, shape ``(n, width)``.

    The products and sums of a step have at most ``2 width + 16`` operations in a row, and everything they add up is at most a
    slope times the change of a pre-activation, taken without cancellation, or an offset.
    """
    lines = layer.lines
    size = (np.abs(lines.slope) + np.abs(lines.slope_half)) * layer.reach + np.abs(lines.offset) + np.abs(lines.offset_half)
    return rounding_margin(2 * max(weight.shape) + 16) * size + UNIT_ROUNDOFF * 1e-250
