"""
Certified return 3: the noise of a stochastic policy is its own smoothing.

Under attack a Gaussian policy plays ``mu(s_t) + Sigma^(1/2) (z_t + u_t)``, ``z_t`` standard normal, ``u_t`` chosen by the
adversary before ``z_t`` is drawn, ``||u_t||_2 <= d(s_t)``. Let ``R_D`` be the return over the steps before the first ``t``
with ``sum_{k<=t} d(s_k)^2 > D^2``. For rewards ``>= 0``, every adversary ``nu`` and every ``x``

    P_{pi o nu}(R >= x) >= P_{pi o nu}(R_D >= x) >= Phi( Phi^(-1)( P_pi(R_D >= x) ) - D )
    J(pi o nu) >= int_0^inf Phi( Phi^(-1)( P_pi(R_D >= x) ) - D ) dx

The budget is counted along the TRUE states. What is left of it at the stop is spent on one more Gaussian, so that ``sum u.z``
has predictable variances of total ``D^2``, hence is ``N(0, D^2)`` under the clean law, and Neyman-Pearson gives the trade-off
of ``N(0, 1)`` against ``N(D, 1)``. (Kumar, Levine and Feizi 2022, for noise on observations; Smith and Thakurta 2022, adaptive
budgets.) ``d`` must be a function of the state that bounds the shift at EVERY state: attacked episodes visit others than clean
ones. The choices of a categorical policy whose log-odds move by at most ``omega`` are a function of one Gaussian that is
shifted by ``d = 2 Phi^(-1)(sigma(omega/2))`` (Blackwell 1953): the rest is the same. A constant ``d = eps / noise_std``, for
noise added to observations that an adversary moves by ``eps`` in l_2, is policy smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import log_expit, ndtr, ndtri, ndtri_exp

from sb3_prune_robust.bounds.ball import rounding_margin
from sb3_prune_robust.certificates.band import survival_band
from sb3_prune_robust.certificates.return_bounds import (
    ROUNDING,
    ReturnBound,
    shift_offset,
    shifted_episodes,
    subtract_offset,
)
from sb3_prune_robust.certificates.returns import Episodes, discounted_sums
from sb3_prune_robust.network import Array


def categorical_shift(omega: npt.ArrayLike) -> Array:
    """
    ``d = 2 Phi^(-1)(sigma(omega / 2))``, rounded up; for several independent categoricals ``sqrt(sum_g d_g^2)``.

    ``x -> Phi^(-1)(sigma(x + omega)) - Phi^(-1)(sigma(x))`` is largest at ``x = -omega / 2``, so that in Gaussian units no
    event's probability moves by more than ``d``. ``sqrt(2 pi) omega / 4``, the tangent at 0 of the concave formula, is a
    bound too, and for small ``omega`` the one with the smaller rounding error.

    :param omega: ranges of the logits' changes, shape ``(n, n_groups)``, or ``(n,)`` for one categorical
    :return: shape ``(n,)``; infinite where an ``omega`` is
    :raises ValueError: for a negative ``omega`` or NaN
    """
    ranges = np.asarray(omega, dtype=np.float64)
    if ranges.ndim not in (1, 2) or not np.all(ranges >= 0):
        raise ValueError(f"omega must be of shape (n, n_groups) and not negative, got shape {ranges.shape}")
    shifts = -2.0 * ndtri_exp(log_expit(-0.5 * ranges)) * (1.0 + ROUNDING) + 1e-15
    shifts = np.minimum(shifts, math.sqrt(2.0 * math.pi) / 4.0 * ranges * (1.0 + rounding_margin(4)))
    if ranges.ndim == 1:
        return np.asarray(shifts)
    return np.sqrt(np.square(shifts).sum(axis=1)) * (1.0 + rounding_margin(ranges.shape[1] + 4))


def shifted_probability(probability: npt.ArrayLike, budget: float) -> Array:
    """
    ``Phi(Phi^(-1)(p) - D)``: least probability that an event of clean probability ``p`` has under attack.

    :param probability: ``p``, any shape
    :param budget: ``D``
    :return: same shape
    """
    return np.asarray(ndtr(ndtri(np.asarray(probability, dtype=np.float64)) - budget))


def shifted_mean(thresholds: Array, probabilities: Array, budget: float) -> float:
    """
    ``int_0^inf Phi(Phi^(-1)(P(R_D >= x)) - D) dx`` for a survival function that is a step function, or bounded by one.

    :param thresholds: where it steps down, ascending, at least 0
    :param probabilities: of ``R_D`` at or above each threshold
    :param budget: ``D``
    :return: the integral
    """
    return float(np.diff(thresholds, prepend=0.0) @ shifted_probability(probabilities, budget))


def stopped_returns(
    rewards: Episodes,
    shifts: Episodes,
    terminated: Sequence[bool],
    budget: float,
    gamma: float,
    horizon: int | None = None,
    floor: float = 0.0,
) -> Array:
    """
    ``R_D`` of each episode, of the rewards ``r + c``: what counts ends before the step at which the budget is exceeded.

    An episode that ended by itself with its budget not exceeded is credited with ``c gamma^t`` for each step up to the
    horizon; after the budget stop nothing is, for the adversary could have made anything of these steps.

    :param rewards: reward of each step of each clean, stochastic episode, at or above the floor
    :param shifts: ``d(s_t)`` of each step: its bound at the true state
    :param terminated: whether each episode ended by itself; with a horizon the others must have that many steps
    :param budget: ``D >= 0``, fixed before these episodes were seen
    :param gamma: discount in ``(0, 1]``, below 1 without a horizon
    :param horizon: the cap ``T``; ``None``: an infinite horizon, of which what a time limit cut off counts as nothing
    :param floor: ``-c <= 0``, a lower bound on every reward: proved, or made so by clipping; never estimated
    :return: shape ``(n_episodes,)``, non-negative
    :raises ValueError: naming the argument
    """
    _check_budget(budget)
    return _stop(_accumulate(rewards, shifts, terminated, gamma, horizon, floor), budget)


def _check_budget(budget: float) -> None:
    if not (math.isfinite(budget) and budget >= 0):
        raise ValueError(f"budget must be finite and not negative, got {budget!r}")


def _accumulate(
    rewards: Episodes, shifts: Episodes, terminated: Sequence[bool], gamma: float, horizon: int | None, floor: float
) -> list[tuple[Array, Array]]:
    """For each episode the budget spent up to each step, rounded up, and the return if the first 0, 1, ... steps count."""
    shifted, credits = shifted_episodes(rewards, terminated, gamma, horizon, floor)
    if len(shifts) != len(shifted):
        raise ValueError(f"{len(shifted)} episodes of rewards and {len(shifts)} of shifts given")
    spent = [_spent(shifts[i], len(episode), i) for i, episode in enumerate(shifted)]
    gained = [np.concatenate([[0.0], np.cumsum(episode)]) for episode in shifted]
    for gain, credit in zip(gained, credits, strict=True):
        gain[-1] += credit
    return list(zip(spent, gained, strict=True))


def _spent(shifts: npt.ArrayLike, n_steps: int, episode: int) -> Array:
    array = np.asarray(shifts, dtype=np.float64)
    if array.shape != (n_steps,) or not np.all(array >= 0):
        raise ValueError(f"shifts of episode {episode} must be {n_steps} non-negative numbers, got shape {array.shape}")
    return np.cumsum(np.square(array)) * (1.0 + rounding_margin(n_steps + 4))


def _stop(episodes: list[tuple[Array, Array]], budget: float) -> Array:
    return np.array([gained[np.searchsorted(spent, budget * budget, side="right")] for spent, gained in episodes])


def noise_return_bound(samples: npt.ArrayLike, budget: float, alpha: float = 0.05, offset: float = 0.0) -> float:
    """
    A lower confidence bound on ``J(pi o nu)``: the integral over a confidence band of ``P_pi(R_D >= x)``, minus the offset.

    :param samples: :func:`stopped_returns` of independent episodes, their number fixed for each environment beforehand
    :param budget: the same ``D``
    :param alpha: probability that the bound fails, in ``(0, 0.5]``
    :param offset: ``return_bounds.shift_offset`` if the rewards were shifted
    :return: the bound
    :raises ValueError: naming the argument
    """
    _check_budget(budget)
    thresholds, probabilities = survival_band(samples, alpha)
    if thresholds[0] < 0:
        raise ValueError(f"samples must not be negative, got {thresholds[0]:g}: rewards are shifted by their floor first")
    return subtract_offset(shifted_mean(thresholds, probabilities, budget), offset)


def noise_certificate(
    rewards: Episodes,
    shifts: Episodes,
    terminated: Sequence[bool],
    budget: float,
    gamma: float,
    horizon: int | None = None,
    floor: float = 0.0,
    alpha: float = 0.05,
    method: str = "action-noise",
) -> ReturnBound:
    """
    Certified return 3 from episodes of the clean policy; arguments as in :func:`stopped_returns`.

    :param rewards: reward of each step of each episode
    :param shifts: ``d(s_t)`` of each step
    :param terminated: whether each episode ended by itself
    :param budget: ``D``, from :func:`promised_bound` on OTHER episodes
    :param gamma: discount
    :param horizon: the cap, or ``None``
    :param floor: ``-c``
    :param alpha: probability that the bound fails
    :param method: what the result is called: ``"policy-smoothing"`` if the noise is on the observations
    :return: the bound
    :raises ValueError: naming the argument
    """
    samples = stopped_returns(rewards, shifts, terminated, budget, gamma, horizon, floor)
    lower = noise_return_bound(samples, budget, alpha, shift_offset(gamma, horizon, floor))
    clean = float(discounted_sums(rewards, terminated, gamma, horizon, tail=floor).mean())
    return ReturnBound(lower, clean, 1.0 - alpha, len(samples), method, budget)


def promised_bound(
    rewards: Episodes,
    shifts: Episodes,
    terminated: Sequence[bool],
    gamma: float,
    horizon: int | None = None,
    floor: float = 0.0,
    alpha: float = 0.05,
    n_certify: int = 1000,
) -> tuple[float, float]:
    """
    The ``D`` that promises the highest bound from ``n_certify`` other episodes, and that bound: a forecast, which certifies
    nothing. A small ``D`` stops early, a large one costs.

    The calibration episodes' quantiles stand in for the samples to come, so that the band is as wide as it will be then.

    :param rewards: reward of each step of each calibration episode, none of which may be used to certify
    :param shifts: ``d(s_t)`` of each step
    :param terminated: whether each episode ended by itself
    :param gamma: discount
    :param horizon: the cap, or ``None``
    :param floor: ``-c``
    :param alpha: as it will be used to certify
    :param n_certify: number of episodes that will be used to certify
    :return: ``D``, 0 if no finite budget lets a single step pass, and the bound
    :raises ValueError: naming the argument
    """
    if n_certify < 1:
        raise ValueError(f"n_certify must be at least 1, got {n_certify!r}")
    episodes = _accumulate(rewards, shifts, terminated, gamma, horizon, floor)
    quantiles = ((np.arange(n_certify) + 0.5) * len(episodes) / n_certify).astype(np.int64)

    offset = shift_offset(gamma, horizon, floor)

    def promise(budget: float) -> float:
        return noise_return_bound(np.sort(_stop(episodes, budget))[quantiles], budget, alpha, offset)

    best = max(_candidates([spent for spent, _ in episodes]), key=promise)
    return best, promise(best)


def _candidates(spent: list[Array]) -> list[float]:
    """Budgets at which a step or an episode is just completed, and fractions of what a whole episode takes."""
    steps, totals = np.sqrt(np.concatenate(spent)), np.sqrt([episode[-1] for episode in spent])
    few, many = (np.quantile(x, np.linspace(0.0, 1.0, n), method="higher") for x, n in ((totals, 17), (steps, 33)))
    budgets = np.concatenate([[0.0], few, many, few[8] * np.geomspace(0.02, 1.0, 49)])
    # The budget must exceed what it is to pay for by the rounding of its square.
    return [float(budget) for budget in np.unique(budgets[np.isfinite(budgets)] * (1.0 + ROUNDING))]
