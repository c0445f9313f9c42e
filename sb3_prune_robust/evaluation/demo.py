"""A small agent trained, pruned while it trains, and kept at each sparsity on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecNormalize

from sb3_prune_robust.evaluation.audit import Subject
from sb3_prune_robust.evaluation.frontier import Agent
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.policies import LipschitzGaussianPolicy, copy_policy
from sb3_prune_robust.pruning import PruningCallback, sparsity

N_TRAINING_ENVS = 8
FINAL_SPARSITY = 0.95
START, END = 0.4, 0.95  # of training, when pruning starts and is complete: ten prunes, training between them


@dataclass(frozen=True)
class Recipe:
    """
    How the demo trains on an environment.

    :param timesteps: environment steps
    :param eps: l_inf radius of the attacks, in normalised units
    :param lipschitz: bound on the mean network
    :param learning_rate: of Adam
    :param clip_rewards: range to which rewards are clipped for the certified return: neither environment's are proved bounded
    """

    timesteps: int
    eps: float
    lipschitz: float = 10.0
    learning_rate: float = 5e-4
    clip_rewards: tuple[float, float] = (0.0, 10.0)


RECIPES = {
    "InvertedDoublePendulum-v5": Recipe(timesteps=400_000, eps=0.01),
    "Hopper-v5": Recipe(timesteps=400_000, eps=0.02, clip_rewards=(0.0, 5.0)),
}


class Snapshots(BaseCallback):
    """
    Keeps a copy of the policy as it was at the end of training at each sparsity, and freezes the statistics of the
    observations once pruning starts, so that all copies see the same.

    :param start: progress at which pruning starts
    :param on_steps: called with the number of new environment steps (progress)
    """

    def __init__(self, start: float, on_steps: Callable[[int], object]) -> None:
        super().__init__()
        self.start = start
        self.on_steps = on_steps
        self.policies: dict[float, Any] = {}

    def _on_step(self) -> bool:
        self.on_steps(self.training_env.num_envs)
        return True

    def _on_rollout_start(self) -> None:  # before the pruning callback's: the policy as the last prune left it, retrained
        if self.num_timesteps >= self.start * self.model._total_timesteps - self.model.n_steps * N_TRAINING_ENVS:  # type: ignore[attr-defined]
            normalizer = self.training_env
            assert isinstance(normalizer, VecNormalize)
            normalizer.training = False
        self.keep()

    def keep(self) -> None:
        """Keep the present policy under its sparsity, in place of an earlier one at the same sparsity."""
        self.policies[sparsity(self.model.policy)["actor"]] = copy_policy(self.model.policy)


def train_demo(
    env: str, timesteps: int, n_envs: int, seed: int, levels: Sequence[float], on_steps: Callable[[int], object]
) -> Subject:
    """
    Train a ``LipschitzGaussianPolicy`` with PPO and prune it on the way, from :data:`START` to :data:`END` of training.

    :param env: a key of :data:`RECIPES`
    :param timesteps: environment steps
    :param n_envs: environments to evaluate in
    :param seed: seed of training
    :param levels: the sparsities wanted; of the copies kept, the nearest to each is returned
    :param on_steps: called with the number of new environment steps (progress)
    :return: the agent at each sparsity
    """
    recipe, venv = RECIPES[env], VecNormalize(make_env(env, N_TRAINING_ENVS), gamma=0.99)
    model = PPO(
        LipschitzGaussianPolicy,
        venv,
        n_steps=256,
        batch_size=256,
        learning_rate=recipe.learning_rate,
        seed=seed,
        device="cpu",
        policy_kwargs={"lipschitz": recipe.lipschitz},
    )
    pruning = PruningCallback(final_sparsity=FINAL_SPARSITY, schedule="periodic", start=START, end=END)
    snapshots = Snapshots(START, on_steps)
    model.learn(timesteps, callback=CallbackList([snapshots, pruning]))
    snapshots.keep()
    venv.close()
    evaluation = VecNormalize(make_env(env, n_envs), training=False, norm_reward=False)
    evaluation.obs_rms = venv.obs_rms
    return Subject(Agent(f"{env} trained by the demo", nearest(snapshots.policies, levels), evaluation), model)


def nearest(policies: dict[float, Any], levels: Sequence[float]) -> dict[float, Any]:
    """
    Of many policies, those nearest in sparsity to the levels wanted.

    :param policies: by sparsity
    :param levels: sparsities
    :return: one policy or fewer for each level, by its own sparsity, ascending
    """
    kept = np.array(sorted(policies))
    chosen = {float(kept[np.abs(kept - level).argmin()]) for level in levels}
    return {level: policies[level] for level in sorted(chosen)}
