"""What benchmarks/study_one_network.py counts, and whom it measures."""

import importlib.util
from pathlib import Path

import pandas as pd
from small import changed

from sb3_prune_robust.study.config import make_study
from sb3_prune_robust.study.store import StudyStore, make_task

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "study_one_network.py"
_spec = importlib.util.spec_from_file_location("study_one_network", _SCRIPT)
one_network = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(one_network)


def line(env, seed, scores, sparsity, **bounds):
    return {
        "env": env,
        "seed": seed,
        "scores": scores,
        "sparsity": sparsity,
        **dict.fromkeys(one_network.METHODS, 0.5),
        **bounds,
    }


def test_each_pruned_network_is_compared_with_itself_before():
    frame = pd.DataFrame([
        line("A", 0, "none", 0.0, crown=0.2), line("A", 1, "none", 0.0, crown=0.9),
        line("A", 0, "magnitude", 0.5, crown=0.3), line("A", 1, "magnitude", 0.5, crown=0.8),  # higher, lower than its own
        line("A", 1, "random", 0.5, crown=0.9 + 1e-12, abs=0.6),  # rounding is no rise
    ])  # fmt: skip
    assert one_network.risen(frame) == [["A", "magnitude", 2, 0, 0, 0, 0, 1, 0], ["A", "random", 1, 1, 0, 0, 0, 0, 0]]


def test_dense_plain_agents_of_ppo_that_are_trained_are_measured(tmp_path):
    grid = [{"policies": ["plain", "lipschitz"], "sparsities": [0, 0.5], "seeds": [0, 1]}]
    study, store = (
        make_study(changed(policies={"plain": {}, "lipschitz": {"lipschitz": 4.0}}, grid=grid)),
        StudyStore(tmp_path),
    )
    for cell in study.cells:
        if cell.seed == 0:
            (store.agent(make_task(study, cell, "short")) / "final").mkdir(parents=True)
    found = [task.cell for task in one_network.agents(study, store)]
    assert [(cell.policy, cell.sparsity, cell.seed) for cell in found] == [("plain", 0, 0)]
