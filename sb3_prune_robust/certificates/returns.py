"""
From total variation per state to the return: performance-difference bounds, estimated from episodes of the clean policy.

With ``TV_max(s)`` a bound on ``D_TV(pi(.|s), pi(.|s_hat))`` over the ball at ``s``, ``rho`` the span of the rewards, ``J`` the
expected discounted return and ``nu`` any adversary, history-dependent and randomised ones included,

    (1)   J(pi) - J(pi o nu) <= rho / (1 - gamma)^2 F,    F = (1 - gamma) E_pi[sum_t gamma^t TV_max(s_t)]
    (1')  J(pi) - J(pi o nu) <= rho E_pi[sum_{t<T} gamma^t h_{T-t} TV_max(s_t)]     episodes of at most T steps
    (2)   the same with D_TV(pi(.|s), pi'(.|s)) bounds J(pi) - J(pi') for any two policies; states from pi

``h_m = (1 - gamma^m) / (1 - gamma)``, or ``m`` at ``gamma = 1``. By the performance difference lemma (Kakade and Langford
2002): a step at ``t`` changes the return by at most ``D_TV`` times the span of the action values, ``rho h`` over the steps
left. Terms after an episode's end are 0. ``F`` is over the DISCOUNTED visitation; a plain average over steps is unsound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.certificates.confidence import MeanBound, lower_mean, upper_mean
from sb3_prune_robust.certificates.rewards import RewardRange
from sb3_prune_robust.network import Array

Episodes = Sequence[npt.ArrayLike]


@dataclass(frozen=True)
class LossBound:
    """
    An upper bound on a loss of expected return.

    :param value: the bound; never more than the span of the return itself, which is then all it says
    :param tv: ``F``, or the weighted sum of (1'), with its upper confidence bound
    :param span: ``rho``, of one step
    :param formula: ``"(1)"`` or ``"(1')"``; for two policies these are (2)
    """

    value: float
    tv: MeanBound
    span: float
    formula: str


def remaining(steps: npt.ArrayLike, gamma: float) -> Array:
    """
    ``h_m = 1 + gamma + ... + gamma^(m-1)``.

    :param steps: ``m``, any shape
    :param gamma: discount in ``(0, 1]``
    :return: same shape
    """
    m = np.asarray(steps, dtype=np.float64)
    return m if gamma == 1 else np.asarray(-np.expm1(m * np.log(gamma)) / (1.0 - gamma))


def total_discount(gamma: float, horizon: int | None) -> float:
    """
    ``1 + gamma + ...``: the return of a reward of 1 at every step.

    :param gamma: discount
    :param horizon: number of terms, ``None`` for no end
    :return: the sum
    """
    return 1.0 / (1.0 - gamma) if horizon is None else float(remaining(horizon, gamma))


def discounted_sums(
    values: Episodes, terminated: Sequence[bool], gamma: float, horizon: int | None = None, tail: float = 0.0
) -> Array:
    """
    ``sum_t gamma^t v_t`` of each episode, with what an infinite horizon that was cut can still hold.

    :param values: one array per episode, a value per step
    :param terminated: whether each episode ended by itself (not by a time limit)
    :param gamma: discount in ``(0, 1]``, below 1 without a horizon
    :param horizon: the cap ``T``, if the task itself ends there; ``None`` for an infinite horizon
    :param tail: bound on the values of the steps that were cut off, each counted: ``gamma^T tail / (1 - gamma)`` is added
    :return: shape ``(n_episodes,)``
    :raises ValueError: for empty, not finite or incomplete episodes, or another ``gamma``
    """
    episodes = check_episodes(values, terminated, gamma, horizon)
    sums = np.array([np.sum(gamma ** np.arange(len(episode)) * episode) for episode in episodes])
    if horizon is not None:
        return sums
    cut = [0.0 if ended else gamma ** len(episode) for episode, ended in zip(episodes, terminated, strict=True)]
    return sums + np.array(cut) * (tail / (1.0 - gamma))


def check_episodes(values: Episodes, terminated: Sequence[bool], gamma: float, horizon: int | None) -> list[Array]:
    """Episodes as float64 vectors; refused if empty, not finite, incomplete or longer than the horizon."""
    check_gamma(gamma, horizon)
    episodes = [np.asarray(episode, dtype=np.float64) for episode in values]
    if not episodes or len(episodes) != len(terminated):
        raise ValueError(
            f"{len(episodes)} episodes and {len(terminated)} terminated flags given; at least one of each, as many"
        )
    for i, (episode, ended) in enumerate(zip(episodes, terminated, strict=True)):
        if episode.ndim != 1 or len(episode) == 0 or not np.all(np.isfinite(episode)):
            raise ValueError(f"values of episode {i} must be a non-empty vector of finite numbers, got shape {episode.shape}")
        if horizon is not None and (len(episode) > horizon or (len(episode) < horizon and not ended)):
            raise ValueError(f"episode {i} has {len(episode)} steps and is incomplete or longer than horizon {horizon}")
    return episodes


def check_gamma(gamma: float, horizon: int | None) -> None:
    """Refuse a discount outside ``(0, 1]``, or of 1 without a horizon, and a horizon below 1."""
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be in (0, 1], got {gamma!r}")
    if horizon is None and gamma == 1:
        raise ValueError("gamma = 1 needs a horizon: without one the return is an infinite sum")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon!r}")


def visitation_tv(
    tv: Episodes, terminated: Sequence[bool], gamma: float, alpha: float = 0.05, tv_everywhere: float = 1.0
) -> MeanBound:
    """
    ``F`` of (1) with an upper confidence bound; what a time limit cut off counts as ``tv_everywhere``.

    :param tv: total variation at each step of each clean, stochastic episode
    :param terminated: whether each episode ended by itself
    :param gamma: discount below 1
    :param alpha: probability that the bound fails
    :param tv_everywhere: a bound PROVED at every state, e.g. ``certify(..., method="abs").tv[0]``: the range of the samples
    :return: mean and upper bound
    :raises ValueError: naming the argument
    """
    _check_tv(tv, tv_everywhere)
    samples = (1.0 - gamma) * discounted_sums(tv, terminated, gamma, tail=tv_everywhere)
    return upper_mean(samples, 0.0, tv_everywhere, alpha)


def capped_tv(
    tv: Episodes, terminated: Sequence[bool], gamma: float, horizon: int, alpha: float = 0.05, tv_everywhere: float = 1.0
) -> MeanBound:
    """
    ``E_pi[sum_{t<T} gamma^t h_{T-t} TV(s_t)]`` of (1') with an upper confidence bound.

    :param tv: total variation at each step of each clean, stochastic episode
    :param terminated: whether each episode ended by itself; the others must have ``horizon`` steps
    :param gamma: discount in ``(0, 1]``
    :param horizon: the cap ``T``
    :param alpha: probability that the bound fails
    :param tv_everywhere: a bound proved at every state
    :return: mean and upper bound
    :raises ValueError: naming the argument
    """
    _check_tv(tv, tv_everywhere)
    episodes = check_episodes(tv, terminated, gamma, horizon)
    weights = gamma ** np.arange(horizon) * remaining(horizon - np.arange(horizon), gamma)
    samples = np.array([np.sum(weights[: len(episode)] * episode) for episode in episodes])
    return upper_mean(samples, 0.0, float(weights.sum()) * tv_everywhere, alpha)


def _check_tv(tv: Episodes, tv_everywhere: float) -> None:
    if not 0 <= tv_everywhere <= 1:
        raise ValueError(f"tv_everywhere must be in [0, 1], got {tv_everywhere!r}")
    for i, episode in enumerate(tv):
        array = np.asarray(episode, dtype=np.float64)
        if not np.all((array >= 0) & (array <= tv_everywhere * (1.0 + 1e-9))):
            raise ValueError(f"tv of episode {i} must be in [0, tv_everywhere = {tv_everywhere:g}]")


def performance_difference(span: float, gamma: float, tv: float) -> float:
    """
    (1) and (2): ``rho / (1 - gamma)^2 F``.

    :param span: ``rho``
    :param gamma: discount below 1
    :param tv: ``F``, or its upper confidence bound
    :return: bound on the loss of return
    """
    return span * tv / (1.0 - gamma) ** 2


def capped_performance_difference(span: float, weighted_tv: float) -> float:
    """
    (1'), and (2) with a cap: ``rho sum_t gamma^t h_{T-t} E[TV(s_t)]``.

    :param span: ``rho``
    :param weighted_tv: the sum, or its upper confidence bound
    :return: bound on the loss of return
    """
    return span * weighted_tv


def loss_bound(
    tv: Episodes,
    terminated: Sequence[bool],
    rewards: RewardRange,
    gamma: float,
    horizon: int | None = None,
    alpha: float = 0.05,
    tv_everywhere: float = 1.0,
) -> LossBound | None:
    """
    (1), or (1') with a horizon, from episodes of the clean policy; (2) if ``tv`` is between two policies.

    :param tv: total variation at each step of each clean, stochastic episode
    :param terminated: whether each episode ended by itself
    :param rewards: the rewards' range
    :param gamma: discount
    :param horizon: the cap, or ``None``
    :param alpha: probability that the bound fails
    :param tv_everywhere: a bound proved at every state
    :return: the bound, or ``None`` (not certified; ``rewards.reason`` says why) if no range is known
    :raises ValueError: naming the argument
    """
    check_gamma(gamma, horizon)
    span = rewards.span
    if span is None:
        return None
    _check_endings(rewards, terminated)
    if horizon is None:
        mean = visitation_tv(tv, terminated, gamma, alpha, tv_everywhere)
        return LossBound(min(performance_difference(span, gamma, mean.bound), span / (1.0 - gamma)), mean, span, "(1)")
    mean = capped_tv(tv, terminated, gamma, horizon, alpha, tv_everywhere)
    whole = span * float(remaining(horizon, gamma))
    return LossBound(min(capped_performance_difference(span, mean.bound), whole), mean, span, "(1')")


def return_lower_bound(
    rewards: Episodes,
    terminated: Sequence[bool],
    known: RewardRange,
    gamma: float,
    horizon: int | None = None,
    alpha: float = 0.05,
) -> MeanBound | None:
    """
    A lower confidence bound on ``J(pi)``; steps that a time limit cut off count as the smallest payment.

    :param rewards: reward of each step of each episode
    :param terminated: whether each episode ended by itself
    :param known: the rewards' range
    :param gamma: discount
    :param horizon: the cap, or ``None``
    :param alpha: probability that the bound fails
    :return: mean and lower bound, or ``None`` if no range is known
    :raises ValueError: naming the argument
    """
    limits = known.limits
    if limits is None:
        return None
    _check_endings(known, terminated)
    samples = discounted_sums(rewards, terminated, gamma, horizon, tail=limits[0])
    low, high = (limit * total_discount(gamma, horizon) for limit in limits)
    return lower_mean(samples, low, high, alpha)


def _check_endings(rewards: RewardRange, terminated: Sequence[bool]) -> None:
    if not rewards.ends_early and any(terminated):
        raise ValueError("terminated holds a true value, but the reward range says ends_early=False: its span is too small")
