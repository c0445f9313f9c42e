"""
How large an attack on observations can be while half of an agent's return is certified: with and without pruning and a bound.

    python examples/certify_returns.py [timesteps] [episodes]
"""

import sys

import torch as th
from stable_baselines3 import PPO

from sb3_prune_robust import LipschitzCategoricalPolicy, PruningCallback, certify_return
from sb3_prune_robust.evaluation import largest_certified_eps, make_env, play_clean


def main(timesteps: int = 50_000, episodes: int = 100) -> None:
    th.set_num_threads(1)
    settings = dict(n_steps=256, batch_size=256, learning_rate=1e-3, seed=0, device="cpu")
    plain = PPO("MlpPolicy", make_env("CartPole-v1", 8), **settings).learn(timesteps)
    robust = PPO(LipschitzCategoricalPolicy, make_env("CartPole-v1", 8), policy_kwargs=dict(lipschitz=8.0), **settings)
    robust.learn(timesteps, callback=PruningCallback(final_sparsity=0.9))

    for name, model in (("plain", plain), ("Lipschitz and pruned", robust)):
        env, sizes = make_env("CartPole-v1", 25), dict(n_episodes=episodes, n_calibration=25)
        certificate = certify_return(model, env, eps=0.001, confidence=0.99, **sizes)
        print(f"{name}: clean {certificate.clean:.0f}; under every attack of eps 0.001 at least {certificate.lower:.0f}")
        found = largest_certified_eps(play_clean(model, env, **sizes), 0.5, confidence=0.99)
        print(f"  half of it is certified up to eps = {found.eps:.2g}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
