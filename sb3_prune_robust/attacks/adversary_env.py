"""The adversary's own decision problem as an SB3 environment: it observes the true state and is paid what the victim loses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_prune_robust.actor import Actor, action_masks

Array = npt.NDArray[Any]
CLIP = 5.0  # what the adversary observes is clipped to this: an outlier would saturate its network


@dataclass(frozen=True)
class View:
    """
    What an adversary's network receives: observations flattened, standardised and clipped.

    :param mean: subtracted from the observation, shape ``(d,)``
    :param spread: divides it, shape ``(d,)``
    """

    mean: Array
    spread: Array

    def __call__(self, observations: Array) -> Array:
        """
        The view of true observations as the victim would receive them.

        :param observations: shape ``(n, *shape)``
        :return: float32, shape ``(n, d)``
        """
        flat = (observations.reshape(len(observations), -1) - self.mean) / self.spread
        return np.clip(flat, -CLIP, CLIP).astype(np.float32, copy=False)

    @classmethod
    def plain(cls, size: int) -> View:
        """Of observations that are normalised already."""
        return cls(np.zeros(size, np.float32), np.ones(size, np.float32))

    @classmethod
    def measured(cls, rows: Array) -> View:
        """
        Standardised by observations that were seen.

        :param rows: shape ``(n, *shape)``; what never varied in them is only centred
        """
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        return cls.of(flat.mean(axis=0), flat.std(axis=0))

    @classmethod
    def of(cls, mean: Array, spread: Array) -> View:
        """
        Standardised by statistics of observations.

        :param mean: shape ``(d,)``
        :param spread: standard deviations, shape ``(d,)``; what never varied is only centred
        """
        spread = np.where(spread > 1e-6 * (1.0 + np.abs(mean)), spread, 1.0)
        return cls(mean.astype(np.float32), spread.astype(np.float32))


class AdversaryVecEnv(VecEnvWrapper):
    """
    Environments in which an adversary acts (the MDP of the optimal adversary, Zhang et al. 2021).

    Observation: the true observation in the adversary's :class:`View`. Action: the adversary's, which ``perturb`` turns into a
    perturbed observation, which the victim acts on. Reward: minus the victim's. Episodes end as the victim's do.

    :param venv: environments as the victim was trained in, rewards raw
    :param policy: the victim
    :param action_space: of the adversary
    :param perturb: from true observations ``(n, *shape)``, the adversary's actions ``(n, k)`` and the multiple of ``eps`` that
        it has (:attr:`scale`, for a curriculum) to perturbed observations
    :param deterministic: the victim plays its mode
    :param seed: of the victim's own noise
    :param view: the adversary's; ``None``: of observations that are normalised already
    """

    def __init__(
        self,
        venv: VecEnv,
        policy: Any,
        action_space: spaces.Box,
        perturb: Callable[[Array, Array, float], Array],
        deterministic: bool,
        seed: int,
        view: View | None = None,
    ) -> None:
        size = int(np.prod(venv.observation_space.shape or ()))
        super().__init__(venv, self.observed(size), action_space)
        self.perturb = perturb
        self.view = view or View.plain(size)
        self.scale = 1.0
        self._act = Actor(policy, deterministic)
        self._streams = [np.random.default_rng(seed)] * venv.num_envs
        self.true: Array = np.zeros(0)

    @staticmethod
    def observed(size: int) -> spaces.Box:
        """The space of what the adversary observes, given the size of the victim's observations."""
        return spaces.Box(-CLIP, CLIP, (size,), np.float32)

    def reset(self) -> Array:
        return self.take_over(self.venv.reset())

    def take_over(self, observations: VecEnvObs) -> Array:
        """
        Go on from where the environments are, in the middle of episodes.

        :param observations: the true ones, which they gave last
        :return: what the adversary observes
        """
        self.true = np.array(observations)
        return self.view(self.true)

    def step_async(self, actions: Array) -> None:
        perturbed = self.perturb(self.true, actions, self.scale)
        self.venv.step_async(self._act(perturbed, self._streams, action_masks(self._act.policy, self.venv))[0])

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        self.true = np.array(observations)
        infos = list(infos)  # SubprocVecEnv's is a tuple
        for i in np.flatnonzero(dones):  # what bootstraps the value at a time limit
            infos[i] = {**infos[i], "terminal_observation": self.view(np.array([infos[i]["terminal_observation"]]))[0]}
        return self.view(self.true), -rewards, dones, infos
