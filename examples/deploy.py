"""
From a pruned agent to what runs it: train, shrink, save a plain SB3 file, export to ONNX.

    pip install '.[deploy]'
    python examples/deploy.py [timesteps]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch as th
from stable_baselines3 import PPO

from sb3_prune_robust import LipschitzCategoricalPolicy, PruningCallback, sparsity
from sb3_prune_robust.deployment import card_section, export_onnx, shrink


def main(timesteps: int = 8_000) -> None:
    th.set_num_threads(1)
    kwargs = dict(net_arch=[64, 64], lipschitz=10.0)
    model = PPO(LipschitzCategoricalPolicy, "CartPole-v1", n_steps=512, seed=0, device="cpu", policy_kwargs=kwargs)
    model.learn(timesteps, callback=PruningCallback(0.9, distribution="uniform"))
    small = shrink(model)
    print(f"{sparsity(model)['actor']:.0%} zeros; the actor's hidden layers: 64, 64 -> {small.policy.net_arch['pi']}")

    states = np.random.default_rng(0).uniform(-0.2, 0.2, size=(1000, 4)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        small.save(Path(folder) / "small")  # loads wherever Stable-Baselines3 is
        plain = PPO.load(Path(folder) / "small", device="cpu")
        session = onnxruntime.InferenceSession(export_onnx(small, Path(folder) / "policy.onnx"))  # runs without Python, too
    wanted = model.predict(states, deterministic=True)[0]
    (exported,) = session.run(None, {"observation": states})
    print(type(plain.policy).__name__, "and the ONNX file choose the same actions as the agent trained:", end=" ")
    print(np.array_equal(plain.predict(states, deterministic=True)[0], wanted), np.array_equal(exported, wanted))
    print(card_section(model=model))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
