"""The attacks on agents published with ATLA_robust_RL, against the figures measured on them by another implementation.

Run from the repository's root: ``python benchmarks/victims.py DIR [NAME ...]``, ``DIR`` holding ``<name>.npz`` with the
weights (they are not part of this package). gymnasium's v4 environments, deterministic victims, the environment's own
reward, actions not clipped by the agent, 8 episodes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_prune_robust.attacks import MAD, SGLDMAD, Attack, RandomAttack

# name: environment, eps, and (clean, random, MAD in the references' form, PGD 20 steps x 5 restarts) measured before
VICTIMS: dict[str, tuple[str, float, tuple[int, int, int, int]]] = {
    "halfcheetah_ppo": ("HalfCheetah-v4", 0.15, (7103, 4977, 1502, 766)),
    "halfcheetah_sappo": ("HalfCheetah-v4", 0.15, (3590, 3590, 3592, 3364)),
    "walker_ppo": ("Walker2d-v4", 0.05, (4639, 4628, 3214, 1535)),
    "hopper_sappo": ("Hopper-v4", 0.075, (3563, 3097, 2919, 2859)),
}
EPISODES = 8


def load(data: Any, env: Any) -> ActorCriticPolicy:
    """The published weights in a plain SB3 policy."""
    policy = ActorCriticPolicy(env.observation_space, env.action_space, lambda _: 1e-3)
    layers = [policy.mlp_extractor.policy_net[0], policy.mlp_extractor.policy_net[2], policy.action_net]
    with th.no_grad():
        for i, layer in enumerate(layers):
            layer.weight.copy_(th.as_tensor(data[f"W{i}"]))
            layer.bias.copy_(th.as_tensor(data[f"b{i}"]))
        policy.log_std.copy_(th.as_tensor(data["log_std"]).flatten())
    return policy


def mean_return(data: Any, env_id: str, attack: Attack | None) -> float:
    """Mean return of ``EPISODES`` episodes, run side by side."""
    envs: list[Any] = [gym.make(env_id) for _ in range(EPISODES)]
    policy = load(data, envs[0])
    states = np.array([env.reset(seed=i)[0] for i, env in enumerate(envs)])
    running, returns = np.ones(EPISODES, bool), np.zeros(EPISODES)
    while running.any():
        obs = np.clip((states - data["obs_mean"]) / (data["obs_std"] + 1e-8), -10, 10).astype(np.float32)
        seen = obs if attack is None else attack(policy, obs)
        with th.no_grad():
            actions = policy.get_distribution(th.as_tensor(seen)).distribution.mean.numpy()
        for i in np.flatnonzero(running):
            states[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
            returns[i] += reward
            running[i] = not (terminated or truncated)
    return float(returns.mean())


def main() -> None:
    th.set_num_threads(1)
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("skipped: give the folder that holds the victims' .npz files; they are not part of this repository")
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or list(VICTIMS):
        env_id, eps, before = VICTIMS[name]
        data = np.load(folder / f"{name}.npz")
        attacks: dict[str, Attack | None] = {
            "clean": None,
            "random": RandomAttack(eps, seed=0),
            "mad-sgld": SGLDMAD(eps, seed=0, deterministic=True),
            "mad": MAD(eps, seed=0),
            "mad, deterministic": MAD(eps, seed=0, deterministic=True),
        }
        print(f"{name}, {env_id}, eps {eps}; measured before: clean, random, reference MAD, PGD {before}")
        for label, attack in attacks.items():
            print(f"  {label:20s} {mean_return(data, env_id, attack):7.0f}", flush=True)


if __name__ == "__main__":
    main()
