"""
Does an off-policy agent learn as well with a bound on its actor? Trainings by bound, return and the product of norms reached.

    python benchmarks/off_policy_learning.py run        what is in the results already is not run again
    python benchmarks/off_policy_learning.py report     the table of docs/learning.md
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from tqdm import tqdm

from sb3_prune_robust.network import action_network
from sb3_prune_robust.policies import LipschitzSACPolicy, LipschitzTD3Policy

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "off_policy_learning.csv"
FIELDS = ["algorithm", "env", "lipschitz", "seed", "timesteps", "return_mean", "return_std", "product_of_norms"]
ENV, TIMESTEPS, EPISODES, SEEDS = "Pendulum-v1", 6000, 20, (0, 1, 2)
BOUNDS: tuple[float | None, ...] = (None, 20.0, 100.0)
NOISE = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
ALGORITHMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sac": (SAC, LipschitzSACPolicy, {}),
    "td3": (TD3, LipschitzTD3Policy, {"gamma": 0.98, "learning_starts": 1000, "action_noise": NOISE}),
}


def train(algorithm: str, bound: float | None, seed: int) -> dict[str, Any]:
    made, policy, settings = ALGORITHMS[algorithm]
    kwargs = {"lipschitz": bound, "net_arch": [64, 64]}
    model = made(policy, ENV, learning_rate=1e-3, seed=seed, device="cpu", policy_kwargs=kwargs, **settings).learn(TIMESTEPS)
    model.policy.state_dict()  # projects exactly, as saving does
    mean, std = evaluate_policy(model, model.get_env(), EPISODES, warn=False)
    product = np.prod([np.linalg.norm(weight, 2) for weight in action_network(model.policy).weights])
    values = [algorithm, ENV, bound, seed, TIMESTEPS, f"{mean:.1f}", f"{std:.1f}", f"{product:.1f}"]
    return dict(zip(FIELDS, values, strict=True))


def known() -> list[dict[str, str]]:
    return list(csv.DictReader(RESULTS.open())) if RESULTS.exists() else []


def run() -> None:
    done = {(row["algorithm"], row["lipschitz"], row["seed"]) for row in known()}
    todo = [(a, b, s) for s in SEEDS for a in ALGORITHMS for b in BOUNDS if (a, str(b or ""), str(s)) not in done]
    for one in tqdm(todo, desc="trainings"):
        is_new = not RESULTS.exists()
        row = train(*one)
        with RESULTS.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)


def report() -> None:
    print("| algorithm | bound | returns, by seed | products of norms |\n|---|---|---|---|")
    rows = known()
    for algorithm in ALGORITHMS:
        for bound in BOUNDS:
            own = [row for row in rows if row["algorithm"] == algorithm and row["lipschitz"] == str(bound or "")]
            returns, products = (", ".join(row[field] for row in own) for field in ("return_mean", "product_of_norms"))
            print(f"| {algorithm.upper()} | {'none' if bound is None else f'{bound:g}'} | {returns} | {products} |")


if __name__ == "__main__":
    th.set_num_threads(1)
    {"run": run, "report": report}[sys.argv[1]]()
