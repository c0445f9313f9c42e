"""
Does a Lipschitz policy learn as well as ``MlpPolicy``? Returns of both, over seeds, on four environments.

    python benchmarks/learning.py run --envs CartPole-v1 --policies mlp 10 --seeds 5
    python benchmarks/learning.py report

``run`` appends one row a training to ``docs/results/learning.csv`` (trainings that are there already are not repeated);
``report`` prints, for each environment, the mean improvement over random play as a share of that of ``MlpPolicy``.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tqdm import tqdm

from sb3_prune_robust.layers import spectral_norm
from sb3_prune_robust.network import action_network
from sb3_prune_robust.policies import LipschitzCategoricalPolicy, LipschitzGaussianPolicy

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "learning.csv"
COLUMNS = ["env", "policy", "seed", "timesteps", "deterministic", "stochastic", "product_of_norms", "seconds"]

# The same for both policies. CartPole as in RL Zoo; Pendulum as in RL Zoo without gSDE; the others SB3's defaults with
# eight environments. "normalize" is VecNormalize.
SETTINGS: dict[str, dict[str, Any]] = {
    "CartPole-v1": dict(
        timesteps=100_000, n_envs=8, n_steps=32, batch_size=256, n_epochs=20, gae_lambda=0.8, gamma=0.98, ent_coef=0.0,
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0), clip_range=LinearSchedule(0.2, 0.0, 1.0), normalize=False,
    ),
    "Pendulum-v1": dict(
        timesteps=200_000, n_envs=4, n_steps=1024, gae_lambda=0.95, gamma=0.9, n_epochs=10, learning_rate=1e-3, normalize=False
    ),
    "InvertedPendulum-v5": dict(timesteps=200_000, n_envs=8, n_steps=256, batch_size=256, normalize=False),
    "Hopper-v5": dict(timesteps=400_000, n_envs=8, n_steps=256, batch_size=256, normalize=True),
}  # fmt: skip


def make_env(env_id: str, n_envs: int, normalize: bool, seed: int) -> VecEnv:
    venv = make_vec_env(env_id, n_envs=n_envs, seed=seed)
    return VecNormalize(venv) if normalize else venv


def policy_arguments(env_id: str, policy: str) -> dict[str, Any]:
    if policy == "mlp":
        return dict(policy="MlpPolicy")
    discrete = isinstance(gym.make(env_id).action_space, spaces.Discrete)
    policy_class = LipschitzCategoricalPolicy if discrete else LipschitzGaussianPolicy
    return dict(policy=policy_class, policy_kwargs=dict(lipschitz=float(policy)))


def evaluate(model: PPO, venv: VecEnv, seed: int, deterministic: bool) -> float:
    venv.seed(seed)
    th.manual_seed(seed)
    return float(evaluate_policy(model, venv, n_eval_episodes=50, deterministic=deterministic)[0])


def train(env_id: str, policy: str, seed: int) -> dict[str, Any]:
    settings = dict(SETTINGS[env_id])
    timesteps, n_envs, normalize = (settings.pop(key) for key in ("timesteps", "n_envs", "normalize"))
    venv = make_env(env_id, n_envs, normalize, seed)
    began = time.perf_counter()
    model = PPO(**policy_arguments(env_id, policy), env=venv, seed=seed, device="cpu", **settings)
    model.learn(timesteps)
    seconds = time.perf_counter() - began
    if isinstance(venv, VecNormalize):
        venv.training, venv.norm_reward = False, False
    returns = [evaluate(model, venv, 10_000 + seed, deterministic) for deterministic in (True, False)]
    model.policy.set_training_mode(False)
    network = action_network(model.policy)
    product = network.activation_lipschitz * np.prod([spectral_norm(th.as_tensor(weight)) for weight in network.weights])
    return dict(zip(COLUMNS, [env_id, policy, seed, timesteps, *returns, float(product), seconds], strict=True))


def random_play(env_id: str, n_episodes: int = 100) -> float:
    env = gym.make(env_id)
    env.action_space.seed(0)
    returns = []
    for episode in range(n_episodes):
        env.reset(seed=episode)
        total, done = 0.0, False
        while not done:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


def append(row: dict[str, Any]) -> None:
    new = not RESULTS.exists()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})


def run(envs: list[str], policies: list[str], n_seeds: int) -> None:
    done = set()
    if RESULTS.exists():
        table = pd.read_csv(RESULTS, dtype={"policy": str})
        done = set(zip(table.env, table.policy, table.seed, strict=True))
    jobs = [(e, p, s) for e in envs for s in range(n_seeds) for p in policies if (e, p, s) not in done]
    for job in tqdm(jobs, unit="training"):
        append(train(*job))


def report() -> None:
    table = pd.read_csv(RESULTS, dtype={"policy": str})
    for env_id, rows in table.groupby("env", sort=False):
        random = random_play(str(env_id))
        means = rows.groupby("policy")[["deterministic", "stochastic", "product_of_norms"]].mean()
        means["seeds"] = rows.groupby("policy").size()
        for mode in ("deterministic", "stochastic"):
            means[f"share_{mode}"] = (means[mode] - random) / (means.loc["mlp", mode] - random)
        print(f"\n{env_id}: random play {random:.1f}\n{means.round(3).to_string()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--envs", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--policies", nargs="+", default=["mlp", "10"], help="mlp, or a Lipschitz bound")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.command == "run":
        run(args.envs, args.policies, args.seeds)
    else:
        report()


if __name__ == "__main__":
    main()
