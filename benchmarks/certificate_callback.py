"""
What ``CertificateCallback`` takes of a training's time: PPO on Hopper-v5 with and without it, CPU time, trainings interleaved.

    python benchmarks/certificate_callback.py

With its default intervals, and a certified return from 20 episodes every 100,000 steps; it keeps to 2 % by putting off what
would take more. The trainings end with the same weights: certificates change nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_prune_robust.evaluation import CertificateCallback
from sb3_prune_robust.evaluation.audit import versions
from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.policies import LipschitzGaussianPolicy

ENV, ROUNDS = "Hopper-v5", 3
RESULTS = Path(__file__).parent / "results" / "certificate_callback.json"


class Counting(CertificateCallback):
    """Counts what is logged, and its CPU time."""

    n_tv = n_return = 0
    cpu_seconds = 0.0

    def _log_tv(self) -> None:
        began = time.process_time()
        super()._log_tv()
        self.n_tv, self.cpu_seconds = self.n_tv + 1, self.cpu_seconds + time.process_time() - began

    def _log_return(self) -> None:
        began = time.process_time()
        super()._log_return()
        self.n_return, self.cpu_seconds = self.n_return + 1, self.cpu_seconds + time.process_time() - began


def train(steps: int, callback: CertificateCallback | None) -> tuple[float, PPO]:
    venv = VecNormalize(make_vec_env(ENV, n_envs=8, seed=0))
    model = PPO(LipschitzGaussianPolicy, venv, n_steps=256, batch_size=256, seed=0, device="cpu")
    began = time.process_time()
    model.learn(steps, callback=callback)
    return time.process_time() - began, model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=200_000, metavar="N", help="of each training (default: %(default)s)")
    steps = parser.parse_args().timesteps
    th.set_num_threads(1)
    without, with_it, inside = [], [], []
    for _ in range(ROUNDS):
        env = VecNormalize(make_env(ENV, 8), training=False, norm_reward=False)
        callback = Counting(0.001, eval_env=env, clip_rewards=(0.0, 5.0))
        plain, certified = train(steps, None), train(steps, callback)
        assert all(th.equal(a, b) for a, b in zip(plain[1].policy.parameters(), certified[1].policy.parameters(), strict=True))
        without.append(plain[0])
        with_it.append(certified[0])
        inside.append(callback.cpu_seconds)
        print(f"without {plain[0]:.1f} s, with {certified[0]:.1f} s, in the callback {callback.cpu_seconds:.2f} s, "
              f"{callback.n_tv} certificates of the total variation, {callback.n_return} returns")  # fmt: skip
    record: dict[str, Any] = {
        "env": ENV,
        "timesteps": steps,
        "seconds_without": without,
        "seconds_with": with_it,
        "share_inside": statistics.median(b / a for a, b in zip(with_it, inside, strict=True)),
        "ratio": statistics.median(with_it) / statistics.median(without),
        "n_tv": callback.n_tv,
        "n_return": callback.n_return,
        "versions": versions(),
    }
    print(f"share of the time in the callback {record['share_inside']:.2%}; with / without {record['ratio']:.3f}")
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
