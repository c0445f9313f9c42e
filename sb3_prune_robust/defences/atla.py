"""ATLA: the agent and the adversary that attacks it learn in turn, each against the other as it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_prune_robust.actor import Actor
from sb3_prune_robust.attacks import PAAD, SARL, LearnedAttack
from sb3_prune_robust.attacks.adversarial_training import TrainingAdversary
from sb3_prune_robust.attacks.adversary_env import AdversaryVecEnv, View
from sb3_prune_robust.attacks.fitting import frozen
from sb3_prune_robust.attacks.learning import own_random_numbers
from sb3_prune_robust.defences.base import RobustTraining
from sb3_prune_robust.defences.state_adversarial import SAPPO

MINIBATCHES = 32
LEARNING_RATE = 1e-3  # the references' lie between 3e-5 and 1e-2
RESERVED = ("policy", "env", "seed", "device", "_init_setup_model")


class AlternatingTraining(RobustTraining, OnPolicyAlgorithm):
    """
    Training with a learned adversary (Zhang et al. 2021, arXiv 2101.08452), mixed into PPO: an iteration of the agent, whose
    observations the adversary of the moment perturbs, then one of the adversary against the agent of the moment. Both sample
    their actions in both. The agent stores perturbed observations, those that end an episode or a rollout too.

    The adversary's iteration goes on in the same environments, in the middle of episodes. It observes the true state,
    standardised by running statistics of the agent's observations, and is paid minus the environment's raw reward, divided by
    the running standard deviation of its discounted sum (as ``VecNormalize`` does). A ``VecNormalize`` around the
    environments moves its statistics in the agent's iterations only. While ``eps_now`` is 0 there is neither attack nor
    adversary.

    ``num_timesteps`` counts the agent's steps alone: environments make up to TWICE as many. ``adversary_timesteps`` counts the
    adversary's over the model's life, however often ``learn`` is called. Episodes, which may span both, are counted where they
    end: ``rollout/ep_rew_mean`` is of those that ended with the agent, under attack also.

    Logged, of the adversary's last iteration: ``defence/adversary_timesteps``, ``defence/adversary_std``,
    ``defence/adversary_explained_variance``, ``defence/attacked_return`` (the agent's, of the last episodes that ended in the
    adversary's iterations); of the agent's: ``defence/mean_perturbation``, in the norm.

    :param adversary_kwargs: arguments of the adversary's ``PPO`` over its defaults here (the released code's where it has one
        for all environments): as many steps as the agent's, in 32 minibatches, no gradient clipping, learning rate 1e-3, and
        SB3's; schedules are of the agent's progress
    :raises ValueError: for observations other than vectors of floats, an ``eps`` of another shape, reserved
        ``adversary_kwargs``
    """

    attack_class: ClassVar[type[LearnedAttack]]

    def __init__(self, *args: Any, adversary_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if not isinstance(adversary_kwargs, Mapping | None):
            raise TypeError(f"adversary_kwargs must be a dict of PPO's arguments, got {adversary_kwargs!r}")
        self.adversary_kwargs = dict(adversary_kwargs or {})
        reserved = [name for name in RESERVED if name in self.adversary_kwargs]
        if reserved:
            raise ValueError(
                f"adversary_kwargs must be arguments of PPO other than {', '.join(RESERVED)}; got {reserved[0]!r}"
            )
        strings = [name for name, value in self.adversary_kwargs.items() if isinstance(value, str)]
        if strings:  # RL Zoo reads schedules such as "lin_3e-4" among the algorithm's own arguments only
            raise ValueError(f"adversary_kwargs: {strings[0]} must be no string, got {self.adversary_kwargs[strings[0]]!r}")
        self.adversary_timesteps = 0
        self._adversary_rng: np.random.Generator | None = None
        self._adversary_rewards = RunningMeanStd(shape=())
        self._observed: RunningMeanStd | None = None
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        space = self.observation_space
        if not isinstance(space, spaces.Box) or space.dtype not in (np.float32, np.float64):
            raise ValueError(f"{type(self).__name__} needs observations that are vectors of floats (Box), got {space}")
        if self._adversary_rng is None:  # after load it goes on where it was
            self._adversary_rng = np.random.default_rng(self.seed)
            self._observed = RunningMeanStd(shape=(int(np.prod(space.shape)),))
            self._adversary_seed = self._draw()
        self.adversary = self._new_adversary()

    def _new_adversary(self) -> PPO:
        """Without environments, as SB3 loads an algorithm: it is given those of the agent in each iteration."""
        attack = self.attack_class(self.eps, self.norm)
        attack._radius_of(self.observation_space, np.float32)  # refuses another shape of eps
        size = self.n_envs * self.adversary_kwargs.get("n_steps", self.n_steps)
        usual = dict(n_steps=self.n_steps, batch_size=max(2, size // MINIBATCHES), learning_rate=LEARNING_RATE)
        settings: dict[str, Any] = {**usual, "max_grad_norm": np.inf, **self.adversary_kwargs}
        no_env: Any = None
        adversary = PPO("MlpPolicy", no_env, seed=self._adversary_seed, device="cpu", _init_setup_model=False, **settings)
        adversary.observation_space = AdversaryVecEnv.observed(int(np.prod(self.observation_space.shape or ())))
        adversary.action_space, adversary.n_envs = attack._action_space(self.policy), self.n_envs
        with own_random_numbers():
            adversary._setup_model()
        adversary.set_logger(Logger(None, []))
        adversary.ep_info_buffer = deque(maxlen=self._stats_window_size)
        adversary.ep_success_buffer = deque(maxlen=self._stats_window_size)
        return adversary

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, variables = super()._get_torch_save_params()
        return [*modules, "adversary.policy", "adversary.policy.optimizer"], variables

    def _draw(self) -> int:
        """A seed from this algorithm's own random numbers."""
        assert self._adversary_rng is not None
        return int(self._adversary_rng.integers(2**31))

    def _adversary_now(self) -> LearnedAttack:
        """The adversary of the moment as an attack, at the radius of the moment; it samples."""
        assert self._adversary_rng is not None and self._observed is not None
        attack = self.attack_class(self.eps_now, self.norm, seed=self._draw())
        actor, stream = Actor(self.adversary.policy, deterministic=False), self._adversary_rng
        view = View.of(self._observed.mean, np.sqrt(self._observed.var))
        attack.direct(lambda observed: actor(observed, [stream] * len(observed))[0], view)
        return attack

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        # The attack lasts for the rollout: what stays in the model between rollouts is true.
        if not self.is_due:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        self.policy.set_training_mode(False)  # as it plays: Lipschitz policies project their weights here
        attacked = TrainingAdversary(env, self, self._adversary_now(), in_training=True)
        self._last_obs = attacked.attacked(self._last_obs)
        try:
            return super().collect_rollouts(attacked, callback, rollout_buffer, n_rollout_steps)
        finally:
            self._last_obs = attacked.true_obs
            self.logger.record("defence/mean_perturbation", attacked.mean_perturbation)

    def train(self) -> None:
        assert self._observed is not None
        observations = self.rollout_buffer.observations
        self._observed.update(observations.reshape(-1, *self._observed.mean.shape))  # true ones, but for eps
        super().train()
        if self.is_due:
            self._train_adversary()

    def _train_adversary(self) -> None:
        """One iteration of the adversary."""
        adversary, env = self.adversary, self.env
        assert env is not None and self._last_obs is not None
        adversary._current_progress_remaining = self._current_progress_remaining
        with frozen(env), own_random_numbers(self._draw()):
            self._collect_for_adversary(self._adversary_now().environment(self, env))
            adversary.train()
        self.adversary_timesteps += adversary.n_steps * adversary.n_envs
        learned = adversary.logger.name_to_value
        self._log_defence(
            adversary_timesteps=self.adversary_timesteps,
            adversary_std=learned["train/std"],
            adversary_explained_variance=learned["train/explained_variance"],
        )
        if adversary.ep_info_buffer:
            self._log_defence(attacked_return=safe_mean([episode["r"] for episode in adversary.ep_info_buffer]))

    def _collect_for_adversary(self, env: AdversaryVecEnv) -> None:
        """Its rollout, from where the agent left the environments to where the agent goes on."""
        adversary, callback = self.adversary, CallbackList([])
        callback.init_callback(adversary)
        scaled = VecNormalize(env, norm_obs=False, gamma=adversary.gamma)
        scaled.ret_rms = self._adversary_rewards
        assert self._last_obs is not None
        adversary._last_obs = env.take_over(self._last_obs)
        adversary._last_episode_starts = self._last_episode_starts
        try:
            adversary.collect_rollouts(scaled, callback, adversary.rollout_buffer, adversary.n_steps)
        finally:  # where the environments are, after an interruption too
            self._last_obs, self._last_episode_starts = env.true, adversary._last_episode_starts


class ATLAPPO(AlternatingTraining, PPO):
    """
    ATLA-PPO (Zhang et al. 2021, arXiv 2101.08452) without its LSTM: PPO in turn with the optimal adversary SA-RL, whose action
    is the perturbation. Arguments as in ``PPO``, :class:`AlternatingTraining` and
    :class:`~sb3_prune_robust.defences.base.RobustTraining`.
    """

    attack_class = SARL


class PAATLAPPO(AlternatingTraining, SAPPO):
    """
    PA-ATLA (Sun et al. 2022, arXiv 2106.05087): PPO in turn with PA-AD, whose action is a direction in the space of the
    agent's means or logits, and with the state-adversarial regulariser (``kappa=0``: without). Arguments as in ``SAPPO`` and
    :class:`AlternatingTraining`.
    """

    attack_class = PAAD
