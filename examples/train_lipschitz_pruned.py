"""
A Lipschitz policy pruned while it learns, then certified: the whole idea in forty lines, about a minute.

    python examples/train_lipschitz_pruned.py [timesteps]
"""

import sys

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_prune_robust import AdversarialVecEnv, LipschitzGaussianPolicy, PruningCallback, certify, sparsity
from sb3_prune_robust.attacks import MAD

EPS = 0.05  # l_inf, in units of the observation that the policy receives


def main(timesteps: int = 100_000) -> None:
    th.set_num_threads(1)  # one thread is the fastest for networks of this size
    venv = make_vec_env("InvertedPendulum-v5", n_envs=8, seed=0)
    model = PPO(LipschitzGaussianPolicy, venv, policy_kwargs=dict(lipschitz=10.0), n_steps=256, batch_size=256, seed=0)
    model.learn(timesteps, callback=PruningCallback(final_sparsity=0.7))
    print(f"sparsity of the actor's hidden layers: {sparsity(model)['actor']:.3f}")

    clean, _ = evaluate_policy(model, venv, n_eval_episodes=16)
    attacked, _ = evaluate_policy(
        model, AdversarialVecEnv(venv, model, MAD(eps=EPS, deterministic=True, seed=0)), n_eval_episodes=16
    )
    print(f"return: {clean:.1f} clean, {attacked:.1f} under MAD at eps={EPS}")

    venv.seed(1)
    observations = [np.asarray(venv.reset())]
    for _ in range(100):
        actions, _ = model.predict(observations[-1])
        observations.append(np.asarray(venv.step(actions)[0]))
    certificate = certify(model.policy, np.concatenate(observations), eps=EPS)
    print(f"certified total variation on {len(certificate.tv)} states: mean {certificate.tv.mean():.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
