"""
How low the strongest attacks bring an agent: gradient attacks beside adversaries that learn, on episodes held out.

    python examples/strongest_attack.py [timesteps] [steps of each attack's learning]
"""

import sys
import tempfile
from pathlib import Path

import torch as th
from stable_baselines3 import PPO

from sb3_prune_robust import AdversarialVecEnv, worst_case
from sb3_prune_robust.attacks import Budget, FittedAttack
from sb3_prune_robust.evaluation import make_env


def main(timesteps: int = 50_000, steps: int = 40_000) -> None:
    th.set_num_threads(1)
    settings = dict(n_steps=256, batch_size=256, learning_rate=1e-3, seed=0, device="cpu")
    model = PPO("MlpPolicy", make_env("CartPole-v1", 8), **settings).learn(timesteps)

    found = worst_case(
        model,
        make_env("CartPole-v1", 16),
        ["mad", "critic", "pa-ad-search"],
        eps=0.1,
        n_episodes=20,
        budget=Budget(steps=steps),  # of each attack that learns; by default some CPU minutes
        progress_bar=True,
    )
    print(f"clean {found.clean.returns.mean():.0f}")
    for name, episodes in found.episodes.items():
        print(f"{name}: {episodes.returns.mean():.0f}" + (f", {found.cost[name]}" if name in found.cost else ""))

    with tempfile.TemporaryDirectory() as folder:
        found.attacks["pa-ad-search"].save(Path(folder) / "adversary.npz")  # plain arrays, to share
        attack = FittedAttack.load(Path(folder) / "adversary.npz")
    env = AdversarialVecEnv(make_env("CartPole-v1", 1), model, attack)  # as in any evaluation of your own
    print("the agent now sees", env.reset())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
