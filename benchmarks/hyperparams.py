"""
Do the entries of hyperparams/ learn? Trainings by RL Zoo from the command line, and what the agents return.

    python benchmarks/hyperparams.py run       what is in docs/results/hyperparams.csv already is not run again
    python benchmarks/hyperparams.py report    the table of docs/tuning.md
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import torch as th
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_prune_robust import sparsity

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "hyperparams.csv"
FIELDS = ["algo", "env", "seed", "steps", "mean_return", "std", "sparsity", "command"]
EPISODES, FIRST_SEED = 20, 10_000
RUNS = [
    *(("ppo", "CartPole-v1", seed, 100_000) for seed in (0, 1, 2)),
    ("ppo", "Pendulum-v1", 0, 200_000),
    ("a2c", "CartPole-v1", 0, 500_000),
    ("trpo", "InvertedPendulum-v5", 0, 200_000),
    ("sac", "Pendulum-v1", 0, 5_000),
    ("td3", "Pendulum-v1", 0, 5_000),
    ("td3", "Pendulum-v1", 0, 10_000),
    ("tqc", "Pendulum-v1", 0, 5_000),
    ("dqn", "CartPole-v1", 0, 50_000),
    ("dqn", "CartPole-v1", 0, 100_000),
    ("ppo", "Hopper-v5", 0, 400_000),
]


def train(algo: str, env: str, seed: int, steps: int) -> list[str]:
    conf = f"sb3_prune_robust.hyperparams.{algo}"
    flags = ["--algo", algo, "--env", env, "--conf-file", conf, "--seed", str(seed), "-n", str(steps), "--eval-freq", "-1"]
    command = ["-m", "rl_zoo3.train", *flags, "--device", "cpu"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, *command, "-f", folder, "--num-threads", "1"], check=True, stdout=subprocess.DEVNULL)
        mean, std, zeros = evaluate(algo, env, Path(folder) / algo / f"{env}_1")
    return [algo, env, str(seed), str(steps), f"{mean:.1f}", f"{std:.1f}", f"{zeros:.4f}", " ".join(["python", *command])]


def evaluate(algo: str, env: str, run: Path) -> tuple[float, float, float]:
    """SB3's own evaluation with the run's statistics, on seeds that training does not use."""
    venv = make_vec_env(env, n_envs=4, seed=FIRST_SEED)
    statistics = run / env / "vecnormalize.pkl"
    if statistics.exists():
        venv = VecNormalize.load(str(statistics), venv)
        venv.training = venv.norm_reward = False
    model = ALGOS[algo].load(run / f"{env}.zip", device="cpu")
    mean, std = evaluate_policy(model, venv, n_eval_episodes=EPISODES, deterministic=True)
    return float(mean), float(std), sparsity(model)["actor"]


def known() -> list[dict[str, str]]:
    return list(csv.DictReader(RESULTS.open())) if RESULTS.exists() else []


def run() -> None:
    done = {tuple(row[field] for field in FIELDS[:4]) for row in known()}
    for one in RUNS:
        if tuple(map(str, one)) in done:
            continue
        is_new = not RESULTS.exists()
        row = train(*one)
        with RESULTS.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(FIELDS)
            writer.writerow(row)
        print(*row[:-1], flush=True)


def report() -> None:
    print("| algorithm | environment | seed | steps | mean return | sparsity of the actor |\n|---|---|---|---|---|---|")
    for row in known():
        cells = (*(row[field] for field in FIELDS[:5]), f"{float(row['sparsity']):.2f}")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    th.set_num_threads(1)
    {"run": run, "report": report}[sys.argv[1]]()
