"""Bounds around each state, in the units of a policy's action distribution: interval propagation, CROWN, alpha-CROWN."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np

from sb3_prune_robust.bounds.action import ActionChange, distance_from_radius, groups, inverse_std
from sb3_prune_robust.bounds.alpha import optimised_change
from sb3_prune_robust.bounds.ball import UNIT_ROUNDOFF, Ball, rounding_margin
from sb3_prune_robust.bounds.box import box_norm_bound
from sb3_prune_robust.bounds.crown import LinearChange, chunks, linear_change
from sb3_prune_robust.bounds.interval import interval_radius, output_interval
from sb3_prune_robust.network import ActionNetwork, Array

# Categoricals with more choices than this get `r_i + r_j` in place of a bound for each of their pairs.
_LARGEST_GROUP = 32

Enclosure = Callable[[ActionNetwork, Array, Ball, Array], LinearChange]


def interval_change(network: ActionNetwork, observations: Array, ball: Ball) -> ActionChange:
    """
    Bound C, interval bound propagation at each state; not monotone under pruning.

    :param network: the policy's network in float64
    :param observations: shape ``(n, n_inputs)``
    :param ball: the perturbations
    :return: the bound
    """
    radius = interval_radius(network, observations, ball)
    return ActionChange(radius, distance_from_radius(network, radius))


def crown_change(network: ActionNetwork, observations: Array, ball: Ball) -> ActionChange:
    """
    Bound C, CROWN at each state, on whitened actions jointly or on differences of logits; not monotone under pruning.

    :param network: the policy's network in float64
    :param observations: shape ``(n, n_inputs)``
    :param ball: the perturbations
    :return: the bound
    """
    return _linear(network, observations, ball, linear_change)


def alpha_change(network: ActionNetwork, observations: Array, ball: Ball) -> ActionChange:
    """
    Bound C, CROWN with optimised lines at each state, never looser than :func:`crown_change`; not monotone under pruning.

    :param network: the policy's network in float64
    :param observations: shape ``(n, n_inputs)``
    :param ball: the perturbations
    :return: the bound
    """
    plain, better = crown_change(network, observations, ball), _linear(network, observations, ball, optimised_change)
    # Lines that are best for each output by itself need not be so for all of them together.
    margin = None if plain.margin is None or better.margin is None else np.maximum(plain.margin, better.margin)
    return ActionChange(np.minimum(plain.radius, better.radius), np.minimum(plain.distance, better.distance), margin)


def _linear(network: ActionNetwork, observations: Array, ball: Ball, enclose: Enclosure) -> ActionChange:
    parts = [_linear_part(network, *part, enclose) for part in chunks(observations, ball)]
    margins = [part.margin for part in parts if part.margin is not None]
    return ActionChange(
        np.concatenate([part.radius for part in parts]),
        np.concatenate([part.distance for part in parts]),
        np.concatenate(margins) if margins else None,
    )


def _linear_part(network: ActionNetwork, observations: Array, ball: Ball, enclose: Enclosure) -> ActionChange:
    outputs = np.eye(network.n_outputs)
    if network.is_gaussian:
        change = enclose(network, observations, ball, outputs)
        radius = _radius(*change.bounds(ball))
        joint = joint_norm(change, inverse_std(network), ball)
        return ActionChange(radius, np.fmin(distance_from_radius(network, radius), joint[:, None]))
    pairs = logit_pairs(network)
    rows = np.stack([*outputs, *(outputs[i] - outputs[j] for i, j in pairs)])
    below, above = enclose(network, observations, ball, rows).bounds(ball)
    n = network.n_outputs
    radius = _radius(below[:, :n], above[:, :n])
    return _categorical(network, observations, radius, pairs, below[:, n:], above[:, n:])


def _radius(below: Array, above: Array) -> Array:
    return np.maximum(-below, above)


def logit_pairs(network: ActionNetwork) -> list[tuple[int, int]]:
    """The pairs of logits of each categorical of a policy, but for very large ones."""
    small = [group for group in groups(network) if group.stop - group.start <= _LARGEST_GROUP]
    return [pair for group in small for pair in combinations(range(group.start, group.stop), 2)]


def _categorical(
    network: ActionNetwork, observations: Array, radius: Array, pairs: list[tuple[int, int]], below: Array, above: Array
) -> ActionChange:
    """``omega`` and the margin of the likeliest choice, from bounds on the changes of ``z_i - z_j``."""
    omega = distance_from_radius(network, radius)
    low, high = output_interval(network, observations)
    margin = clean_margin(network, low, high) - omega
    for g, group in enumerate(groups(network)):
        own = [k for k, (i, _) in enumerate(pairs) if group.start <= i < group.stop]
        if own:
            omega[:, g] = np.fmin(omega[:, g], _radius(below[:, own], above[:, own]).max(axis=1))
            differences = [(pairs[k], below[:, k], above[:, k]) for k in own]
            margin[:, g] = np.fmax(margin[:, g], _pair_margin(low, high, group, differences))
    return ActionChange(radius, omega, _rounded_down(margin))


def clean_margin(network: ActionNetwork, low: Array, high: Array) -> Array:
    """
    By how much the largest logit of each categorical is above the others, at least.

    :param network: the policy's network
    :param low: lower bounds of the logits, shape ``(n, n_outputs)``
    :param high: upper bounds
    :return: shape ``(n, n_groups)``; infinite where there is one choice only
    """
    margins = []
    for group in groups(network):
        below, above = low[:, group], high[:, group].copy()
        top = below.argmax(axis=1)[:, None]
        np.put_along_axis(above, top, -np.inf, axis=1)
        margins.append(np.take_along_axis(below, top, axis=1)[:, 0] - above.max(axis=1))
    return _rounded_down(np.stack(margins, axis=1))


def _pair_margin(low: Array, high: Array, group: slice, differences: list[tuple[tuple[int, int], Array, Array]]) -> Array:
    """The least, over the ball and the other choices ``j``, of ``z_top - z_j``."""
    top = low[:, group].argmax(axis=1) + group.start
    margin = np.full(len(low), np.inf)
    for (i, j), below, above in differences:
        margin = np.where(top == i, np.minimum(margin, low[:, i] - high[:, j] + below), margin)
        margin = np.where(top == j, np.minimum(margin, low[:, j] - high[:, i] - above), margin)
    return margin


def _rounded_down(margin: Array) -> Array:
    """Sums of three terms; where they nearly cancel, the interval that holds the logits is wider than this by far."""
    return np.where(np.isnan(margin), -np.inf, margin * (1.0 - rounding_margin(8) * np.sign(margin)))


def joint_norm(change: LinearChange, scales: Array, ball: Ball) -> Array:
    """
    Bound on ``||diag(scales) (f(s + d) - f(s))||_2``, the outputs taken together: not all can be at their worst at once.

    With ``M`` the mean of the two linear functions and ``e`` what is left, ``max ||M x||_2 + ||e||_2``.

    :param change: the enclosure of each output
    :param scales: positive, shape ``(n_outputs,)``
    :param ball: the perturbations
    :return: shape ``(n,)``
    """
    slope = 0.5 * (change.lower_slope + change.upper_slope) * scales[:, None]
    # |f - M x| <= |A_u - A_l| / 2 at its worst, plus the larger offset; and what rounding did to M.
    spread = 0.5 * (change.upper_slope - change.lower_slope)
    rest = LinearChange(-spread, change.lower_offset, spread, change.upper_offset)
    below, above = rest.bounds(ball)
    rounding = rounding_margin(slope.shape[-1] + 8) * np.abs(slope).sum(axis=-1)
    left = np.sqrt(np.square(_radius(below, above) * scales + rounding).sum(axis=-1))
    largest = box_norm_bound(slope) if ball.norm == "linf" else _spectral_norms(slope)
    return (largest + left) * (1.0 + rounding_margin(2 * len(scales) + 16))


def _spectral_norms(matrices: Array) -> Array:
    """The margin is that of :func:`~sb3_prune_robust.bounds.spectral.spectral_norm`."""
    finite = np.isfinite(matrices).all(axis=(1, 2))
    norms = np.full(len(matrices), np.inf)
    size = matrices[0].size
    norms[finite] = np.linalg.norm(matrices[finite], 2, axis=(1, 2)) * (1.0 + 10.0 * (size + 10) * UNIT_ROUNDOFF)
    return norms
