"""
How tight the certificates are: mean certified over mean attacked total variation on trained Hopper-v5 agents.

    python benchmarks/tightness.py

The agents are those of ``certified_returns.py`` (seed 0; trained if they are not there, about six minutes each): plain and
lipschitz, dense; both, pruned to 90 %; and a Lipschitz agent pruned to 80 %. At 512 states of clean stochastic episodes: CROWN
and alpha-CROWN against PGD of 50 steps with 10 restarts. To reach at eps = .05: 1.10 for the Lipschitz policy pruned to 80 %,
1.25 dense.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from certified_returns import MODELS, RECIPES, Job, train
from stable_baselines3 import PPO
from tqdm import tqdm

from sb3_prune_robust.attacks import PGD
from sb3_prune_robust.certificates import certify
from sb3_prune_robust.certificates.divergences import gaussian_tv
from sb3_prune_robust.certificates.observations import read_network
from sb3_prune_robust.evaluation.audit import versions
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.evaluation.rollouts import rollout
from sb3_prune_robust.pruning import sparsity

ENV, N_STATES, RADII = "Hopper-v5", 512, (0.01, 0.05, 0.1)
RESULTS = Path(__file__).parent / "results" / "tightness.json"


@dataclass(frozen=True)
class Pruned80(Job):
    """The recipe of "both" with a final sparsity of 80 %."""

    def model(self, folder: Path) -> Path:
        return folder / self.env / f"both80_{self.seed}.zip"


def agent(job: Job, folder: Path) -> Path:
    """The agent's file, trained first where it is missing."""
    if not job.is_there(folder):
        recipe = RECIPES[ENV]
        if isinstance(job, Pruned80):
            RECIPES[ENV] = {**recipe, "pruning": {"final_sparsity": 0.8}}
        with tqdm(unit="step", unit_scale=True, desc=f"training {job.model(folder).stem}") as bar:
            train(job, folder, bar.update)
        RECIPES[ENV] = recipe
    return job.model(folder)


def measure(job: Job, folder: Path) -> dict[str, Any]:
    """Certified and attacked total variation of one agent at each radius."""
    policy = PPO.load(agent(job, folder), device="cpu").policy
    episodes = rollout(policy, make_env(ENV, 8, job.normalizer(folder)), 8, record=True)
    states = np.concatenate(episodes.observations)
    states = states[np.linspace(0, len(states) - 1, N_STATES).astype(int)]
    network, rows = read_network(policy), {}
    for eps in RADII:
        perturbed = PGD(eps, seed=0, objective="mad", steps=50, restarts=10)(policy, states)
        change = network(perturbed.astype(np.float64)) - network(states.astype(np.float64))
        attacked = float(gaussian_tv(np.linalg.norm(change / network.std, axis=1)).mean())
        certified = {m: float(certify(policy, states, eps, method=m).tv.mean()) for m in ("crown", "alpha")}
        rows[str(eps)] = {"attacked": attacked, **certified, **{f"{m}/attacked": c / attacked for m, c in certified.items()}}
    return {"sparsity": sparsity(policy)["actor"], "clean": float(episodes.returns.mean()), "eps": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=Path, default=MODELS, metavar="DIR", help="folder of the agents (default: %(default)s)"
    )
    folder = parser.parse_args().models
    th.set_num_threads(1)
    jobs: list[Job] = [Job(ENV, policy, 0) for policy in ("plain", "lipschitz", "both")] + [Pruned80(ENV, "both", 0)]
    record: dict[str, Any] = {"env": ENV, "n_states": N_STATES, "versions": versions(), "agents": {}}
    for job in jobs:
        name = job.model(folder).stem
        record["agents"][name] = found = measure(job, folder)
        for eps, row in found["eps"].items():
            ratios = f"crown {row['crown/attacked']:.3f}, alpha {row['alpha/attacked']:.3f}"
            print(f"{name:14s} {found['sparsity']:.0%} pruned, eps {eps}: attacked {row['attacked']:.4f}; over it {ratios}")
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
