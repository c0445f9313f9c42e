"""Agents published with ATLA_robust_RL as SB3 policies, and the quick attacks on them, against figures measured elsewhere.

Run from the repository's root: ``python benchmarks/victims.py DIR [NAME ...]``, ``DIR`` holding ``<name>.npz`` with the
weights (they are not part of this package). gymnasium's v4 environments, deterministic victims, the environment's own
reward, actions not clipped by the agent, 8 episodes. The strong attacks: ``benchmarks/adversaries.py``.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_prune_robust.attacks import MAD, SGLDMAD, Attack, RandomAttack
from sb3_prune_robust.evaluation import rollout

# name: environment, eps, and (clean, random, MAD in the references' form, PGD 20 steps x 5 restarts) measured before
VICTIMS: dict[str, tuple[str, float, tuple[int, int, int, int]]] = {
    "halfcheetah_ppo": ("HalfCheetah-v4", 0.15, (7103, 4977, 1502, 766)),
    "halfcheetah_sappo": ("HalfCheetah-v4", 0.15, (3590, 3590, 3592, 3364)),
    "walker_ppo": ("Walker2d-v4", 0.05, (4639, 4628, 3214, 1535)),
    "hopper_sappo": ("Hopper-v4", 0.075, (3563, 3097, 2919, 2859)),
}
EPISODES = 8


class Unbounded(gym.Wrapper[Any, Any, Any, Any]):
    """Actions of any size reach the environment, as where these agents were trained: SB3's ``predict`` clips to the space."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        assert env.action_space.shape is not None
        self.action_space = spaces.Box(-np.inf, np.inf, env.action_space.shape, np.float32)


def load_victim(folder: Path, name: str, n_envs: int) -> tuple[ActorCriticPolicy, VecNormalize, float]:
    """The published agent as a plain SB3 policy, its environments with its own frozen statistics, and the published eps."""
    env_id, eps, _ = VICTIMS[name]
    data = np.load(folder / f"{name}.npz")
    envs = DummyVecEnv([functools.partial(_make, env_id)] * n_envs)
    venv = VecNormalize(envs, training=False, norm_reward=False, clip_obs=10.0, epsilon=0.0)
    statistics: Any = venv.obs_rms
    statistics.mean = data["obs_mean"].astype(np.float64).ravel()
    statistics.var = (data["obs_std"].astype(np.float64).ravel() + 1e-8) ** 2
    policy = ActorCriticPolicy(venv.observation_space, venv.action_space, lambda _: 1e-3)
    mlp, values = policy.mlp_extractor, [data[key] for key in data.files if key.startswith("val_")]
    _fill([mlp.policy_net[0], mlp.policy_net[2], policy.action_net], [data[f"{k}{i}"] for i in range(3) for k in "Wb"])
    _fill([mlp.value_net[0], mlp.value_net[2], policy.value_net], values)
    with th.no_grad():
        policy.log_std.copy_(th.as_tensor(data["log_std"]).flatten())
    return policy, venv, eps


def _make(env_id: str) -> gym.Env[Any, Any]:
    return Unbounded(gym.make(env_id))


def _fill(layers: list[Any], arrays: list[Any]) -> None:
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    assert len(arrays) == len(parameters) and all(isinstance(layer, nn.Linear) for layer in layers)
    with th.no_grad():
        for parameter, array in zip(parameters, arrays, strict=True):
            parameter.copy_(th.as_tensor(array))


def folder_and_names(arguments: list[str]) -> tuple[Path, list[str]]:
    """The folder of the victims and the names asked for; ends the script, saying so, where there is no such folder."""
    if not arguments or not Path(arguments[0]).is_dir():
        sys.exit("skipped: give the folder that holds the victims' .npz files; they are not part of this repository")
    return Path(arguments[0]), arguments[1:] or list(VICTIMS)


def main() -> None:
    th.set_num_threads(1)
    folder, names = folder_and_names(sys.argv[1:])
    for name in names:
        policy, venv, eps = load_victim(folder, name, EPISODES)
        attacks: dict[str, Attack | None] = {
            "clean": None,
            "random": RandomAttack(eps, seed=0),
            "mad-sgld": SGLDMAD(eps, seed=0, deterministic=True),
            "mad": MAD(eps, seed=0),
            "mad, deterministic": MAD(eps, seed=0, deterministic=True),
        }
        before = VICTIMS[name][2]
        print(f"{name}, {VICTIMS[name][0]}, eps {eps}; measured before: clean, random, reference MAD, PGD {before}")
        for label, attack in attacks.items():
            returns = rollout(policy, venv, EPISODES, attack=attack, deterministic=True).returns
            print(f"  {label:20s} {returns.mean():7.0f}", flush=True)


if __name__ == "__main__":
    main()
