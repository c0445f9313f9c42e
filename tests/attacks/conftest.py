from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "gaussian": spaces.Box(-1.0, 1.0, (3,)),
    "categorical": spaces.Discrete(4),
    "multi": spaces.MultiDiscrete([3, 2, 4]),
}


def build_policy(
    actions: str = "gaussian", activation: type[nn.Module] = nn.Tanh, seed: int = 0, shape: tuple[int, ...] = (5,)
) -> ActorCriticPolicy:
    """A random network that reacts to its input: SB3's own initialisation makes nearly constant policies."""
    th.manual_seed(seed)
    space = spaces.Box(-np.inf, np.inf, shape, dtype=np.float32)
    policy = ActorCriticPolicy(
        space, ACTION_SPACES[actions], lambda _: 1e-3, activation_fn=activation, net_arch=[32, 24], ortho_init=False
    )
    with th.no_grad():
        for module in policy.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1.5 / module.in_features**0.5)
                nn.init.normal_(module.bias, std=0.3)
        if actions == "gaussian":
            policy.log_std.copy_(th.tensor([-1.0, 0.0, 0.5]))
    return policy


@pytest.fixture
def make_policy() -> Callable[..., ActorCriticPolicy]:
    return build_policy


@pytest.fixture(scope="session")
def policy() -> ActorCriticPolicy:
    return build_policy()


@pytest.fixture(scope="session")
def trained() -> PPO:
    """A CartPole agent that balances for most of an episode."""
    th.set_num_threads(1)
    venv = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    settings: dict[str, Any] = dict(n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8, learning_rate=2e-3)
    return PPO("MlpPolicy", venv, seed=0, device="cpu", **settings).learn(25_000)


class Counter(gym.Env[Any, Any]):
    """Observes ``(episode, step, 0)`` and ends after three steps, so that every true observation is known."""

    def __init__(self, dtype: Any = np.float32) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), dtype=dtype)
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.episode, self.steps = -1, 0

    def _observation(self) -> Any:
        return np.array([self.episode, self.steps, 0.0], self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observation(), {"fresh": self.episode}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._observation(), 1.0, self.steps == 3, False, {"steps": self.steps}


@pytest.fixture
def counter() -> type[Counter]:
    return Counter
