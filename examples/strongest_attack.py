"""
How low the strongest attacks bring an agent: gradient attacks beside adversaries that learn, on episodes held out.

Run: python examples/strongest_attack.py [timesteps]
"""

import sys

from stable_baselines3 import PPO

from sb3_prune_robust import AdversarialVecEnv, worst_case
from sb3_prune_robust.attacks import Budget, FittedAttack
from sb3_prune_robust.evaluation import make_env

timesteps = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
hyperparameters = dict(n_steps=256, batch_size=256, learning_rate=1e-3, seed=0, device="cpu")
model = PPO("MlpPolicy", make_env("CartPole-v1", 8), **hyperparameters).learn(timesteps)

found = worst_case(
    model,
    make_env("CartPole-v1", 16),
    ["mad", "critic", "pa-ad-search"],
    eps=0.1,
    n_episodes=20,
    budget=Budget(steps=40_000),  # of each attack that learns; by default some CPU minutes
    progress_bar=True,
)
print(f"clean {found.clean.returns.mean():.0f}")
for name, episodes in found.episodes.items():
    print(f"{name}: {episodes.returns.mean():.0f}" + (f", {found.cost[name]}" if name in found.cost else ""))

found.attacks["pa-ad-search"].save("adversary.npz")  # plain arrays, to share
attack = FittedAttack.load("adversary.npz")
env = AdversarialVecEnv(make_env("CartPole-v1", 1), model, attack)  # as in any evaluation of your own
print("the agent now sees", env.reset())
