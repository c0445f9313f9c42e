"""What the tests of robust training share."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode puts no test folder on the path: for comparing.py


@pytest.fixture(autouse=True)
def one_thread():
    th.set_num_threads(1)


@pytest.fixture
def learned():
    """From an algorithm and its arguments to its parameters after two rollouts in two environments."""

    def learn(algorithm, env="InvertedPendulum-v5", **arguments):
        venv = make_vec_env(env, n_envs=2, seed=3)
        common = dict(n_steps=64, batch_size=32, n_epochs=2) if issubclass(algorithm, PPO) else {}
        model = algorithm("MlpPolicy", venv, seed=3, device="cpu", **{**common, **arguments})
        model.learn(256)
        return model

    return learn


@pytest.fixture
def states():
    """A function: random observations of a policy's size, float32."""
    return lambda n, size, seed=0: th.as_tensor(np.random.default_rng(seed).normal(size=(n, size)).astype(np.float32))
