"""
Certified return 2: likelihood ratios along the trajectory.

With ``w(s, a) <= min_{s_hat in B(s)} pi(a|s_hat) / pi(a|s)``, ``a`` the raw sample before clipping, rewards ``>= 0`` and every
adversary ``nu``,

    J(pi o nu) >= E_pi[ sum_t gamma^t r_t prod_{k<=t} w(s_k, a_k) ]

since a trajectory's density under ``pi o nu`` is at least ``prod_k w(s_k, a_k)`` times that under ``pi``: the dynamics cancel.
``w <= 1``, as ``s`` is in ``B(s)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.bounds.ball import rounding_margin
from sb3_prune_robust.certificates.confidence import lower_mean
from sb3_prune_robust.certificates.return_bounds import (
    ROUNDING,
    ReturnBound,
    shift_offset,
    shifted_episodes,
    subtract_offset,
)
from sb3_prune_robust.certificates.returns import Episodes, discounted_sums, total_discount
from sb3_prune_robust.network import Array

# exp of this is below 1e-304: where omega is larger, w >= e^-omega loses nothing.
_LARGEST_EXPONENT = 700.0
# Zero noise times an infinite bound would be NaN; the square beside it is what makes the sum infinite.
_FINITE = 1e150


def gaussian_log_ratio(noise: npt.ArrayLike, delta: npt.ArrayLike, radius: npt.ArrayLike) -> Array:
    """
    ``log w >= max( -||z|| delta - delta^2 / 2, -sum_i (|z_i| r_i + r_i^2 / 2) )``, rounded down.

    A mean shifted by ``u`` (whitened) gives ``log w = z.u - ||u||^2 / 2``; ``||u|| <= delta`` and ``|u_i| <= r_i``.

    :param noise: ``z = Sigma^(-1/2) (a - mu(s))`` of the raw sample, shape ``(n, action_dim)``
    :param delta: bound on ``||Sigma^(-1/2) (mu(s_hat) - mu(s))||_2``, shape ``(n,)``
    :param radius: bounds on ``|Sigma^(-1/2) (mu(s_hat) - mu(s))|`` of each dimension, WHITENED, shape ``(n, action_dim)``
    :return: shape ``(n,)``, at most 0
    :raises ValueError: for other shapes, noise that is not finite, or bounds that are negative or NaN
    """
    z, d, r = (np.asarray(x, dtype=np.float64) for x in (noise, delta, radius))
    if z.ndim != 2 or r.shape != z.shape or d.shape != z.shape[:1]:
        raise ValueError(
            f"noise, delta and radius must be (n, action_dim), (n,) and as noise; got {z.shape, d.shape, r.shape}"
        )
    if not (np.all(np.isfinite(z)) and np.all(d >= 0) and np.all(r >= 0)):
        raise ValueError("noise must be finite, delta and radius not negative")
    size = np.abs(z)
    by_norm = np.sqrt(np.square(size).sum(axis=1)) * np.minimum(d, _FINITE) + 0.5 * d * d
    by_dimension = (size * np.minimum(r, _FINITE) + 0.5 * r * r).sum(axis=1)
    return -np.minimum(by_norm, by_dimension) * (1.0 + rounding_margin(z.shape[1] + 6))


def categorical_log_ratio(log_prob: npt.ArrayLike, omega: npt.ArrayLike) -> Array:
    """
    ``w >= 1 / (p + e^omega (1 - p))`` for each categorical, ``p`` the probability of the action taken; their logs' sum.

    The log-odds of an action move by at most ``omega``.

    :param log_prob: ``log p`` of the choice that each categorical made, shape ``(n, n_groups)``
    :param omega: ranges of the logits' changes, shape ``(n, n_groups)``
    :return: shape ``(n,)``, at most 0, rounded down
    :raises ValueError: for other shapes, or values that cannot be
    """
    log_p, ranges = np.asarray(log_prob, dtype=np.float64), np.asarray(omega, dtype=np.float64)
    if log_p.ndim != 2 or log_p.shape != ranges.shape:
        raise ValueError(f"log_prob and omega must both be of shape (n, n_groups), got {log_p.shape} and {ranges.shape}")
    if not (np.all(log_p <= 0) and np.all(ranges >= 0)):
        raise ValueError("log_prob must be at most 0 and omega not negative")
    exact = np.log1p(np.expm1(np.minimum(ranges, _LARGEST_EXPONENT)) * -np.expm1(log_p))
    return -np.where(ranges > _LARGEST_EXPONENT, ranges, exact).sum(axis=1) * (1.0 + ROUNDING)


def likelihood_samples(
    rewards: Episodes,
    log_ratios: Episodes,
    terminated: Sequence[bool],
    gamma: float,
    horizon: int | None = None,
    floor: float = 0.0,
) -> Array:
    """
    ``sum_t gamma^t (r_t + c) prod_{k<=t} w_k`` of each episode, whose expectation is at most the attacked return of ``r + c``.

    Steps after an episode's own end pay ``c`` for certain: they are credited with the product at the end.

    :param rewards: reward of each step of each clean, stochastic episode, at or above the floor
    :param log_ratios: lower bounds on ``log w(s_t, a_t)`` of each step
    :param terminated: whether each episode ended by itself; with a horizon the others must have that many steps
    :param gamma: discount in ``(0, 1]``, below 1 without a horizon
    :param horizon: the cap ``T``; ``None``: an infinite horizon, of which what a time limit cut off counts as nothing
    :param floor: ``-c <= 0``, a lower bound on every reward: proved, or made so by clipping; never estimated
    :return: shape ``(n_episodes,)``, non-negative
    :raises ValueError: naming the argument
    """
    shifted, credits = shifted_episodes(rewards, terminated, gamma, horizon, floor)
    if len(log_ratios) != len(shifted):
        raise ValueError(f"{len(shifted)} episodes of rewards and {len(log_ratios)} of log_ratios given")
    products = [_products(log_ratios[i], len(episode), i) for i, episode in enumerate(shifted)]
    sums = [
        episode @ product + credit * product[-1] for episode, product, credit in zip(shifted, products, credits, strict=True)
    ]
    return np.array(sums)


def _products(log_ratios: npt.ArrayLike, n_steps: int, episode: int) -> Array:
    array = np.asarray(log_ratios, dtype=np.float64)
    if array.shape != (n_steps,) or not np.all(array <= 0):
        raise ValueError(f"log_ratios of episode {episode} must be {n_steps} numbers <= 0, got shape {array.shape}")
    return np.asarray(np.exp(np.cumsum(array)))


def likelihood_return_bound(
    rewards: Episodes,
    log_ratios: Episodes,
    terminated: Sequence[bool],
    gamma: float,
    horizon: int | None = None,
    floor: float = 0.0,
    high: float | None = None,
    cap: float | None = None,
    alpha: float = 0.05,
) -> ReturnBound:
    """
    Certified return 2 from episodes of the clean policy; arguments as in :func:`likelihood_samples`.

    Samples are non-negative, so that clipping them from above only lowers their mean: any cap fixed beforehand is sound.

    :param rewards: reward of each step of each episode
    :param log_ratios: lower bounds on ``log w(s_t, a_t)`` of each step
    :param terminated: whether each episode ended by itself
    :param gamma: discount
    :param horizon: the cap on steps, or ``None``
    :param floor: ``-c``
    :param high: largest reward; if it is too small the bound is lower than need be, and still sound
    :param cap: where samples are clipped, fixed before these episodes were seen; ``None``: the largest shifted return,
        ``(max(high, 0) - floor) (1 + gamma + ...)``
    :param alpha: probability that the bound fails
    :return: the bound
    :raises ValueError: naming the argument
    """
    limit = _cap(gamma, horizon, floor, high) if cap is None else cap
    if not (math.isfinite(limit) and limit >= 0):
        raise ValueError(f"cap must be finite and not negative, got {limit!r}")
    samples = likelihood_samples(rewards, log_ratios, terminated, gamma, horizon, floor)
    mean = lower_mean(np.minimum(samples, limit), 0.0, limit, alpha)
    lower = subtract_offset(max(mean.bound, 0.0), shift_offset(gamma, horizon, floor))
    clean = float(discounted_sums(rewards, terminated, gamma, horizon, tail=floor).mean())
    return ReturnBound(lower, clean, mean.confidence, len(samples), "likelihood-ratio")


def _cap(gamma: float, horizon: int | None, floor: float, high: float | None) -> float:
    if high is None:
        raise ValueError("high or cap must be given: without one of them the samples have no known range")
    # An ended episode pays 0, which is above `high` where all rewards are negative.
    return (max(high, 0.0) - floor) * total_discount(gamma, horizon)
