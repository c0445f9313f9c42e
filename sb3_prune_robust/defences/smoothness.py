"""
How far a policy's actions move over the ball, as a loss: at a perturbed observation found by an attack, or by a bound.

The measure is that of the policy (Zhang et al. 2020, arXiv 2003.08938, sections 3.3 to 3.5), ``s'`` the perturbed observation:

- Gaussian: ``KL = sum(((mu(s') - mu(s)) / sigma)^2) / 2``; sigma takes part in the gradient
- categorical: ``KL(pi(s) || pi(s'))``, summed over those of MultiDiscrete actions; bounded by ``omega^2 / 8``, ``omega`` the
  change of log-odds
- SAC, TD3: ``||a(s') - a(s)||^2 / 2``, ``a`` the deterministic action in [-1, 1]
- DQN: ``max(max_(j != i) Q(s', j) - Q(s', i), -margin)``, ``i`` the greedy choice at ``s``: by how much another choice may win
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch as th

from sb3_prune_robust.attacks import MAD, PGD, SGLDMAD, Attack
from sb3_prune_robust.defences.convex import Chain
from sb3_prune_robust.network import action_modules, choices, distributions, is_greedy, kind_of, outputs

INNER = ("pgd", "sgld", "convex")


def make_inner(policy: Any, inner: str, eps: Any, norm: str, steps: int, seed: int) -> Attack:
    """
    The attack that looks for the worst observation of the ball.

    :param policy: the policy that will be attacked
    :param inner: ``"pgd"``, one search with steps that fall towards 0, the best point kept; ``"sgld"``, the references' form
        (of SAC and TD3 in units of the action space)
    :param eps: radius
    :param norm: ``"linf"`` or ``"l2"``
    :param steps: gradient steps
    :param seed: of its random numbers
    """
    if inner == "sgld":
        return SGLDMAD(eps, norm, seed=seed, steps=steps)
    if kind_of(policy) in ("squashed", "actor"):  # MAD would weigh actions by the widths of their ranges
        return PGD(eps, norm, seed=seed, steps=steps, restarts=1, objective=divergence)
    return MAD(eps, norm, seed=seed, steps=steps, restarts=1)


def divergence(policy: Any, observations: th.Tensor, perturbed: th.Tensor, margin: float = 1.0) -> th.Tensor:
    """
    The measure between true and perturbed observations, through the policy's own modules.

    :param policy: an SB3 policy
    :param observations: as the policy receives them, shape ``(n, *shape)``
    :param perturbed: same shape
    :param margin: of DQN's hinge
    :return: shape ``(n,)``, differentiable in the policy's parameters
    """
    if kind_of(policy) == "distribution":
        pairs = zip(distributions(policy, observations), distributions(policy, perturbed), strict=True)
        terms = [th.distributions.kl_divergence(before, after).reshape(len(observations), -1) for before, after in pairs]
        return th.cat(terms, dim=1).sum(dim=1)
    after = outputs(policy, perturbed)
    if is_greedy(policy):
        return rival_margin(outputs(policy, observations).detach().argmax(dim=1), after, margin)
    return 0.5 * (after.tanh() - outputs(policy, observations).tanh()).square().sum(dim=1)


def rival_margin(chosen: th.Tensor, values: th.Tensor, margin: float) -> th.Tensor:
    """``max(max_(j != i) values_j - values_i, -margin)``, ``i`` the chosen: shapes ``(n,)``, ``(n, n_choices)``, ``(n,)``."""
    chosen = chosen[:, None]
    rival = values.scatter(1, chosen, -th.inf).max(dim=1).values
    return (rival - values.gather(1, chosen)[:, 0]).clamp(min=-margin)


def bound(
    policy: Any, chain: Chain, observations: th.Tensor, eps: th.Tensor, norm: str, linear: float, margin: float = 1.0
) -> th.Tensor:
    """
    An upper bound on the measure over the ball.

    :param policy: an SB3 policy
    :param chain: its action network
    :param observations: as the policy receives them, shape ``(n, *shape)``
    :param eps: radius, shape ``(d,)``
    :param norm: ``"linf"`` or ``"l2"``
    :param linear: share of the linear relaxation in the bound, the rest is the interval bound's
    :param margin: of DQN's hinge
    :return: shape ``(n,)``, differentiable in the policy's parameters
    """
    flat = observations.flatten(start_dim=1).to(eps.dtype)
    if kind_of(policy) == "distribution":
        distance = action_distance(policy, chain, flat, eps, norm, linear)
        return distance.square().sum(dim=1) / (8.0 if choices(policy) else 2.0)
    if is_greedy(policy):
        return _margin_bound(chain, flat, eps, norm, linear, margin)
    radius, clean = chain.radius(flat, eps, norm, linear), chain.outputs(flat)
    played = clean.tanh()
    moved = th.maximum((clean + radius).tanh() - played, played - (clean - radius).tanh())
    return 0.5 * moved.square().sum(dim=1)


def action_distance(policy: Any, chain: Chain, flat: th.Tensor, eps: th.Tensor, norm: str, linear: float) -> th.Tensor:
    """
    An upper bound on ``|mu_i(s') - mu_i(s)| / sigma_i`` of each action dimension, or on ``omega`` of each categorical.

    :param policy: an SB3 actor-critic policy
    :param chain: its action network
    :param flat: observations, shape ``(n, d)``
    :param eps: radius, shape ``(d,)``
    :param norm: ``"linf"`` or ``"l2"``
    :param linear: share of the linear relaxation in the bound
    :return: shape ``(n, k)``
    """
    nvec = choices(policy)
    if not nvec:
        return chain.radius(flat, eps, norm, linear) / policy.log_std.exp()
    groups, rows = _pairs(nvec, flat)
    radius = chain.radius(flat, eps, norm, linear, rows)
    return th.stack([radius[:, group].max(dim=1).values for group in groups], dim=1)


def _pairs(nvec: tuple[int, ...], like: th.Tensor) -> tuple[list[slice], th.Tensor]:
    """Where the pairs of each categorical with at least two choices lie, and ``z_i - z_j`` of all as rows."""
    groups: list[slice] = []
    pairs: list[tuple[int, int]] = []
    start = 0
    for n in nvec:
        own = list(combinations(range(start, start + n), 2))
        if own:
            groups.append(slice(len(pairs), len(pairs) + len(own)))
        pairs += own
        start += n
    unit = th.eye(start, dtype=like.dtype, device=like.device)
    return groups, th.stack([unit[i] - unit[j] for i, j in pairs])


def _margin_bound(chain: Chain, flat: th.Tensor, eps: th.Tensor, norm: str, linear: float, margin: float) -> th.Tensor:
    values = chain.outputs(flat)
    n = values.shape[1]
    _, rows = _pairs((n,), flat)
    radius = chain.radius(flat, eps, norm, linear, rows)
    table = radius.new_zeros(len(flat), n, n)
    upper = th.triu_indices(n, n, 1, device=flat.device)
    table[:, upper[0], upper[1]] = radius
    chosen = values.detach().argmax(dim=1)
    widest = (table + table.transpose(1, 2))[th.arange(len(flat)), chosen]
    # The chosen one's own entry is 0, so that only its rivals are raised.
    return rival_margin(chosen, values + widest, margin)


def chain_of(policy: Any) -> Chain:
    """
    The action network of a policy, for :func:`bound`.

    :raises UnsupportedNetworkError: if it is not a plain chain of layers with known activations
    """
    return Chain(action_modules(policy))
