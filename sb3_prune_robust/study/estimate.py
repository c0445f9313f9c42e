"""How long a study takes, guessed from a few seconds of each kind of cell before the first one is finished."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sb3_prune_robust.attacks.registry import expand, is_fitted_attack, make_attack
from sb3_prune_robust.evaluation.rollouts import NoAttackError, rollout
from sb3_prune_robust.study.config import Attacks, Study
from sb3_prune_robust.study.measure import N_ENVS, SEED
from sb3_prune_robust.study.plan import Estimate
from sb3_prune_robust.study.store import StudyStore, Task
from sb3_prune_robust.study.training import FINAL, Trained, make_entry, train

_PROBE_STEPS, _PROBE_EPISODE = 4_000, 200
_PROBE_STARTS = 100  # learning_starts of an off-policy algorithm: most steps of the probe must learn, as most of a training do
_PROBE_ATTACKED, _PROBE_EPS = 30, 0.05


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
    """A short training, a few steps of play, clean and attacked, and arithmetic: within a factor of two, no better."""
    key: Mapping[str, Any] = study.key(task.cell)
    entry = make_entry(key)
    attacks = study.evaluation if task.stage == "short" else study.strong
    assert attacks is not None
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        trained = train({**key, "algorithm": {**key["algorithm"], **_shortened(entry)}}, Path(folder), N_ENVS)
        learning = int(entry["n_timesteps"]) - int(entry.get("learning_starts", 0))  # the steps before cost next to nothing
        training = (time.process_time() - started) / trained.about["timesteps"] * max(0, learning)
        clean = _clean(trained)
        attacked = _attacked(trained, expand(attacks.attacks), study.evaluation.norm, clean)
        trained.venv.close()
    n_eps = len(study.environments[task.cell.env].eps)
    played = attacks.n_episodes * (2 * clean + n_eps * sum(attacked.values())) + study.evaluation.n_certified * clean
    return (0 if is_trained else training) + _longest(trained.venv) * played + n_eps * _learning(attacks, attacked)


def _shortened(entry: Mapping[str, Any]) -> dict[str, Any]:
    short = {"n_timesteps": min(int(entry["n_timesteps"]), _PROBE_STEPS)}
    return short | ({"learning_starts": _PROBE_STARTS} if "learning_starts" in entry else {})


def _clean(trained: Trained) -> float:
    """Seconds of a step of clean play."""
    started = time.process_time()
    played = rollout(trained.model, trained.venv, N_ENVS, deterministic=True, seed=SEED, max_steps=_PROBE_EPISODE)
    return (time.process_time() - started) / int(played.lengths.sum())


def _attacked(trained: Trained, attacks: Sequence[str], norm: str, clean: float) -> dict[str, float]:
    """Seconds of a step under each attack; one that learns counts as the dearest of the others."""
    tried = {name: _under(trained, name, norm) for name in attacks if not is_fitted_attack(name)}
    return dict.fromkeys(attacks, max([clean, *tried.values()])) | tried


def _under(trained: Trained, name: str, norm: str) -> float:
    attack = make_attack(name, _PROBE_EPS, norm, seed=SEED, deterministic=True)
    how: dict[str, Any] = dict(attack=attack, deterministic=True, seed=SEED, max_steps=_PROBE_ATTACKED)
    started, steps = time.process_time(), N_ENVS * _PROBE_ATTACKED
    with contextlib.suppress(NoAttackError):  # raised when all is played
        steps = int(rollout(trained.model, trained.venv, N_ENVS, **how).lengths.sum())
    return (time.process_time() - started) / steps


def _longest(venv: Any) -> float:
    spec = venv.get_attr("spec")[0]
    return float(spec.max_episode_steps or 1000)


def _learning(attacks: Attacks, attacked: Mapping[str, float]) -> float:
    """Seconds of the attacks that learn: their budgets."""
    return sum(_budget(attacks, seconds) for name, seconds in attacked.items() if is_fitted_attack(name))


def _budget(attacks: Attacks, per_step: float) -> float:
    limits = [
        attacks.attack_seconds,
        None if attacks.attack_steps is None else 2 * attacks.attack_steps * per_step,  # learning costs as much as playing
    ]
    return min((one for one in limits if one is not None), default=120.0)
