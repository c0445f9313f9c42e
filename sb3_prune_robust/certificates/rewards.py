"""What is known of an environment's rewards: without a proved range no return certificate exists."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.network import Array


@dataclass(frozen=True)
class RewardRange:
    """
    A range that holds every reward, or the reason why none is known.

    :param low: smallest reward, ``None`` if not known
    :param high: largest reward, ``None`` if not known
    :param ends_early: whether an episode can terminate before its time limit
    :param reason: why the range holds, or why it is not known
    :param clipped: whether the rewards are MADE to lie in the range: what is certified is then the return of clipped rewards
    """

    low: float | None
    high: float | None
    ends_early: bool
    reason: str
    clipped: bool = False

    def clip(self, rewards: npt.ArrayLike) -> Array:
        """The rewards that certificates speak of: clipped to the range if it is one of clipping, else as they are."""
        array = np.asarray(rewards, dtype=np.float64)
        return np.clip(array, self.low, self.high) if self.clipped else array

    @property
    def span(self) -> float | None:
        """
        ``rho = max(r_max, 0) - min(r_min, 0)`` where an episode can end early, else ``r_max - r_min``; ``None``: not known.

        Once ended an episode pays 0 for ever: with reward 1 while alive ``r_max - r_min`` is 0, and half the return can go.
        """
        limits = self.limits
        return None if limits is None else limits[1] - limits[0]

    @property
    def limits(self) -> tuple[float, float] | None:
        """Smallest and largest payment of one step, the steps after an early end included; ``None`` if not known."""
        if self.low is None or self.high is None:
            return None
        return (min(self.low, 0.0), max(self.high, 0.0)) if self.ends_early else (self.low, self.high)


# With default arguments and actions inside the action space (SB3 clips them), from gymnasium's source, versions 1.0 to 1.4.
_PROVED = {
    "CartPole-v1": RewardRange(1.0, 1.0, True, "1.0 at every step, the last one included"),
    "Pendulum-v1": RewardRange(
        -16.2736045, 0.0, False, "-(angle^2 + 0.1 speed^2 + 0.001 torque^2), |angle| <= pi, |speed| <= 8, |torque| <= 2"
    ),
    "Acrobot-v1": RewardRange(-1.0, 0.0, True, "-1 at every step, 0 at the goal"),
    "MountainCar-v0": RewardRange(-1.0, -1.0, True, "-1 at every step"),
    "MountainCarContinuous-v0": RewardRange(-0.1, 100.0, True, "100 at the goal minus 0.1 action^2, |action| <= 1"),
    "InvertedPendulum-v4": RewardRange(1.0, 1.0, True, "1.0 at every step, the last one included"),
    "InvertedPendulum-v5": RewardRange(0.0, 1.0, True, "1 at every step but the one that terminates, which pays 0"),
}
_VELOCITY = "MuJoCo's velocities are not bounded a priori, and the reward contains one"
_UNPROVED = dict.fromkeys(
    ("InvertedDoublePendulum", "Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid", "HumanoidStandup", "Swimmer"), _VELOCITY
)


def reward_range(
    env_id: str,
    reward_min: float | None = None,
    reward_max: float | None = None,
    env_kwargs: dict[str, Any] | None = None,
) -> RewardRange:
    """
    The rewards' range: what the user gives, else what is proved for the environment, else not known.

    :param env_id: gymnasium's id
    :param reward_min: smallest reward, if the user vouches for one
    :param reward_max: largest reward, likewise
    :param env_kwargs: arguments of ``gymnasium.make``; any of them can change the reward, so nothing is known then
    :return: the range, with ``None`` where not known; ``ends_early`` is taken as true where not known, which is the safe side
    :raises ValueError: if the two are not finite or the wrong way round
    """
    for name, value in (("reward_min", reward_min), ("reward_max", reward_max)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value!r}")
    if reward_min is not None and reward_max is not None and reward_min > reward_max:
        raise ValueError(f"reward_min must be at most reward_max, got {reward_min!r} and {reward_max!r}")
    known = _known(env_id)
    if env_kwargs:
        made = ", ".join(f"{key}={value!r}" for key, value in env_kwargs.items())
        known = RewardRange(None, None, True, f"{_why_unknown(env_id)}; it was made with {made}")
    if reward_min is None and reward_max is None:
        return known
    low = known.low if reward_min is None else float(reward_min)
    high = known.high if reward_max is None else float(reward_max)
    if low is None or high is None:
        missing = "reward_min" if low is None else "reward_max"
        return RewardRange(low, high, known.ends_early, f"{missing} was not given, and {known.reason}")
    if low > high:
        raise ValueError(f"reward_min {low:g} is above reward_max {high:g}, one of which is known: {known.reason}")
    return RewardRange(low, high, known.ends_early, "given by the user")


def _known(env_id: str) -> RewardRange:
    return _PROVED.get(env_id) or RewardRange(None, None, True, _why_unknown(env_id))


def _why_unknown(env_id: str) -> str:
    if env_id in _PROVED:
        return f"the range known for {env_id} is for its default arguments"
    return _UNPROVED.get(env_id.rpartition("-")[0], f"no range is proved for the rewards of {env_id}")


def clipped_rewards(low: float, high: float) -> RewardRange:
    """
    The range of rewards that are clipped to it, for an environment whose own rewards have no proved bounds.

    :param low: each reward is taken as at least this
    :param high: and as at most this
    :return: the range, named for what it is
    :raises ValueError: if the two are not finite, or ``low`` is not below ``high``
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"clip_rewards must be two finite numbers, the smaller first; got {low!r} and {high!r}")
    reason = f"each reward is clipped to [{low:g}, {high:g}], and the return certified is that of the clipped rewards"
    return RewardRange(float(low), float(high), True, reason, clipped=True)


def check_rewards(rewards: npt.ArrayLike, known: RewardRange) -> None:
    """
    Stop if a reward contradicts the range that certificates would rest on.

    :param rewards: rewards seen (float32 is accepted: they are compared up to its rounding)
    :param known: the range
    :raises ValueError: for a reward outside
    """
    array = np.asarray(rewards, dtype=np.float64)
    slack = 1e-6 * np.maximum(1.0, np.abs(array))
    low = -math.inf if known.low is None else known.low
    high = math.inf if known.high is None else known.high
    outside = array[~((array >= low - slack) & (array <= high + slack))]
    if outside.size:
        raise ValueError(
            f"a reward of {outside.flat[0]:g} was seen outside [{low:g}, {high:g}] ({known.reason}): "
            "no certificate that rests on reward_min and reward_max holds"
        )
