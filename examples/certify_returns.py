"""
How large an attack on observations can be while half of an agent's return is certified: with and without pruning and a bound.

Run: python examples/certify_returns.py [timesteps]
"""

import sys

from stable_baselines3 import PPO

from sb3_prune_robust import LipschitzCategoricalPolicy, PruningCallback, certify_return
from sb3_prune_robust.evaluation import largest_certified_eps, make_env, play_clean

timesteps = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
hyperparameters = dict(n_steps=256, batch_size=256, learning_rate=1e-3, seed=0, device="cpu")

plain = PPO("MlpPolicy", make_env("CartPole-v1", 8), **hyperparameters).learn(timesteps)
robust = PPO(LipschitzCategoricalPolicy, make_env("CartPole-v1", 8), policy_kwargs=dict(lipschitz=8.0), **hyperparameters)
robust.learn(timesteps, callback=PruningCallback(final_sparsity=0.9))

for name, model in (("plain", plain), ("Lipschitz and pruned", robust)):
    env = make_env("CartPole-v1", 25)
    certificate = certify_return(model, env, eps=0.001, n_episodes=100, n_calibration=25, confidence=0.99)
    print(f"{name}: clean {certificate.clean:.0f}; under every attack of eps 0.001 at least {certificate.lower:.0f}")
    found = largest_certified_eps(play_clean(model, env, n_episodes=100, n_calibration=25), 0.5, confidence=0.99)
    print(f"  half of it is certified up to eps = {found.eps:.2g}")
