"""
What pruning is worth at run-time: a dense actor, the pruned one as it is (zeros alone), and the pruned one shrunk.

    python benchmarks/deployment.py

PPO agents of Hopper-v5 with hidden layers 64x64 and 256x256, trained here for 100,000 steps (and kept in ``benchmarks/models``
so that a second run only measures): dense, and with 90 % of each hidden layer of the actor pruned between 20 % and 80 % of
training, once weight by weight (``scores="magnitude"``) and once unit by unit (``scores="unit"``). Both are layer-wise
(``distribution="uniform"``). Times are CPU time of one thread for 1024 observations, medians of interleaved rounds: numpy
against numpy, SB3's ``predict`` against ``predict``, onnxruntime against onnxruntime. Writes
``benchmarks/results/deployment.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy loads its BLAS

import numpy as np
import onnxruntime
import stable_baselines3
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_prune_robust import PruningCallback, sparsity
from sb3_prune_robust.deployment import export_onnx, shrink
from sb3_prune_robust.network import Array, action_network
from sb3_prune_robust.pruning import MagnitudeScore, Score, UnitScore

HERE = Path(__file__).resolve().parent
MODELS, RESULTS = HERE / "models" / "deployment", HERE / "results" / "deployment.json"
ENV, N_STEPS, SPARSITY, BATCH = "Hopper-v5", 100_000, 0.9, 1024
TARGET = 5.0


SCORES: dict[str, Score | None] = {"dense": None, "magnitude": MagnitudeScore(), "unit magnitude": UnitScore()}


def agent(width: int, scores: str) -> tuple[Any, Any]:
    """The agent, trained unless it is at hand, and environments with its frozen observation statistics."""
    path = MODELS / f"{ENV}-{width}-{scores.replace(' ', '-')}"
    venv = make_vec_env(ENV, n_envs=8, seed=0)
    if not path.with_suffix(".zip").exists():
        print(f"training {path.name}", flush=True)
        normalized = VecNormalize(venv, gamma=0.99)
        kwargs = dict(net_arch=[width, width])
        model = PPO("MlpPolicy", normalized, n_steps=256, batch_size=256, seed=0, device="cpu", policy_kwargs=kwargs)
        score = SCORES[scores]
        model.learn(N_STEPS, callback=score and PruningCallback(SPARSITY, scores=score, distribution="uniform"))
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
        normalized.save(str(path.with_suffix(".pkl")))
    normalized = VecNormalize.load(str(path.with_suffix(".pkl")), venv)
    normalized.training = normalized.norm_reward = False
    return PPO.load(path, device="cpu"), normalized


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> dict[str, float]:
    """Medians of CPU seconds a call, all functions in turn; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            for _ in range(repeats):
                function()
            times[name].append((time.process_time() - start) / repeats)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def run_times(model: Any, observations: Array, folder: Path, name: str) -> dict[str, Callable[[], Any]]:
    """Three ways to compute the actions of a model."""
    network = action_network(model.policy)
    path = export_onnx(model, folder / f"{name}.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    inputs = observations.astype(model.observation_space.dtype)
    return {
        "numpy": lambda: network(observations),
        "predict": lambda: model.predict(observations, deterministic=True),
        "onnxruntime": lambda: session.run(None, {"observation": inputs}),
    }


def measure(width: int, scores: str, rounds: int, repeats: int) -> dict[str, Any]:
    (dense, dense_env), (pruned, pruned_env) = agent(width, "dense"), agent(width, scores)
    small = shrink(pruned)
    observations = np.random.default_rng(0).normal(size=(BATCH, 11)).astype(np.float32)
    networks = {"dense": dense, "zeros": pruned, "shrunk": small}
    with tempfile.TemporaryDirectory() as folder:
        ways = {name: run_times(model, observations, Path(folder), name) for name, model in networks.items()}
        timed = {way: interleaved({name: ways[name][way] for name in networks}, rounds, repeats) for way in ways["dense"]}
    difference = action_network(pruned.policy)(observations) - action_network(small.policy)(observations)
    return {
        "hidden": [width, width],
        "shrunk_hidden": small.policy.net_arch["pi"],
        "sparsity": sparsity(pruned)["actor"],
        "largest_difference_of_means": float(np.abs(difference).max()),
        "return": {
            name: returns(model, env) for name, model, env in (("dense", dense, dense_env), ("pruned", pruned, pruned_env))
        },
        "milliseconds": {way: {name: 1e3 * value for name, value in row.items()} for way, row in timed.items()},
        "speedup": {way: {name: row["dense"] / row[name] for name in ("zeros", "shrunk")} for way, row in timed.items()},
    }


def returns(model: Any, venv: Any) -> dict[str, float]:
    venv.seed(1000)
    mean, std = evaluate_policy(model, venv, n_eval_episodes=20, deterministic=True)
    return {"mean": float(mean), "std": float(std), "episodes": 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31, help="rounds of each measurement")
    parser.add_argument("--repeats", type=int, default=20, help="calls in a round")
    args = parser.parse_args()
    th.set_num_threads(1)
    results = {}
    for width in (64, 256):
        for scores in ("magnitude", "unit magnitude"):
            row = results[f"{width}x{width}, {scores}"] = measure(width, scores, args.rounds, args.repeats)
            print(f"{width}x{width}, {scores}: sparsity {row['sparsity']:.1%}, units left {row['shrunk_hidden']}")
            print(f"  return {row['return']['dense']['mean']:.0f} dense, {row['return']['pruned']['mean']:.0f} pruned")
            for way, ratios in row["speedup"].items():
                verdict = "reached" if ratios["shrunk"] >= TARGET else "MISSED"
                figures = f"zeros {ratios['zeros']:5.2f}x  shrunk {ratios['shrunk']:5.2f}x"
                print(f"  {way:12s} {figures}  (target {TARGET:g}: {verdict})")
    modules = {m.__name__: m.__version__ for m in (np, th, stable_baselines3, onnxruntime)}
    record = {
        "command": "python benchmarks/deployment.py",
        "env": ENV,
        "timesteps": N_STEPS,
        "batch": BATCH,
        "load_average": os.getloadavg(),  # above the number of cores: run it again on a quieter machine
        "versions": modules | {"python": platform.python_version()},
        "results": results,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
