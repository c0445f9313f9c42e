"""
What robust training costs: time per step as a ratio to PPO's, interleaved, medians, one thread.

    python benchmarks/robust_training.py

On Hopper-v5 with networks of 64x64, once with SB3's default arguments of PPO, once with eight environments and batches of 256.
A rollout and its update are timed together, in CPU time: that of one thread on a quiet machine, whatever else runs on this
one. ATLA's time is per step of the agent: its adversary makes as many steps again. Writes
``benchmarks/results/robust_training.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_prune_robust.defences import ALGORITHMS

RESULTS = Path(__file__).parent / "results" / "robust_training.json"
SETUPS: dict[str, tuple[int, dict[str, Any]]] = {
    "SB3's defaults": (1, dict(n_steps=2048, batch_size=64)),
    "8 environments": (8, dict(n_steps=256, batch_size=256)),
}
#: by name: algorithm, arguments, and the ratio to reach, where one was set
VARIANTS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "PPO": ("ppo", {}, None),
    "SA-PPO, convex": ("sappo", dict(inner="convex"), 1.6),
    "SA-PPO, PGD": ("sappo", dict(inner="pgd"), 2.5),
    "SA-PPO, SGLD": ("sappo", dict(inner="sgld"), None),
    "certified": ("certified_ppo", {}, None),
    "RADIAL-PPO": ("radial_ppo", {}, None),
    "WocaR-PPO": ("wocar_ppo", {}, None),
    "ATLA-PPO": ("atla_ppo", {}, None),
    "PA-ATLA-PPO": ("pa_atla_ppo", {}, None),
}


def make(name: str, n_envs: int, settings: dict[str, Any]) -> Any:
    algorithm, arguments, _ = VARIANTS[name]
    own = {} if algorithm == "ppo" else dict(eps=0.075, **arguments)
    venv = make_vec_env("Hopper-v5", n_envs=n_envs, seed=0)
    return {"ppo": PPO, **ALGORITHMS}[algorithm]("MlpPolicy", venv, seed=0, device="cpu", **settings, **own)


def measure(setup: str, rounds: int) -> dict[str, list[float]]:
    """CPU seconds per step of the agent, of each round."""
    n_envs, settings = SETUPS[setup]
    models = {name: make(name, n_envs, settings) for name in VARIANTS}
    n = n_envs * settings["n_steps"]
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for i in range(rounds + 1):
        for name, model in models.items():
            began = time.process_time()
            model.learn(4 * n)  # up and over the ramp of eps: below its end both kinds of bounds are computed
            if i:  # the first warms up
                times[name].append((time.process_time() - began) / (4 * n))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    th.set_num_threads(1)
    results: dict[str, Any] = {}
    for setup in SETUPS:
        times = measure(setup, args.rounds)
        plain = float(np.median(times["PPO"]))
        for name, seconds in times.items():
            ratio, target = float(np.median(seconds)) / plain, VARIANTS[name][2]
            results[f"{setup}: {name}"] = dict(microseconds_per_step=1e6 * ratio * plain, ratio=ratio, at_most=target)
            print(
                f"{setup:16s} {name:16s} {1e6 * ratio * plain:6.0f} us/step  ratio {ratio:.2f}  (at most {target})", flush=True
            )
    versions = dict(torch=th.__version__, stable_baselines3=stable_baselines3.__version__, numpy=np.__version__)
    RESULTS.write_text(
        json.dumps(dict(command="python benchmarks/robust_training.py", versions=versions, results=results), indent=1)
    )


if __name__ == "__main__":
    main()
