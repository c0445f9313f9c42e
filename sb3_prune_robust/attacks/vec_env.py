"""The adversary between environment and agent: a vectorised wrapper that changes what the policy observes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_prune_robust.attacks.base import Attack
from sb3_prune_robust.observations import Observations, copied, difference, rows

Array = npt.NDArray[Any]


class AdversarialVecEnv(VecEnvWrapper):
    """
    Perturbs the observations that leave a vectorised environment; the environment itself moves from the true state.

    It belongs OUTERMOST, after ``VecNormalize``: ``eps`` is in units of what the policy receives. Wrapped inside a
    ``VecNormalize`` it would perturb raw observations, and could not know: it refuses what it can see (a model that has a
    ``VecNormalize`` of its own where there is none below, or one below that is still training while the agent is not), the
    rest is up to you.

    ``infos[i]["true_observation"]`` is the true version of the observation returned beside it; ``reset_infos`` has it after
    a reset, automatic ones too. ``terminal_observation`` stays true. Whether an attack took place is told by
    ``n_perturbed``, how many of the ``n_observations`` that have passed are not the true ones, and ``mean_perturbation``.

    :param venv: the environment to wrap, with ``VecNormalize`` where the agent was trained with one
    :param model: the victim: an SB3 algorithm or policy
    :param attack: the attack, e.g. ``MAD(eps=0.075)``
    :param in_training: the agent learns under the attack, and a ``VecNormalize`` below may go on moving its statistics:
        ``eps`` is then in units of the statistics of the moment
    :raises TypeError: if ``model`` or ``attack`` is not one
    :raises ValueError: if environment and model do not fit together
    :raises UnsupportedNetworkError: at the first ``reset()``, for a victim that the attack does not cover (RecurrentPPO)
    """

    def __init__(self, venv: VecEnv, model: BaseAlgorithm | BasePolicy, attack: Attack, *, in_training: bool = False) -> None:
        if not isinstance(venv, VecEnv):
            raise TypeError(f"venv must be a VecEnv, got {type(venv).__name__}; see make_vec_env or DummyVecEnv")
        if not isinstance(model, BaseAlgorithm | BasePolicy):
            raise TypeError(f"model must be an SB3 algorithm or policy, got {type(model).__name__}")
        if not isinstance(attack, Attack):
            raise TypeError(f"attack must be an Attack such as MAD(eps=0.075), got {attack!r}")
        super().__init__(venv)
        self.model = model
        self.attack = attack
        self._in_training = in_training
        self._vec_normalize = unwrap_vec_normalize(venv)
        _check_chain(venv, model, self._vec_normalize)
        self._check_frozen()
        self.forget()

    def forget(self) -> None:
        """Count anew."""
        self.n_observations = self.n_perturbed = 0
        self._total_perturbation = 0.0

    @property
    def mean_perturbation(self) -> float:
        """Mean size of the perturbations so far, in the attack's norm, over all observations; 0.0 before the first."""
        return self._total_perturbation / max(self.n_observations, 1)

    def reset(self) -> Observations:
        true_obs = copied(self.venv.reset())
        self.reset_infos = _with_truth(self.unwrapped.reset_infos, true_obs)
        return self._perturb(true_obs)

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        true_obs = copied(obs)  # infos keep rows of it
        infos = _with_truth(infos, true_obs)
        for i in np.flatnonzero(dones):
            self.reset_infos[i] = {**self.unwrapped.reset_infos[i], "true_observation": rows(true_obs, i)}
        return self._perturb(true_obs), rewards, dones, infos

    def _perturb(self, true_obs: Observations) -> Observations:
        self._check_frozen()
        perturbed = self.attack(self.model, true_obs)
        change = difference(perturbed, true_obs)
        sizes = np.abs(change).max(axis=1) if self.attack.norm == "linf" else np.linalg.norm(change, axis=1)
        self.n_observations += len(sizes)
        self.n_perturbed += int(np.count_nonzero(sizes))
        self._total_perturbation += float(sizes.sum())
        return perturbed

    def _check_frozen(self) -> None:
        normalize = self._vec_normalize
        if normalize is not None and normalize.training and normalize.norm_obs and not self._in_training:
            raise ValueError(
                "venv has a VecNormalize in training mode: its statistics move, and eps with them; set venv.training = False"
            )


def _with_truth(infos: Any, true_obs: Observations) -> list[dict[str, Any]]:
    return [{**info, "true_observation": rows(true_obs, i)} for i, info in enumerate(infos)]


def _chain(venv: VecEnv) -> Iterator[VecEnv]:
    while isinstance(venv, VecEnvWrapper):
        yield venv
        venv = venv.venv


def _check_chain(venv: VecEnv, model: BaseAlgorithm | BasePolicy, normalize: VecNormalize | None) -> None:
    if any(isinstance(wrapper, AdversarialVecEnv) for wrapper in _chain(venv)):
        raise ValueError("venv already holds an AdversarialVecEnv; two attacks would add up to more than eps")
    space, expected = venv.observation_space, model.observation_space
    if type(space) is not type(expected) or space.shape != expected.shape:
        raise ValueError(f"venv has observations {space}, the model was made for {expected}")
    own = model.get_vec_normalize_env() if isinstance(model, BaseAlgorithm) else None
    if own is not None and own.norm_obs and (normalize is None or not normalize.norm_obs):
        raise ValueError(
            "the model was trained on normalised observations, but venv has no VecNormalize for them: the policy would see "
            "raw observations and eps would be in raw units; wrap venv in VecNormalize (with the trained statistics) first"
        )
