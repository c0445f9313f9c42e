"""Certificates logged while an SB3 algorithm learns."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization, unwrap_vec_normalize

from sb3_prune_robust.attacks.adversarial_training import without_adversary
from sb3_prune_robust.bounds import Ball
from sb3_prune_robust.certificates import certify
from sb3_prune_robust.certificates.observations import read_network, read_noise
from sb3_prune_robust.evaluation.clean_play import check_environment, check_horizon, known_rewards, play_clean
from sb3_prune_robust.evaluation.loading import horizon_of
from sb3_prune_robust.evaluation.return_certificate import check_confidence, noise_bound


class CertificateCallback(BaseCallback):
    """
    Logs what can be certified of the policy as it trains (PPO, A2C, TRPO).

    Logged: ``certificate/tv`` and ``certificate/abs``, means over states of the latest rollout of the bounds on the total
    variation by CROWN and by bound A (the one that never rises at a prune); with an ``eval_env`` also ``certificate/return``,
    the whole-episode return that is certified, and ``certificate/return_clean``, the mean return of the same episodes without
    attack. Nothing is logged where nothing was certified.

    Certificates take at most ``max_share`` of the training's time: one that would take more is put off until it does not, with
    a warning where it is a return. A return costs about as much time as training for the steps of its episodes: 24 episodes of
    1,000 steps fit into 2 % once the training has made 1.2 million steps.

    :param eps: radius of the ball in units of the observation the policy receives, a number or one for each input
    :param norm: ``"linf"`` or ``"l2"``
    :param freq: environment steps between two certificates of the total variation
    :param n_states: states of the latest rollout that are certified each time
    :param eval_env: environments on ``DummyVecEnv`` for the return, wrapped in VecNormalize (``training=False``) where the
        training environment is: its statistics are copied each time; ``None``: no return is certified
    :param return_freq: environment steps between two certified returns
    :param n_episodes: episodes that certify each return; a fifth as many more choose its budget
    :param clip_rewards: as for :func:`~sb3_prune_robust.evaluation.return_certificate.play_clean`
    :param confidence: with which each certified return holds
    :param max_share: share of the training's time, in ``(0, 1]``; 1: however long they take
    :param verbose: not used
    :raises ValueError: for a value outside its range
    """

    def __init__(
        self,
        eps: npt.ArrayLike,
        norm: str = "linf",
        freq: int = 10_000,
        n_states: int = 256,
        eval_env: VecEnv | None = None,
        return_freq: int = 100_000,
        n_episodes: int = 20,
        clip_rewards: tuple[float, float] | None = None,
        confidence: float = 0.95,
        max_share: float = 0.02,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        for name, value in (("freq", freq), ("n_states", n_states), ("return_freq", return_freq), ("n_episodes", n_episodes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        if not 0 < max_share <= 1:
            raise ValueError(f"max_share must lie in (0, 1], got {max_share!r}")
        check_confidence(confidence)
        if clip_rewards is not None and eval_env is None:
            raise ValueError(f"clip_rewards={clip_rewards!r} is for certified returns, which need an eval_env; none was given")
        self.eps, self.norm, self.freq, self.n_states = eps, norm, freq, n_states
        self.eval_env, self.return_freq, self.n_episodes = eval_env, return_freq, n_episodes
        self.clip_rewards, self.confidence, self.max_share = clip_rewards, confidence, max_share
        self.seconds = 0.0

    def _init_callback(self) -> None:
        if not hasattr(self.model, "rollout_buffer"):
            raise TypeError(
                f"{type(self.model).__name__} has no rollout buffer: only PPO, A2C and TRPO can be certified as they learn"
            )
        read_network(self.model.policy)  # said before the training, not in its midst
        Ball.create(self.eps, self.norm, self.model.policy.observation_space.shape or ())
        if self.eval_env is not None:
            self._check_eval_env(self.eval_env)

    def _check_eval_env(self, env: VecEnv) -> None:
        read_noise(self.model.policy)
        if (unwrap_vec_normalize(env) is None) != (self.model.get_vec_normalize_env() is None):
            raise ValueError("eval_env must be wrapped in VecNormalize if, and only if, the training environment is")
        check_environment(self.model, env)
        check_horizon(env, 1.0, None)
        rewards = known_rewards(env, None, None, self.clip_rewards)
        if rewards.low is None:
            raise ValueError(f"no return can be certified: {rewards.reason}; give clip_rewards, or leave eval_env out")

    def _on_training_start(self) -> None:
        self._began, self.seconds = time.perf_counter(), 0.0
        self._due_tv = self._due_return = self.num_timesteps
        self._last_tv = self._last_return = 0.0
        self._warned = False

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:  # the policy that made the rollout, before the update
        if self.num_timesteps >= self._due_tv:
            if self._timed(self._log_tv, self._last_tv):
                self._due_tv = self.num_timesteps + self.freq
        if self.eval_env is not None and self.num_timesteps >= self._due_return:
            expected = self._expected_return()
            if self._timed(self._log_return, expected):
                self._due_return = self.num_timesteps + self.return_freq
            elif not self._warned and self.num_timesteps >= self._due_return + self.return_freq:  # a whole interval late
                self._warn(expected)

    def _warn(self, expected: float) -> None:
        self._warned = True
        spent = time.perf_counter() - self._began
        warnings.warn(
            f"a certified return of {self._n_played()} episodes takes about {expected:.1f} s, more than {self.max_share:.1%} "
            f"of the {spent:.0f} s that the training has taken: it is put off until about {expected / self.max_share:.0f} s; "
            "fewer n_episodes or a larger max_share bring it forward",
            stacklevel=2,
        )

    def _timed(self, log: Callable[[], None], expected: float) -> bool:
        """Log if that leaves the certificates within their share of the time; whether it was done."""
        began = time.perf_counter()
        if self.max_share < 1 and self.seconds + expected > self.max_share * (began - self._began):
            return False
        log()
        self.seconds += time.perf_counter() - began
        return True

    def _expected_return(self) -> float:
        """Seconds that the episodes take: as the last time, else as many steps at the speed of training, which is slower."""
        if self._last_return:
            return self._last_return
        per_step = (time.perf_counter() - self._began) / max(self.num_timesteps - self._start_steps(), 1)
        return self._episode_length() * self._n_played() * per_step

    def _episode_length(self) -> float:
        episodes = self.model.ep_info_buffer
        if episodes:
            return float(np.mean([episode["l"] for episode in episodes]))
        limit = None if self.eval_env is None else horizon_of(self.eval_env)
        return np.inf if limit is None else limit  # no whole episode of undiscounted return without a limit

    def _start_steps(self) -> int:
        return int(self.model._num_timesteps_at_start)

    def _n_played(self) -> int:
        return self.n_episodes + max(self.n_episodes // 5, 1)

    def _log_tv(self) -> None:
        began = time.perf_counter()
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        states = buffer.observations.reshape(-1, *self.model.policy.observation_space.shape)  # type: ignore[misc]
        states = states[np.linspace(0, len(states) - 1, min(self.n_states, len(states))).astype(int)]
        for name, method in (("tv", "crown"), ("abs", "abs")):
            certificate = certify(self.model, states, self.eps, self.norm, method)
            self.logger.record(f"certificate/{name}", float(certificate.tv.mean()))
        self._last_tv = time.perf_counter() - began

    def _log_return(self) -> None:
        assert self.eval_env is not None
        began = time.perf_counter()
        sync_envs_normalization(without_adversary(self.training_env), self.eval_env)
        play = play_clean(
            self.model,
            self.eval_env,
            n_episodes=self.n_episodes,
            n_calibration=self._n_played() - self.n_episodes,
            clip_rewards=self.clip_rewards,
            seed=self.num_timesteps,
        )
        bound = noise_bound(play, self.eps, self.norm, "crown", 1.0 - self.confidence)
        self.logger.record("certificate/return", bound.lower)
        self.logger.record("certificate/return_clean", play.clean_return())
        self._last_return = time.perf_counter() - began
