"""Per-state certificates: how far a policy's action distribution can move when its observation is perturbed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.bounds import ALL_METHODS, GLOBAL_METHODS, METHODS, ActionChange, Ball, output_interval
from sb3_prune_robust.bounds.absolute import ordered_sum
from sb3_prune_robust.bounds.action import groups
from sb3_prune_robust.bounds.ball import rounding_margin
from sb3_prune_robust.bounds.local import clean_margin
from sb3_prune_robust.certificates.divergences import (
    categorical_kl_bound,
    categorical_tv_bound,
    gaussian_kl,
    gaussian_tv,
    product_tv_bound,
)
from sb3_prune_robust.certificates.events import event_shift, event_tv_bound
from sb3_prune_robust.certificates.noise import categorical_shift
from sb3_prune_robust.certificates.observations import check_forward, check_observations, policy_of, read_network
from sb3_prune_robust.network import ActionNetwork, Array

STOCHASTIC = "the stochastic policy as sampled"
GREEDY = "the policy that plays the choice of highest value, without exploration"
MODE = "the policy that plays its deterministic action"


@dataclass(frozen=True)
class StateBounds:
    """
    Upper bounds over all perturbed observations ``s_hat`` of each of ``n`` states ``s``.

    :param tv: on ``D_TV(pi(.|s), pi(.|s_hat))``, shape ``(n,)``
    :param kl: on ``KL`` between the two in nats, either way round, shape ``(n,)``
    :param radius: on the change of each mean or logit, shape ``(n, n_outputs)``
        (of tanh-squashed actors: of each action, in the environment's units; of Q networks: of each Q value)
    :param delta: Gaussian policies: on ``||Sigma^(-1/2) (mu(s) - mu(s_hat))||_2``, shape ``(n,)``; else ``None``
    :param omega: categorical policies: on the range ``max_i D_i - min_i D_i`` of the logits' changes of each categorical,
        shape ``(n, n_groups)`` (Q networks: of the Q values); else ``None``
    :param margin: categorical policies (but those whose choices are masked) and Q networks, a LOWER bound: by how much the
        output that is largest at the state stays above the others of its categorical, shape ``(n, n_groups)``; where positive,
        a policy that plays the largest provably plays the same over the whole ball (of two equal outputs: none). Else ``None``
    :param shift: ``d`` of certified return 3: at the perturbed observation the policy is a function of the noise of that at
        the state, shifted by at most this many standard deviations, shape ``(n,)``; ``delta`` for Gaussian policies
    """

    tv: Array
    kl: Array
    radius: Array
    delta: Array | None
    omega: Array | None
    margin: Array | None
    shift: Array

    @property
    def greedy_unchanged(self) -> npt.NDArray[np.bool_] | None:
        """
        The states whose likeliest action, or that of highest Q value, provably cannot change, shape ``(n,)``; ``None`` for
        other policies.
        """
        return None if self.margin is None else np.all(self.margin > 0, axis=1)


@dataclass(frozen=True)
class Certificate(StateBounds):
    """
    The bounds of :func:`certify` with their origin. Only ``by_method["abs"]`` is monotone under pruning.

    :param method: name of the method that gave ``tv`` at each state, shape ``(n,)``; of a policy without noise, the ``radius``
        of least sum, or the largest ``margin``
    :param by_method: each method's own bounds
    :param eps: the budget of each input, shape ``(n_inputs,)``
    :param norm: ``"linf"`` or ``"l2"``
    :param assumptions: what the bounds hold for, in words
    """

    method: npt.NDArray[np.str_]
    by_method: dict[str, StateBounds]
    eps: Array
    norm: str
    assumptions: str


def certify(
    policy: Any, observations: npt.ArrayLike, eps: npt.ArrayLike, norm: str = "linf", method: str = "best"
) -> Certificate:
    """
    Bound how far a policy's action distribution can move at each observation, whatever the adversary does within the ball.

    Methods: ``"abs"``, the absolute path product, the same at every state and monotone: zeroing weights (same ``eps``, same
    ``log_std``, no retraining in between) never raises it, here not by a rounding error either. ``"spectral"``, the product of
    spectral norms, and ``"lipsdp"``, which is never looser than it, the same at every state. ``"interval"``, interval bound
    propagation, and ``"crown"``, backward linear relaxation, around each state. ``"best"``, the smallest of all these for each
    quantity. ``"alpha"``, CROWN with optimised lines: tighter, and some 150 times slower, so only where asked for. None but
    ``"abs"`` is monotone under pruning.

    The bounds are about the stochastic policy as sampled, and the real-number function that the stored weights define; they
    are rounded outward, so that they hold for it in spite of float64. What float32 makes of it at run time differs by its own
    rounding. Formulas: ``D_TV = erf(delta / (2 sqrt 2))``, ``KL = delta^2 / 2`` (Gaussian), ``D_TV <= tanh(sum omega / 4)``,
    ``KL <= sum omega^2 / 8`` (categorical; around a state also what the probabilities there allow, see
    :mod:`~sb3_prune_robust.certificates.events`). Nothing in the policy is changed.

    Policies without noise (TD3, DDPG, DQN, QRDQN, ARS) and the mode of SAC, TQC and CrossQ: ``radius`` bounds the change of
    the action itself, ``greedy_unchanged`` tells where it provably stays the same. Two actions played for certain have a total
    variation of 0 or 1: ``tv`` is 0 where the action provably stays the same, else 1, and ``kl`` and ``shift`` infinite.
    MaskablePPO: ``tv`` and ``kl`` hold whatever the mask, as long as the adversary does not change it; no ``margin``.

    :param policy: a policy of PPO, A2C, TRPO (no gSDE), MaskablePPO, SAC, TQC, CrossQ, TD3, DDPG, DQN, QRDQN or ARS, or its
        algorithm
    :param observations: as the policy receives them (normalised where VecNormalize is used), shape ``(n, *obs_shape)``
    :param eps: size of the perturbation in the same units, a number or an array of one per input (0: not attackable)
    :param norm: ``"linf"``: ``|d_i| <= eps_i``; ``"l2"``: ``sum (d_i / eps_i)^2 <= 1``
    :param method: ``"abs"``, ``"spectral"``, ``"lipsdp"``, ``"interval"``, ``"crown"``, ``"alpha"`` or ``"best"``
    :return: the certificate, its arrays of length ``n``
    :raises ValueError: naming the argument, for wrong shapes, values or names; ``UnsupportedNetworkError``, a ValueError, for
        policies that the formulas do not cover
    """
    if method != "best" and method not in ALL_METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, (*ALL_METHODS, 'best')))}; got {method!r}")
    policy = policy_of(policy)
    network = read_network(policy)
    played = STOCHASTIC if network.has_distribution else GREEDY if network.nvec else MODE
    rows = check_observations(observations, policy.observation_space.shape)
    ball = Ball.create(eps, norm, policy.observation_space.shape)
    check_forward(policy, network, rows)
    if not network.nvec and not network.is_gaussian:
        network = network.in_action_units()
    by_method = {
        name: state_bounds(network, rows, ALL_METHODS[name](network, rows, ball), anywhere=name in GLOBAL_METHODS)
        for name in (METHODS if method == "best" else [method])
    }
    return _smallest(by_method, ball, played)


def state_bounds(network: ActionNetwork, observations: Array, change: ActionChange, anywhere: bool = False) -> StateBounds:
    """
    From bounds on the outputs to bounds on the action distribution.

    :param network: the policy's network in float64
    :param observations: shape ``(n, n_inputs)``
    :param change: bounds on the change of its outputs at each of them
    :param anywhere: use nothing but ``change``: where that is the same at every state, so are the results. Else use also the
        probabilities that a categorical policy has at the state
    :return: the bounds
    """
    if not network.has_distribution:
        return _bounds_without_noise(network, observations, change)
    if not network.is_gaussian:
        return _categorical_bounds(network, observations, change, anywhere or network.masked)
    delta = change.distance[:, 0]
    tv, kl = gaussian_tv(_float32_above(delta)), gaussian_kl(delta)
    return StateBounds(_round_up(tv), kl * (1.0 + rounding_margin(4)), change.radius, delta, None, None, delta)


def _categorical_bounds(network: ActionNetwork, observations: Array, change: ActionChange, anywhere: bool) -> StateBounds:
    omega = change.distance
    tv, shift = categorical_tv_bound(_float32_above(ordered_sum(omega.T))), categorical_shift(omega)
    if not anywhere:
        logits = network(observations)
        parts = [(logits[:, group], omega[:, g]) for g, group in enumerate(groups(network))]
        tv = np.minimum(tv, product_tv_bound(np.stack([event_tv_bound(*part) for part in parts], axis=1)) * (1.0 + 1e-12))
        shift = np.minimum(shift, np.sqrt(np.square([event_shift(*part) for part in parts]).sum(axis=0)) * (1.0 + 1e-12))
    kl = ordered_sum(categorical_kl_bound(omega).T) * (1.0 + rounding_margin(omega.shape[1] + 4))
    # Which choice is the largest of those that a mask leaves cannot be known here.
    margin = None if network.masked else _margin(network, observations, change)
    return StateBounds(_round_up(tv), kl, change.radius, None, omega, margin, shift)


def _margin(network: ActionNetwork, observations: Array, change: ActionChange) -> Array:
    if change.margin is not None:
        return change.margin
    return clean_margin(network, *output_interval(network, observations)) - change.distance * (1.0 + rounding_margin(4))


def _bounds_without_noise(network: ActionNetwork, observations: Array, change: ActionChange) -> StateBounds:
    """What is played for certain has a total variation of 0 or 1."""
    margin = _margin(network, observations, change) if network.nvec else None
    stays = np.all(change.radius == 0, axis=1) if margin is None else np.all(margin > 0, axis=1)
    infinite = np.where(stays, 0.0, np.inf)
    omega = change.distance if network.nvec else None
    return StateBounds(np.where(stays, 0.0, 1.0), infinite, change.radius, None, omega, margin, infinite)


def _float32_above(values: Array) -> Array:
    """
    The next float32 above, as float64: covers the roundings of ``values`` and makes what is computed from them monotone.

    ``erf`` of two neighbouring float64 can fall by a unit in the last place; of two neighbouring float32 it cannot.
    """
    with np.errstate(over="ignore"):
        rounded = np.nextafter(values.astype(np.float32), np.float32(np.inf))
    return np.where(values > 0, rounded.astype(np.float64), 0.0)


def _round_up(tv: Array) -> Array:
    return np.minimum(tv * (1.0 + rounding_margin(8)), 1.0)


def _smallest(by_method: dict[str, StateBounds], ball: Ball, played: str) -> Certificate:
    bounds = list(by_method.values())
    names = np.array(list(by_method))

    def chosen(choose: np.ufunc, values: list[Array | None]) -> Array | None:
        arrays = [value for value in values if value is not None]
        return choose.reduce(arrays) if arrays else None

    return Certificate(
        tv=np.minimum.reduce([b.tv for b in bounds]),
        kl=np.minimum.reduce([b.kl for b in bounds]),
        radius=np.minimum.reduce([b.radius for b in bounds]),
        delta=chosen(np.minimum, [b.delta for b in bounds]),
        omega=chosen(np.minimum, [b.omega for b in bounds]),
        margin=chosen(np.maximum, [b.margin for b in bounds]),
        shift=np.minimum.reduce([b.shift for b in bounds]),
        method=names[np.argmin([_loss_of(b, played) for b in bounds], axis=0)],
        by_method=by_method,
        eps=ball.eps,
        norm=ball.norm,
        assumptions=_assumptions(ball, played),
    )


def _loss_of(bounds: StateBounds, played: str) -> Array:
    """What tells the better of two methods at each state, shape ``(n,)``."""
    if played == STOCHASTIC:
        return bounds.tv
    return bounds.radius.sum(axis=1) if bounds.margin is None else -bounds.margin.min(axis=1)


def _assumptions(ball: Ball, played: str) -> str:
    ball_text = "|d_i| <= eps_i" if ball.norm == "linf" else "sum (d_i / eps_i)^2 <= 1"
    low, high = float(ball.eps.min()), float(ball.eps.max())
    size = f"eps = {high:g}" if low == high else f"eps from {low:g} to {high:g}"
    return (
        f"perturbations with {ball_text}, {size}, in units of the observation the policy receives (normaliser's statistics "
        f"frozen); {played}; the real-number function of the stored weights"
    )
