"""Attacks by an adversary that learned to attack: SA-RL acts in observation space, PA-AD in the victim's action space."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_prune_robust.attacks.adversary_env import AdversaryVecEnv, features
from sb3_prune_robust.attacks.balls import BALLS, Ball, round_down
from sb3_prune_robust.attacks.base import Array
from sb3_prune_robust.attacks.director import Director
from sb3_prune_robust.attacks.engines import NetworkReader, direction_objective, n_outputs
from sb3_prune_robust.attacks.fitting import Budget, FittedAttack, Meter, attacked_returns
from sb3_prune_robust.attacks.learning import ALGORITHMS, Learner, is_off_policy


class LearnedAttack(FittedAttack):
    """
    An adversary that observes the true state and learned by reinforcement learning what to show the victim.

    It plays its mean. Of the last directors that learning passed through, the one that lowers the return most on episodes of
    its own is kept. Other arguments as in :class:`Attack`.

    :param algorithm: the SB3 algorithm that learns: a key of ``ALGORITHMS``
    :param algorithm_kwargs: its arguments, over the defaults here; for JSON
    :param curriculum: learning starts with this many times ``eps``, falling in a line to ``eps`` over its first 60 %
    """

    default_budget = Budget(seconds=240.0)

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        *,
        algorithm: str = "ppo",
        algorithm_kwargs: Mapping[str, Any] | None = None,
        curriculum: float = 1.0,
    ) -> None:
        super().__init__(eps, norm, mask, seed, deterministic)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm={algorithm!r} is not known; choose one of {list(ALGORITHMS)}")
        if not 1 <= curriculum < np.inf:
            raise ValueError(f"curriculum={curriculum!r} must be finite and at least 1, a multiple of eps")
        self.algorithm = algorithm
        self.algorithm_kwargs = dict(algorithm_kwargs or {})
        self.curriculum = float(curriculum)
        self._director: Director | None = None

    @abstractmethod
    def _action_space(self, policy: Any) -> spaces.Box:
        """Of the adversary."""

    @abstractmethod
    def _move(self, policy: Any, ball: Ball, actions: Array) -> Array:
        """From the adversary's actions ``(n, k)`` to perturbed observations ``(n, d)``."""

    def perturb(self, policy: Any, ball: Ball) -> Array:
        self._check_fitted()
        assert self._director is not None
        return self._move(policy, ball, self._director(features(ball.center)))

    def _fit(
        self, policy: Any, env: VecEnv, meter: Meter, checkpoint: Path | None, on_progress: Callable[[float], object]
    ) -> None:
        scale = [1.0]

        def moved(observations: Array, actions: Array) -> Array:
            ball = self._ball(observations)
            if scale[0] != 1.0:
                eps = scale[0] * ball.eps
                ball = BALLS[self.norm](ball.center, eps, round_down(eps, ball.center.dtype))
            return ball.project(self._move(policy, ball, actions)).reshape(observations.shape)

        seeds = self._fit_seeds(2)
        adversary = AdversaryVecEnv(env, policy, self._action_space(policy), moved, self.deterministic, seeds[0])
        learner = Learner(
            self.algorithm,
            self.algorithm_kwargs,
            adversary,
            meter,
            lambda value: scale.__setitem__(0, value),
            self.curriculum,
            seeds[0],
            checkpoint,
            self._identity(policy, env, meter),
            on_progress,
        )
        self._choose(learner.run(), policy, env, meter, seeds[1])

    def _choose(self, candidates: list[Director], policy: Any, env: VecEnv, meter: Meter, seed: int) -> None:
        """Keep the director under which the victim's mean return is lowest."""
        returns = []
        self.cost = meter.cost
        for director in candidates:
            self._director = director
            played = attacked_returns(
                self, policy, env, env.num_envs, deterministic=self.deterministic, seed=seed, meter=meter
            )
            returns.append(played.mean())
        self._director = candidates[int(np.argmin(returns))]

    def _identity(self, policy: Any, env: VecEnv, meter: Meter) -> dict[str, Any]:
        """What tells one fit from another."""
        parts = [tensor.detach().cpu().numpy() for tensor in policy.state_dict().values()]
        normalizer = unwrap_vec_normalize(env)
        if normalizer is not None and normalizer.norm_obs:
            statistics: Any = normalizer.obs_rms
            parts += [statistics.mean, statistics.var]
        digest = hashlib.sha256(b"".join(part.tobytes() for part in parts))
        budget = [meter.budget.steps, meter.budget.seconds]
        return {"victim": digest.hexdigest(), "budget": budget, **self._common(), **self._settings()}

    def _settings(self) -> dict[str, Any]:
        return dict(algorithm=self.algorithm, algorithm_kwargs=self.algorithm_kwargs, curriculum=self.curriculum)

    def _arrays(self) -> dict[str, Array]:
        assert self._director is not None
        return self._director.arrays()

    def _restore(self, arrays: Mapping[str, Array]) -> None:
        self._director = Director.of(arrays)


class SARL(LearnedAttack):
    """
    SA-RL, the optimal attack (Zhang et al. 2021): the adversary's action is the perturbation, in units of ``eps``.

    Arguments as in :class:`LearnedAttack`.
    """

    def _action_space(self, policy: Any) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (int(np.prod(policy.observation_space.shape)),), np.float32)

    def _move(self, policy: Any, ball: Ball, actions: Array) -> Array:
        return np.asarray(ball.center + ball.eps * np.clip(actions, -1.0, 1.0), ball.center.dtype)


class PAAD(LearnedAttack):
    """
    PA-AD (Sun et al. 2022): a director chooses a direction in the victim's ACTION space (means or logits), an actor finds the
    observation in the ball that moves the action that way.

    The actor climbs ``d . f(s_hat)``, ``f`` the victim's means or logits; with one step its answer in l_inf is
    ``eps sign(J^T d)``. The space of directions is far smaller than that of observations. Other arguments as in
    :class:`LearnedAttack`.

    :param steps: gradient steps of the actor
    """

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        *,
        algorithm: str = "ppo",
        algorithm_kwargs: Mapping[str, Any] | None = None,
        curriculum: float = 1.0,
        steps: int = 1,
    ) -> None:
        settings: dict[str, Any] = dict(algorithm=algorithm, algorithm_kwargs=algorithm_kwargs, curriculum=curriculum)
        super().__init__(eps, norm, mask, seed, deterministic, **settings)
        self.steps = steps
        self._reader = NetworkReader()

    def _action_space(self, policy: Any) -> spaces.Box:
        # Only the direction counts. PPO does not squash, and SB3 asks for finite bounds: wide ones.
        bound = 1.0 if is_off_policy(self.algorithm) else 10.0
        return spaces.Box(-bound, bound, (n_outputs(policy),), np.float32)

    def _move(self, policy: Any, ball: Ball, actions: Array) -> Array:
        objective = direction_objective(policy, actions, self._reader)
        points = ball.center
        for i in range(self.steps):
            _, gradient = objective.value_and_gradient(points)
            # The last step goes to the border whatever came before, from the gradient half way there.
            points = ball.step(points if i else ball.center, gradient, 2.0 if i == self.steps - 1 else 1 / self.steps)
        return points

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "steps": self.steps}
