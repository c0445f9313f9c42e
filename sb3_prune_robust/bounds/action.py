"""The bounds in the units of a policy's action distribution: whitened actions (Gaussian) or ranges of logits (categorical)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sb3_prune_robust.bounds.absolute import absolute_path_product, ordered_sum, path_norm, path_radius
from sb3_prune_robust.bounds.ball import Ball, rounding_margin
from sb3_prune_robust.bounds.lipsdp import change_bounds
from sb3_prune_robust.bounds.spectral import hidden_change, output_rows, spectral_norm
from sb3_prune_robust.network import ActionNetwork, Array

# The policy stores log_std; its float32 exponential differs between libraries by a unit or two in the last place.
_STD_MARGIN = 2.0**-21


@dataclass(frozen=True)
class ActionChange:
    """
    How far a policy's action distribution can move under the perturbations, for each state.

    :param radius: bound on the change of each mean or logit, shape ``(n, n_outputs)``
    :param distance: Gaussian: bound ``delta`` on ``||Sigma^(-1/2) (mu(s_hat) - mu(s))||_2``, shape ``(n, 1)``. Categorical:
        for each categorical a bound ``omega`` on ``max_i D_i - min_i D_i`` of its logits' changes ``D``, ``(n, n_groups)``
    :param margin: categorical, where the method bounds it by itself: by how much the choice that is likeliest at the state
        stays above the others over the whole ball, at least, shape ``(n, n_groups)``; else ``None``
    """

    radius: Array
    distance: Array
    margin: Array | None = None


def inverse_std(network: ActionNetwork) -> Array:
    """
    ``Sigma^(-1/2)`` of a Gaussian policy, rounded up.

    :param network: the network of a Gaussian policy
    :return: shape ``(n_outputs,)``
    """
    return np.asarray((1.0 + _STD_MARGIN) / np.asarray(network.std, dtype=np.float64))


def groups(network: ActionNetwork) -> list[slice]:
    """The logits of each categorical of a policy."""
    ends = np.cumsum(network.nvec)
    return [slice(int(end) - size, int(end)) for end, size in zip(ends, network.nvec, strict=True)]


def distance_from_radius(network: ActionNetwork, radius: Array) -> Array:
    """
    ``delta`` or ``omega`` from bounds on each output: ``||Sigma^(-1/2) r||_2``, or ``max_{i != j} r_i + r_j``.

    :param network: the policy's network
    :param radius: shape ``(n, n_outputs)``
    :return: shape ``(n, 1)`` or ``(n, n_groups)``
    """
    margin = 1.0 + rounding_margin(network.n_outputs + 4)
    if network.is_gaussian:
        return np.sqrt(ordered_sum(np.square(radius * inverse_std(network)).T))[:, None] * margin
    return np.stack([_two_largest(radius[:, group]) for group in groups(network)], axis=1) * margin


def _two_largest(radius: Array) -> Array:
    if radius.shape[1] == 1:  # one choice: always taken
        return np.zeros(len(radius))
    return np.asarray(np.partition(radius, -2, axis=1)[:, -2:].sum(axis=1))


def absolute_change(network: ActionNetwork, observations: Array, ball: Ball) -> ActionChange:
    """
    Bound A, the absolute path product, the same at every state. The only one that is monotone under pruning.

    Logits use ``r_i + r_j``: the path product of a difference of rows, ``|W_i - W_j|``, is not monotone.

    :param network: the policy's network in float64
    :param observations: shape ``(n, n_inputs)``
    :param ball: the perturbations
    :return: the bound
    """
    product = absolute_path_product(network, ball)
    radius = path_radius(product, ball)[None]
    if network.is_gaussian and ball.norm == "l2":
        whitened = inverse_std(network)[:, None] * product
        distance = np.full((1, 1), path_norm(whitened, ball) * (1.0 + rounding_margin(4)))
    else:
        distance = distance_from_radius(network, radius)
    return _at_every_state(radius, distance, len(observations))


def spectral_change(network: ActionNetwork, observations: Array, ball: Ball) -> ActionChange:
    """
    Bound B, the product of spectral norms, the same at every state; not monotone under pruning.

    ``Sigma^(-1/2)`` is folded into the last layer, and single outputs and differences of logits use its rows, which is never
    looser than ``||Sigma^(-1/2)||``, the layer's norm and ``omega <= sqrt(2) ||D||_2``.

    :param network: the policy's network in float64
    :param observations: shape ``(n, n_inputs)``
    :param ball: the perturbations
    :return: the bound
    """
    change, rows = hidden_change(network, ball), output_rows(network, ball)
    margin = 1.0 + rounding_margin(rows.shape[1] + 8)
    radius = np.linalg.norm(rows, axis=1)[None] * (change * margin)
    if network.is_gaussian:
        distance = np.full((1, 1), spectral_norm(inverse_std(network)[:, None] * rows) * (change * margin))
    else:
        largest = [_largest_difference(rows[group]) for group in groups(network)]
        distance = np.array(largest)[None] * (change * margin)
    return _at_every_state(radius, distance, len(observations))


def _largest_difference(rows: Array) -> float:
    return max(float(np.linalg.norm(rows - row, axis=1).max()) for row in rows)


def lipsdp_change(network: ActionNetwork, observations: Array, ball: Ball) -> ActionChange:
    """
    Bound L, LipSDP, the same at every state and at most bound B; not monotone under pruning.

    Logits: ``D_i - D_j = (e_i - e_j)^T P D`` for the projection ``P`` that subtracts the mean of a categorical's ``D``, hence
    ``omega <= sqrt(2) ||P D||_2``, with equality for two choices.

    :param network: the policy's network in float64
    :param observations: shape ``(n, n_inputs)``
    :param ball: the perturbations
    :return: the bound
    """
    rows, grouped = network.weights[-1], [network.weights[-1][group] for group in groups(network)]
    whitening = inverse_std(network) if network.is_gaussian else np.ones(len(rows))
    joint, bounds = change_bounds(network, ball, whitening[:, None] * rows, [*rows[:, None], *map(_centred, grouped)])
    margin, product = 1.0 + rounding_margin(16), spectral_change(network, observations[:1], ball)
    radius = np.minimum(np.array([bounds[: len(rows)]]), joint / whitening) * margin
    # Roundings in `_centred` are relative to the rows, not to what is left of them: covered by the change of bound B.
    error = np.array([[rounding_margin(len(group) + 8) * float(np.linalg.norm(group)) for group in grouped]])
    omega = math.sqrt(2.0) * np.fmin(np.array([bounds[len(rows) :]]) + error * _input_change(network, ball), joint)
    distance = np.array([[joint]]) * margin if network.is_gaussian else omega * margin
    distance = np.fmin(distance, distance_from_radius(network, radius))
    return _at_every_state(np.fmin(radius, product.radius), np.fmin(distance, product.distance), len(observations))


def _centred(rows: Array) -> Array:
    return rows - rows.mean(axis=0)


def _input_change(network: ActionNetwork, ball: Ball) -> float:
    """Bound on the l_2 change of what the last layer reads."""
    largest = float(np.max(ball.eps)) if len(network.weights) == 1 else 1.0
    return largest * hidden_change(network, ball)


def _at_every_state(radius: Array, distance: Array, n_states: int) -> ActionChange:
    def repeat(bound: Array) -> Array:
        bound = np.where(np.isnan(bound), math.inf, bound)  # overflow: no bound
        return np.repeat(bound, n_states, axis=0)

    return ActionChange(repeat(radius), repeat(distance))
