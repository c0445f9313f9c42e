"""A small trained agent, and an environment whose episode lengths are known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO

th.set_num_threads(1)


class Countdown(gym.Env[Any, Any]):
    """
    Lasts a number of steps drawn at the reset from {2, 40}; each step pays 1 plus a term in the action.

    The observation is (steps left / 40, noise drawn at each step).
    """

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def _observe(self) -> Any:
        return np.array([self.left / 40, self.np_random.uniform(-1, 1)], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.left = int(self.np_random.choice([2, 40]))
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return self._observe(), 1.0 + 0.25 * float(action[0]), self.left == 0, False, {}


@pytest.fixture(scope="session")
def cartpole_model() -> PPO:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=512, learning_rate=1e-3, seed=0, device="cpu")
    return model.learn(8_000)


@pytest.fixture(scope="session")
def cartpole_file(cartpole_model: PPO, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "cartpole.zip"
    cartpole_model.save(path)
    return path


@pytest.fixture
def countdown_policy() -> Any:
    from stable_baselines3.common.vec_env import DummyVecEnv

    return PPO("MlpPolicy", DummyVecEnv([Countdown]), seed=3, device="cpu").policy
