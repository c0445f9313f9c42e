"""How long a study takes, guessed from a few seconds of each kind of cell before the first one is finished."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sb3_prune_robust.attacks.registry import expand, is_fitted_attack
from sb3_prune_robust.evaluation.rollouts import rollout
from sb3_prune_robust.study.config import Attacks, Study
from sb3_prune_robust.study.measure import N_ENVS, SEED
from sb3_prune_robust.study.plan import Estimate
from sb3_prune_robust.study.store import StudyStore, Task
from sb3_prune_robust.study.training import FINAL, make_entry, train

_PROBE_STEPS, _PROBE_EPISODE = 4_000, 200


def estimated(study: Study, store: StudyStore, missing: Sequence[Task], known: Estimate) -> tuple[float, int]:
    """
    CPU seconds for tasks: from finished ones like them, else from a probe.

    :param study: the study
    :param store: its files
    :param missing: the tasks
    :param known: what finished tasks took
    :return: the seconds, and how many kinds of cells were probed
    """
    probed: dict[tuple[Any, ...], float] = {}
    total = 0.0
    for task in missing:
        seconds = known.seconds(task, alike=True)
        if seconds is None:
            trained = task.stage == "strong" or (store.agent(task) / FINAL).exists()
            kind = (task.cell.env, task.cell.algorithm, task.cell.policy, task.stage, trained)
            if kind not in probed:
                probed[kind] = _probe(study, task, trained)
            seconds = probed[kind]
        total += seconds
    return total, len(probed)


def _probe(study: Study, task: Task, is_trained: bool) -> float:
    """A short training, a few steps of play, and arithmetic: within a factor of two, no better."""
    key: Mapping[str, Any] = study.key(task.cell)
    steps = int(make_entry(key)["n_timesteps"])
    short = {**key, "algorithm": {**key["algorithm"], "n_timesteps": min(steps, _PROBE_STEPS)}}
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        trained = train(short, Path(folder), N_ENVS)
        per_step = (time.process_time() - started) / trained.about["timesteps"]
        started = time.process_time()
        played = rollout(trained.model, trained.venv, N_ENVS, seed=SEED, max_steps=_PROBE_EPISODE)
        per_played = (time.process_time() - started) / played.lengths.sum()
        trained.venv.close()
    attacks = study.evaluation if task.stage == "short" else study.strong
    assert attacks is not None
    n_eps, longest = len(study.environments[task.cell.env].eps), _longest(trained.venv)
    played_steps = longest * (attacks.n_episodes * (2 + n_eps * len(expand(attacks.attacks))) + study.evaluation.n_certified)
    return (0 if is_trained else steps * per_step) + played_steps * per_played + n_eps * _learning(attacks, per_played)


def _longest(venv: Any) -> float:
    spec = venv.get_attr("spec")[0]
    return float(spec.max_episode_steps or 1000)


def _learning(attacks: Attacks, per_step: float) -> float:
    """Seconds of the attacks that learn: their budgets."""
    n = sum(is_fitted_attack(name) for name in expand(attacks.attacks))
    limits = [
        attacks.attack_seconds,
        None if attacks.attack_steps is None else 2 * attacks.attack_steps * per_step,  # learning costs as much as playing
    ]
    return n * min((one for one in limits if one is not None), default=120.0)
