"""
An off-policy agent: SAC with a bound on its actor, pruned while it learns, and how far any attack can move its action.

    python examples/off_policy.py [timesteps]
"""

import sys

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_prune_robust import AdversarialVecEnv, LipschitzSACPolicy, PruningCallback, certify, sparsity
from sb3_prune_robust.attacks import MAD


def main(timesteps: int = 8_000) -> None:
    th.set_num_threads(1)
    kwargs = dict(net_arch=[64, 64], lipschitz=20.0)
    model = SAC(LipschitzSACPolicy, "Pendulum-v1", learning_rate=1e-3, policy_kwargs=kwargs, seed=0, device="cpu")
    model.learn(timesteps, callback=PruningCallback({"actor": 0.7, "critic": 0.3}, targets=("actor", "critic")))
    found = sparsity(model)
    print(f"zeros: actor {found['actor']:.0%}, critics {found['critic']:.0%}, their target networks along with them")

    states = make_vec_env("Pendulum-v1", n_envs=32, seed=1).reset()
    certificate = certify(model, states, eps=0.05)
    print(f"an attack of eps 0.05 moves the torque (-2 to 2) by at most {certificate.radius.mean():.2f}, mean over states")

    venv = make_vec_env("Pendulum-v1", n_envs=4, seed=2)
    clean, _ = evaluate_policy(model, venv, n_eval_episodes=8, warn=False)
    attacked, _ = evaluate_policy(model, AdversarialVecEnv(venv, model, MAD(0.3, seed=0)), n_eval_episodes=8, warn=False)
    print(f"return {clean:.0f}, under MAD of eps 0.3 {attacked:.0f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
