"""
Speed of ``certify`` and agreement of the interval bounds with an independent tool. Not a test: run it by hand.

    python benchmarks/bounds.py

Writes ``benchmarks/results/bounds.json``. The reference, ``../shared/victims/reference_bounds.npz``, holds auto_LiRPA's bounds
on published agents (``<net>/l<norm>/eps<e>/IBP/<lower|upper>``); without it that part is skipped, and said so.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy loads its BLAS

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_prune_robust.bounds import METHODS, Ball, output_interval
from sb3_prune_robust.certificates import certify
from sb3_prune_robust.network import RELU, TANH, Network

HERE = Path(__file__).resolve().parent
VICTIMS = HERE.parent.parent / "shared" / "victims"
N_STATES, N_INPUTS, REPEATS = 1024, 11, 15


def hopper_sized_policy() -> ActorCriticPolicy:
    th.manual_seed(0)
    box = spaces.Box(-np.inf, np.inf, (N_INPUTS,), dtype=np.float32)
    return ActorCriticPolicy(box, spaces.Box(-1.0, 1.0, (3,)), lambda _: 1e-3, activation_fn=th.nn.Tanh, ortho_init=False)


def speeds() -> dict[str, dict[str, float]]:
    """States a second of each method, the rounds of the methods interleaved."""
    policy = hopper_sized_policy()
    observations = np.random.default_rng(0).normal(size=(N_STATES, N_INPUTS)).astype(np.float32)
    times: dict[str, list[float]] = {method: [] for method in (*METHODS, "best")}
    for _ in range(REPEATS):
        for method, seconds in times.items():
            start = time.perf_counter()
            certify(policy, observations, eps=0.05, method=method)
            seconds.append(time.perf_counter() - start)
    medians = {method: statistics.median(seconds) for method, seconds in times.items()}
    return {method: {"milliseconds": 1e3 * m, "states_per_second": N_STATES / m} for method, m in medians.items()}


def read_network(name: str, reference: Any) -> Network:
    source = reference if name == "relu" else np.load(VICTIMS / f"{name}.npz")
    prefix = "relu/" if name == "relu" else ""
    weights = tuple(source[f"{prefix}W{i}"].astype(np.float64) for i in range(3))
    biases = tuple(source[f"{prefix}b{i}"].astype(np.float64) for i in range(3))
    return Network(weights, biases, ((RELU if name == "relu" else TANH),) * 2)


def reference_differences() -> dict[str, dict[str, float]] | None:
    """Largest absolute difference from the reference's interval bounds, and how often ours are inside them by more."""
    path = VICTIMS / "reference_bounds.npz"
    if not path.exists():
        print(f"skipped: no reference bounds at {path}")
        return None
    reference = np.load(path)
    result = {}
    for key in (key for key in reference if key.endswith("/IBP/lower")):
        name, norm, eps = key.split("/")[:3]
        network, states = read_network(name, reference), reference[f"{name}/states"].astype(np.float64)
        lower, upper = output_interval(network, states, Ball.create(float(eps[3:]), norm, (states.shape[1],)))
        theirs = reference[key], reference[key.replace("lower", "upper")]
        worst = max(np.abs(lower - theirs[0]).max(), np.abs(upper - theirs[1]).max())
        width = float((theirs[1] - theirs[0]).mean())
        result[f"{name}/{norm}/{eps}"] = {"largest_difference": float(worst), "mean_width": width}
    return result


def main() -> None:
    th.set_num_threads(1)
    record = {"n_states": N_STATES, "n_inputs": N_INPUTS, "hidden": [64, 64], "eps": 0.05, "speeds": speeds()}
    for method, row in record["speeds"].items():
        print(f"{method:9s} {row['milliseconds']:7.2f} ms   {row['states_per_second']:12,.0f} states/s")
    record["reference"] = reference_differences()
    for key, row in (record["reference"] or {}).items():
        verdict = "ok" if row["largest_difference"] <= 1e-5 else "DIFFERS"
        print(f"{key:32s} largest difference {row['largest_difference']:.2e} (mean width {row['mean_width']:.3g})  {verdict}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "bounds.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
