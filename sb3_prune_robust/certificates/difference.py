"""How far apart two policies are at each state: what (2) of `returns` bounds the pruning loss with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.bounds import output_interval
from sb3_prune_robust.bounds.action import distance_from_radius, groups
from sb3_prune_robust.certificates.divergences import (
    categorical_kl,
    categorical_tv,
    diagonal_gaussian_kl,
    gaussian_tv,
    product_tv_bound,
    tv_from_kl,
)
from sb3_prune_robust.certificates.observations import check_forward, check_observations, policy_of, read_noise
from sb3_prune_robust.network import ActionNetwork, Array

# Softmax, logarithms and sums in float64 leave less than this of a total variation or divergence.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PolicyDifference:
    """
    Two policies' distance at each of ``n`` states.

    :param tv: ``D_TV(pi(.|s), pi'(.|s))`` or a bound on it, shape ``(n,)``
    :param method: ``"exact"`` (up to rounding outward), ``"kl"`` (Gaussians whose std differ: Pinsker and Bretagnolle-Huber)
        or ``"product"`` (MultiDiscrete: ``1 - prod (1 - D_TV)``)
    """

    tv: Array
    method: str


def policy_difference(policy: Any, other: Any, observations: npt.ArrayLike) -> PolicyDifference:
    """
    Total variation between two policies at each observation, e.g. a dense policy and its pruned copy.

    :param policy: an SB3 policy or algorithm, as for ``certify``
    :param other: another one of the same spaces
    :param observations: as both receive them, shape ``(n, *obs_shape)``
    :return: the distances
    :raises ValueError: naming the argument; if the two have other observation or action spaces
    """
    policy, other = policy_of(policy), policy_of(other)
    ours, theirs = read_noise(policy), read_noise(other)
    if policy.observation_space.shape != other.observation_space.shape or policy.action_space != other.action_space:
        raise ValueError(
            f"policy and other must have the same spaces, got {policy.observation_space}, {policy.action_space} and "
            f"{other.observation_space}, {other.action_space}"
        )
    rows = check_observations(observations, policy.observation_space.shape)
    check_forward(policy, ours, rows)
    check_forward(other, theirs, rows)
    return _gaussian(ours, theirs, rows) if ours.is_gaussian else _categorical(ours, theirs, rows)


def _gaussian(ours: ActionNetwork, theirs: ActionNetwork, rows: Array) -> PolicyDifference:
    assert ours.std is not None and theirs.std is not None
    if np.array_equal(ours.std, theirs.std):
        lower, upper = output_interval(ours, rows)
        other_lower, other_upper = output_interval(theirs, rows)
        delta = distance_from_radius(ours, np.maximum(upper - other_lower, other_upper - lower))[:, 0]
        return PolicyDifference(_upward(gaussian_tv(delta)), "exact")
    mean, other_mean = ours(rows), theirs(rows)
    kl = np.minimum(
        diagonal_gaussian_kl(mean, ours.std, other_mean, theirs.std),
        diagonal_gaussian_kl(other_mean, theirs.std, mean, ours.std),
    )
    return PolicyDifference(_upward(tv_from_kl(kl * (1.0 + 1e-6) + _ROUNDING)), "kl")


def _categorical(ours: ActionNetwork, theirs: ActionNetwork, rows: Array) -> PolicyDifference:
    logits, other_logits = ours(rows), theirs(rows)
    each = [categorical_tv(logits[:, group], other_logits[:, group]) for group in groups(ours)]
    if len(each) == 1:
        return PolicyDifference(_upward(each[0]), "exact")
    kl = np.sum([categorical_kl(logits[:, group], other_logits[:, group]) for group in groups(ours)], axis=0)
    product = product_tv_bound(np.stack(each, axis=-1))
    return PolicyDifference(_upward(np.minimum(product, tv_from_kl(kl + _ROUNDING))), "product")


def _upward(tv: Array) -> Array:
    return np.minimum(tv * (1.0 + _ROUNDING) + _ROUNDING, 1.0)
