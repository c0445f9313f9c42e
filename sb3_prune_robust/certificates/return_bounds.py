"""
What certified returns 2 and 3 share: rewards made non-negative, and the result.

Both hold for rewards ``>= 0``. With ``r >= -c``, ``c >= 0``, they are applied to ``r + c``, and ``c (1 + gamma + ...)`` over
the whole horizon is subtracted. A step after an episode's own end pays 0, which is ``c`` after the shift: these steps are
credited with ``c gamma^t`` where an episode ended by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sb3_prune_robust.certificates.returns import Episodes, check_episodes, total_discount
from sb3_prune_robust.network import Array

# Sums of products of float64 over any episode lose far less than this, relative; it is nothing against a confidence band.
ROUNDING = 1e-9


@dataclass(frozen=True)
class ReturnBound:
    """
    A lower bound on the expected return under every adversary.

    :param lower: the bound, which holds with probability ``confidence``; for another gamma or horizon it says nothing
    :param clean: mean of the same return over the same, clean episodes: without guarantee, for comparison
    :param confidence: ``1 - alpha``
    :param n_episodes: number of episodes
    :param method: ``"likelihood-ratio"``, ``"action-noise"``, ``"policy-smoothing"`` or ``"performance-difference"``
    :param budget: ``D`` of the second and third, else ``None``
    """

    lower: float
    clean: float
    confidence: float
    n_episodes: int
    method: str
    budget: float | None = None


def check_floor(rewards: Sequence[Array], floor: float) -> None:
    """
    Stop if a reward contradicts the floor that certificates would rest on.

    A floor above 0 is refused: after its end an episode pays 0. With reward 1 while alive and floor 1 the shifted rewards
    would all be 0, the offset ``-T``, and the "certified" return ``T``, however early an adversary ends the episode.

    :param rewards: one array per episode (float32 is accepted: they are compared up to its rounding)
    :param floor: ``-c``, at most 0
    :raises ValueError: for a reward below the floor, and for a floor that is above 0 or not finite
    """
    if not (math.isfinite(floor) and floor <= 0):
        raise ValueError(f"floor must be finite and at most 0, which is what an ended episode pays; got {floor!r}")
    for i, episode in enumerate(rewards):
        below = episode[episode < floor - 1e-6 * np.maximum(1.0, np.abs(episode))]
        if below.size:
            raise ValueError(
                f"a reward of {below[0]:g} was seen in episode {i}, below the floor of {floor:g}: "
                "no certificate that rests on this floor holds"
            )


def shifted_episodes(
    rewards: Episodes, terminated: Sequence[bool], gamma: float, horizon: int | None, floor: float
) -> tuple[list[Array], Array]:
    """
    ``gamma^t (r_t + c) >= 0`` for each step, and the credit ``sum c gamma^t`` for the steps after an episode's own end.

    :param rewards: one array per episode, each at or above the floor
    :param terminated: whether each episode ended by itself; with a horizon the others must have that many steps, without one
        what a time limit cut off counts as its least, nothing
    :param gamma: discount in ``(0, 1]``, below 1 without a horizon
    :param horizon: the cap ``T``, or ``None``
    :param floor: ``-c``
    :return: an array per episode, and the credits, shape ``(n_episodes,)``
    :raises ValueError: naming the argument
    """
    episodes = check_episodes(rewards, terminated, gamma, horizon)
    check_floor(episodes, floor)
    shifted = [gamma ** np.arange(len(episode)) * np.maximum(episode - floor, 0.0) for episode in episodes]
    lengths = np.array([len(episode) for episode in episodes])
    left = np.array([total_discount(gamma, None if horizon is None else horizon - int(n)) for n in lengths])
    return shifted, np.where(np.asarray(terminated, dtype=bool), -floor * gamma**lengths * left, 0.0)


def shift_offset(gamma: float, horizon: int | None, floor: float) -> float:
    """
    What the shift added to the return of every episode: ``c (1 - gamma^T) / (1 - gamma)``, ``c T`` or ``c / (1 - gamma)``.

    :param gamma: discount
    :param horizon: the cap ``T``, or ``None``
    :param floor: ``-c``
    :return: the offset, to be subtracted
    """
    return -floor * total_discount(gamma, horizon)


def subtract_offset(shifted: float, offset: float) -> float:
    """The bound on the return from that on the shifted return, both roundings on the safe side."""
    return shifted * (1.0 - ROUNDING) - offset * (1.0 + ROUNDING)
