"""
SA-PPO with a policy that is pruned as it learns, beside PPO, both under attack; about two minutes.

    python examples/robust_training.py [timesteps]
"""

import sys

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_prune_robust import PruningCallback, worst_case
from sb3_prune_robust.defences import SAPPO

EPS = 0.1  # l_inf, in units of the observation that the policy receives


def main(timesteps: int = 100_000) -> None:
    th.set_num_threads(1)  # one thread is the fastest for networks of this size
    venv = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    plain = PPO("MlpPolicy", venv, n_steps=256, batch_size=256, seed=0)
    robust = SAPPO("MlpPolicy", venv, n_steps=256, batch_size=256, seed=0, eps=EPS, inner="pgd", kappa=1.0)
    plain.learn(timesteps)
    robust.learn(timesteps, callback=PruningCallback(final_sparsity=0.7))
    for name, model in (("PPO", plain), ("SA-PPO, pruned", robust)):
        found = worst_case(model, venv, ["random", "mad", "critic"], EPS, n_episodes=16)
        print(f"{name}: {found.clean.returns.mean():.0f} clean, {found.mean:.0f} under {found.attack} at eps={EPS}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
