"""
Bound C, interval bound propagation: per state, usually far tighter than the global bounds, and NOT monotone under pruning.

Gowal et al. 2018 (arXiv 1810.12715). Intervals are kept as centre and radius; every float64 error is added to the radius, so
the intervals enclose the values of the real-number function.
"""

from __future__ import annotations

import numpy as np

from sb3_prune_robust.bounds.ball import UNIT_ROUNDOFF, Ball, rounding_margin
from sb3_prune_robust.network import Activation, Array, Network

# Library functions (tanh, exp, erf, ...) and the few operations around them, in units of last place.
_FUNCTION_ERROR = 32.0
# States at a time: what lies between two steps stays in the cache.
_CHUNK = 256


def output_interval(
    network: Network, observations: Array, ball: Ball | None = None, unit_roundoff: float = UNIT_ROUNDOFF
) -> tuple[Array, Array]:
    """
    Lower and upper bounds on the outputs over the ball around each observation.

    :param network: a network in float64
    :param observations: shape ``(n, n_inputs)``, float64
    :param ball: the perturbations; ``None`` for none: the interval then encloses the output itself
    :param unit_roundoff: 2^-53; with 2^-24 and no ball the interval holds what any float32 evaluation of the network gives
    :return: lower and upper bounds, each of shape ``(n, n_outputs)``
    """
    if len(observations) > _CHUNK:
        chunks = [observations[i : i + _CHUNK] for i in range(0, len(observations), _CHUNK)]
        parts = [output_interval(network, chunk, ball, unit_roundoff) for chunk in chunks]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    first = network.weights[0]
    centre, radius = affine_interval(observations, np.zeros((1, network.n_inputs)), first, network.biases[0], unit_roundoff)
    if ball is not None:
        # l_2: the row norm of the first layer, tighter than the box around the ball.
        radius = radius + ball.row_norms(first * ball.eps) * (1.0 + rounding_margin(network.n_inputs + 8))
    for layer, activation in enumerate(network.activations, start=1):
        if ball is None:
            centre, radius = _activation_nearby(activation, centre, radius, unit_roundoff)
        else:
            lower, upper = activation_interval(activation, centre - radius, centre + radius, unit_roundoff)
            centre, radius = 0.5 * (lower + upper), 0.5 * (upper - lower)
        centre, radius = affine_interval(centre, radius, network.weights[layer], network.biases[layer], unit_roundoff)
    return centre - radius, centre + radius


def affine_interval(
    centre: Array, radius: Array, weight: Array, bias: Array, unit_roundoff: float = UNIT_ROUNDOFF
) -> tuple[Array, Array]:
    """
    ``W [c - r, c + r] + b`` enclosed.

    The errors of ``W c + b`` are at most ``m (|W| |c| + |b|)`` with ``m`` the margin of its ``n + 1`` operations; those of
    ``|W| r`` are ``m |W| r``. Both go into the radius before the product, so that they cost no matrix product of their own.
    The 16 further operations are the roundings from bounds to centre and radius and back.

    :param centre: shape ``(n, n_in)``
    :param radius: shape ``(n, n_in)``
    :param weight: shape ``(n_out, n_in)``
    :param bias: shape ``(n_out,)``
    :param unit_roundoff: relative error of one operation
    :return: centre and radius, each of shape ``(n, n_out)``
    """
    margin = rounding_margin(weight.shape[1] + 16, unit_roundoff)
    spread = radius + margin * (np.abs(centre) + radius)
    return centre @ weight.T + bias, (spread @ np.abs(weight).T + margin * np.abs(bias)) * (1.0 + margin)


def _activation_nearby(activation: Activation, centre: Array, radius: Array, unit_roundoff: float) -> tuple[Array, Array]:
    """The range where ``radius`` is rounding alone, by the Lipschitz constant: one evaluation in place of two."""
    value = activation.function(centre)
    error = _FUNCTION_ERROR * unit_roundoff * (np.abs(value) + np.abs(centre))
    return value, activation.lipschitz * radius + error


def activation_interval(
    activation: Activation, lower: Array, upper: Array, unit_roundoff: float = UNIT_ROUNDOFF
) -> tuple[Array, Array]:
    """
    The range of an activation over an interval: quasi-convex functions are largest at an end, smallest nearest ``argmin``.

    :param activation: the activation
    :param lower: lower ends
    :param upper: upper ends
    :param unit_roundoff: relative error of one operation
    :return: lower and upper ends of an interval that holds the range
    """
    lowest, last = (np.clip(activation.argmin, lower, upper), upper) if np.isfinite(activation.argmin) else (lower, upper)
    low, high = activation.function(lowest), activation.function(last)
    # |x| as well as |f(x)|: GELU, for one, computes 1 + erf(x), whose error is not small beside a small result.
    error = _FUNCTION_ERROR * unit_roundoff
    low_out = low - error * (np.abs(low) + np.abs(lowest))
    high_out = high + error * (np.abs(high) + np.abs(last))
    if np.isfinite(activation.argmin):
        left = activation.function(lower)
        high_out = np.maximum(high_out, left + error * (np.abs(left) + np.abs(lower)))
    return low_out, high_out


def interval_radius(network: Network, observations: Array, ball: Ball) -> Array:
    """
    Bound on the change of each output over the ball: ``max(u - f(s), f(s) - l)``.

    Not the half-width of the interval: ``f(s)`` need not be in its middle.

    :param network: a network in float64
    :param observations: shape ``(n, n_inputs)``, float64
    :param ball: the perturbations
    :return: shape ``(n, n_outputs)``; infinite where the computation overflowed
    """
    lower, upper = output_interval(network, observations, ball)
    output_lower, output_upper = output_interval(network, observations)
    radius = np.maximum(upper - output_lower, output_upper - lower) * (1.0 + rounding_margin(4))
    return np.where(np.isnan(radius), np.inf, radius)
