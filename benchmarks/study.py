"""
Two workers of a study against one, side by side: the same cells, the time from start to end.

    python benchmarks/study.py      # 6 minutes; on a machine with two processors that are free

Writes ``benchmarks/results/study.json``: seconds of wall time of one worker and of two, and the ratio.
Twenty cells, so that neither the start of the workers nor the last cell, for which one of them waits, counts much.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

from sb3_prune_robust.study.config import make_study
from sb3_prune_robust.study.runner import Local, run_stages
from sb3_prune_robust.study.store import StudyStore

RESULTS = Path(__file__).parent / "results" / "study.json"
ENTRY = {"n_envs": 8, "n_timesteps": 12_000, "n_steps": 32, "batch_size": 256, "n_epochs": 10}
STUDY = {
    "name": "timing",
    "environments": {"CartPole-v1": {"entry": ENTRY, "eps": 0.1}},
    "grid": [{"sparsities": [0, 0.5, 0.7, 0.9], "seeds": list(range(5))}],
    "evaluation": {"attacks": ["random", "mad", "robust-sarsa"], "attack_steps": 20_000, "n_episodes": 20},
}


def seconds(workers: int) -> float:
    """Wall time of the study, from nothing."""
    study = make_study(STUDY)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        state = run_stages(study, StudyStore(folder), Local(workers))
        assert not state.missing
        return time.perf_counter() - started


def main() -> None:
    two, one = seconds(2), seconds(1)
    print(f"one worker: {one:.1f} s, two: {two:.1f} s: {one / two:.2f} times as fast (goal: 1.9)")
    record = {
        "one": round(one, 1),
        "two": round(two, 1),
        "ratio": round(one / two, 3),
        "goal": 1.9,
        "processors": os.cpu_count(),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
