"""
What the theorem itself says, on the study's dense agents: the bounds of a network with some of its weights set to zero.

    python benchmarks/study_one_network.py       # after the study's runs; from half a minute for each agent

The study compares agents that were pruned while they learned with dense ones that learned as long, which are other networks.
Here each dense agent is its own pair: pruned once, by magnitude and at random (other weights for each agent), not trained on,
and certified at the states that it visited while dense. Writes ``docs/study/one_network.csv``, a line for each agent, score
and sparsity with its return (``clean``: deterministic, ``sampled``) and bounds on total variation, and prints how often each
bound rose. It needs ``docs/study/results/agents``, which the run leaves there; what is in the file already is left alone, and
so are agents that are not there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch as th
from tqdm import tqdm

from sb3_prune_robust.certificates import certify
from sb3_prune_robust.evaluation.rollouts import rollout
from sb3_prune_robust.evaluation.tables import table
from sb3_prune_robust.pruning import RandomScore, prune_policy
from sb3_prune_robust.study.claims import ROUNDING
from sb3_prune_robust.study.config import Study, read_study
from sb3_prune_robust.study.measure import N_ENVS, SEED
from sb3_prune_robust.study.store import StudyStore, Task, make_task
from sb3_prune_robust.study.training import FINAL, train

STUDY = Path(__file__).parents[1] / "docs" / "study"
RESULTS = STUDY / "one_network.csv"
SCORES, SPARSITIES = ("magnitude", "random"), (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
METHODS = ("abs", "spectral", "lipsdp", "interval", "crown", "best")
RETURNS = {"clean": True, "sampled": False}  # whether the agent plays its mode
N_EPISODES = 30


def agents(study: Study, store: StudyStore) -> Iterator[Task]:
    """The dense PPO agents that are there."""
    for cell in study.cells:
        task = make_task(study, cell, "short")
        dense = (cell.algorithm, cell.policy, cell.sparsity) == ("ppo", "plain", 0)
        if dense and (store.agent(task) / FINAL).is_dir():
            yield task


def certified(study: Study, store: StudyStore, task: Task) -> list[dict[str, Any]]:
    """Clean return and mean total variation by every method, at the first eps: of an agent and of what pruning makes of it."""
    env, seed = task.cell.env, task.cell.seed
    trained = train(study.key(task.cell), store.agent(task), N_ENVS)
    played = rollout(trained.model, trained.venv, N_EPISODES, deterministic=False, seed=SEED, record=True)
    states = np.concatenate(played.observations)
    states = states[np.linspace(0, len(states) - 1, study.evaluation.n_states).astype(int)]
    lines = []
    for scores, sparsity in [("none", 0.0), *((one, level) for one in SCORES for level in SPARSITIES)]:
        policy = copy.deepcopy(trained.model.policy)
        if sparsity:
            prune_policy(policy, sparsity, RandomScore(seed) if scores == "random" else scores)
        found = certify(policy, states, study.environments[env].eps[0])
        tv = {name: float(one.tv.mean()) for name, one in {**found.by_method, "best": found}.items()}
        returns = {
            name: rollout(policy, trained.venv, N_EPISODES, deterministic=mode, seed=SEED).returns.mean()
            for name, mode in RETURNS.items()
        }
        lines.append({"env": env, "seed": seed, "scores": scores, "sparsity": sparsity, **returns, **tv})
    trained.venv.close()
    return lines


def risen(frame: pd.DataFrame) -> list[list[object]]:
    """By environment and score, how often each bound is higher than the same network's before it was pruned."""
    dense = frame[frame["sparsity"] == 0].set_index(["env", "seed"])
    lines: list[list[object]] = []
    for (env, scores), one in frame[frame["sparsity"] > 0].groupby(["env", "scores"], sort=False):
        before = dense.loc[list(zip(one["env"], one["seed"], strict=True))]
        higher = [(one[name].to_numpy() > before[name].to_numpy() + ROUNDING).sum() for name in METHODS]
        lines.append([env, scores, len(one), *higher])
    return lines


def run() -> None:
    """Measure what is missing, and print the table."""
    th.set_num_threads(1)
    study, store = read_study(STUDY / "main.yml"), StudyStore(STUDY / "results")
    frame = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame({"env": [], "seed": []})
    known = set(zip(frame["env"], frame["seed"], strict=True))
    for task in tqdm([one for one in agents(study, store) if (one.cell.env, one.cell.seed) not in known]):
        frame = pd.concat([frame, pd.DataFrame(certified(study, store, task))], ignore_index=True)
        frame.to_csv(RESULTS, index=False, float_format="%.10g")
    if frame.empty:
        raise SystemExit(f"no dense agent of the study is in {store.folder / 'agents'}")
    print(table(["environment", "scores", "pruned networks", *(f"{name}: higher" for name in METHODS)], risen(frame)))


if __name__ == "__main__":
    run()
