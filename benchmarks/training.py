"""
Training speed with our policy and callback, as a ratio to plain ``MlpPolicy``: interleaved, medians, one thread.

    python benchmarks/training.py

Each variant trains PPO on Hopper-v5 (n_envs=8, n_steps=256, batch_size=256) in turn with the plain policy; a rollout and its
update are timed together, in CPU time: that of one thread on a quiet machine, whatever else runs on this one.
``lipschitz=0.1`` is a bound that is at work at every step. Writes ``benchmarks/results/training.json``.
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
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_prune_robust.policies import LipschitzGaussianPolicy
from sb3_prune_robust.pruning import PruningCallback

RESULTS = Path(__file__).parent / "results" / "training.json"
ROLLOUT = 8 * 256


class Timer(BaseCallback):
    """Seconds from one rollout's start to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[float] = []

    def _on_rollout_start(self) -> None:
        self.starts.append(time.process_time())

    def _on_step(self) -> bool:
        return True


def seconds_per_iteration(width: int, lipschitz: float | str, n_iterations: int, schedule: str) -> list[float]:
    kwargs: dict[str, Any] = dict(net_arch=[width, width])
    policy: Any = "MlpPolicy"
    timer = Timer()
    callbacks: list[BaseCallback] = [timer]
    if lipschitz != "mlp":
        policy, kwargs = LipschitzGaussianPolicy, kwargs | dict(lipschitz=lipschitz)
        callbacks.append(PruningCallback(0.8, schedule=schedule, targets=("actor", "critic")))
    venv = make_vec_env("Hopper-v5", n_envs=8, seed=0)
    model = PPO(policy, venv, n_steps=256, batch_size=256, seed=0, device="cpu", policy_kwargs=kwargs)
    model.learn(n_iterations * ROLLOUT, callback=callbacks)
    return list(np.diff(timer.starts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=5)
    args = parser.parse_args()
    th.set_num_threads(1)
    results = {}
    for width, target in ((64, 0.95), (256, 0.92)):
        variants = [("mlp", "-"), (20.0, "polynomial"), (0.1, "polynomial"), (0.1, "micro")]
        times: dict[Any, list[float]] = {variant: [] for variant in variants}
        for _ in range(args.rounds):
            for variant in variants:
                times[variant] += seconds_per_iteration(width, variant[0], args.iterations, variant[1])
        plain = float(np.median(times[variants[0]]))
        for variant in variants:
            ratio = plain / float(np.median(times[variant]))
            name = f"{width}x{width} " + ("MlpPolicy" if variant[0] == "mlp" else f"lipschitz={variant[0]:g} {variant[1]}")
            results[name] = dict(steps_per_second=ROLLOUT / float(np.median(times[variant])), ratio=ratio, target=target)
            print(f"{name:36s} {results[name]['steps_per_second']:8.0f} steps/s  ratio {ratio:.3f}  (target {target})")
    RESULTS.parent.mkdir(exist_ok=True)
    versions = dict(torch=th.__version__, stable_baselines3=stable_baselines3.__version__, numpy=np.__version__)
    RESULTS.write_text(json.dumps(dict(command="python benchmarks/training.py", versions=versions, results=results), indent=1))


if __name__ == "__main__":
    main()
