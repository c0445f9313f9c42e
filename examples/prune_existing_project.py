"""
The callback in a project that knows nothing of this package: A2C with SB3's own policy, and a bound logged at every prune.

    python examples/prune_existing_project.py [timesteps]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3 import A2C

from sb3_prune_robust import PruningCallback, certify, sparsity


def main(timesteps: int = 20_000) -> None:
    th.set_num_threads(1)
    states = np.random.default_rng(0).uniform(-0.05, 0.05, size=(64, 4)).astype(np.float32)
    callback = PruningCallback(
        final_sparsity={"actor": 0.8, "critic": 0.4},
        targets=("actor", "critic"),
        schedule="periodic",
        probe=lambda policy: float(certify(policy, states, eps=0.05, method="abs").tv.mean()),
    )
    model = A2C("MlpPolicy", "CartPole-v1", seed=0).learn(timesteps, callback=callback)
    for event in callback.events:
        print(f"step {event.timestep:6d}  sparsity {event.sparsity:.3f}  certified TV {event.before:.3f} -> {event.after:.3f}")
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "pruned")  # a plain SB3 file
        print(sparsity(A2C.load(Path(folder) / "pruned")))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
