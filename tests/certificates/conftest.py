from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

# pytest's importlib mode puts no test folder on the path: the helpers in finite_mdp.py are imported by two test files.
sys.path.insert(0, str(Path(__file__).parent))

ACTIONS: dict[str, spaces.Space[Any]] = {
    "gaussian": spaces.Box(-1.0, 1.0, (3,)),
    "categorical": spaces.Discrete(4),
    "multi": spaces.MultiDiscrete([3, 1, 2]),
}


@pytest.fixture(autouse=True)
def one_thread():
    th.set_num_threads(1)


@pytest.fixture
def build_policy():
    """A random policy that reacts to its input, with a std that is not 1."""

    def build(
        actions: str = "gaussian", seed: int = 0, shape: tuple[int, ...] = (5,), cls: Any = ActorCriticPolicy, **kwargs: Any
    ):
        th.manual_seed(seed)
        space = spaces.Box(-np.inf, np.inf, shape, dtype=np.float32)
        policy = cls(space, ACTIONS[actions], lambda _: 1e-3, net_arch=[16, 12], ortho_init=False, **kwargs)
        if actions == "gaussian":
            policy.log_std.data = th.tensor([-1.0, 0.2, -0.4])
        return policy

    return build


@pytest.fixture(scope="session")
def trained_agent():
    """A PPO agent after some seconds of InvertedPendulum: not a random network."""
    th.set_num_threads(1)
    model = PPO("MlpPolicy", "InvertedPendulum-v5", n_steps=512, batch_size=128, n_epochs=4, seed=0, device="cpu")
    return model.learn(3072)
