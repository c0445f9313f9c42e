"""A small study, and what tests do to it. In a module of its own, so that other processes can import it."""

import copy
import os
import signal
import time

from synthetic import record

from sb3_prune_robust.study import training, worker
from sb3_prune_robust.study.config import make_study
from sb3_prune_robust.study.plan import short_tasks
from sb3_prune_robust.study.store import StudyStore

ENTRY = {"n_envs": 2, "n_timesteps": 1024, "n_steps": 64, "batch_size": 64, "n_epochs": 2, "learning_rate": "lin_0.001"}
SMALL = {
    "name": "small",
    "description": "Does it run?",
    "environments": {"CartPole-v1": {"entry": ENTRY, "eps": [0.1]}},
    "grid": [{"sparsities": [0, 0.5], "seeds": [0, 1]}],
    "evaluation": {"attacks": ["random", "mad"], "n_episodes": 4, "n_certified": 10, "n_states": 20},
}


def changed(**sections):
    """The small study with other sections."""
    return {**copy.deepcopy(SMALL), **sections}


def with_entry(**values):
    """The small study with other hyperparameters."""
    source = copy.deepcopy(SMALL)
    source["environments"]["CartPole-v1"]["entry"].update(values)
    return source


def first(source=SMALL, sparsity=0.0):
    """The study, and its first task of a sparsity."""
    study = make_study(source)
    return study, next(task for task in short_tasks(study) if task.cell.sparsity == sparsity)


def work_and_die(source, folder, sparsity, after):
    """A worker that keeps a checkpoint at each rollout, and is killed once it has as many as ``after``."""
    training.CHECKPOINT_SECONDS = 0.0
    save, n_saved = training._Checkpoints.save, []

    def counting(self, name):
        about = save(self, name)
        n_saved.append(name)
        if len(n_saved) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return about

    training._Checkpoints.save = counting
    study, task = first(source, sparsity)
    worker.attempt(study, StudyStore(folder), task)


def hold(source, folder, seconds):
    """A worker that claims the first task and does nothing."""
    _, task = first(source)
    with StudyStore(folder).claimed(task):
        time.sleep(seconds)


def write_often(source, folder, number, times):
    """A worker that writes the first task's file again and again, each time with a long list of its own number."""
    _, task = first(source)
    for _ in range(times):
        StudyStore(folder).write(task, {"values": [number] * 20_000})


def full_disk(source, folder, tasks):
    """What a worker does when no space is left."""
    raise SystemExit(worker.DISK_FULL)


def die_at_seed_0(source, folder, tasks):
    """A worker that one cell kills, and that finishes the others."""
    store = StudyStore(folder)
    for task in tasks:
        if not store.is_done(task) and store.failure(task) is None:
            with store.claimed(task):
                if task.cell.seed == 0:
                    os._exit(9)
                store.write(task, record(task.cell.axes()))


def die_at_once(source, folder, tasks):
    """What a worker does that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)
