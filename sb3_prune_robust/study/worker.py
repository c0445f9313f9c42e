"""A worker of a study: takes what nobody else is at, until nothing is left."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch as th

from sb3_prune_robust.evaluation.loading import make_env
from sb3_prune_robust.study.config import Study, make_study
from sb3_prune_robust.study.files import DamagedFileError
from sb3_prune_robust.study.measure import random_returns, run_task
from sb3_prune_robust.study.store import StudyStore, Task

DISK_FULL = 28  # exit code: errno's own number
_WAIT_SECONDS = 1.0
N_RANDOM = 100  # episodes with random actions


class DiskFullError(RuntimeError):
    """No space is left for results: whatever was finished is whole."""


def attempt(study: Study, store: StudyStore, task: Task) -> str:
    """
    Do one task, unless it is done or another worker is at it.

    :param study: the study
    :param store: its files
    :param task: the task
    :return: ``"done"``, ``"taken"`` by another, or ``"failed"``: the error is kept
    :raises DiskFullError: if no space is left
    """
    with full_disk_told(store.folder), store.claimed(task) as say:
        if say is None:
            return "taken"
        if store.is_done(task):
            return "done"
        if store.failure(task) is not None:  # of this run: those of earlier ones were forgotten when it began
            return "failed"
        try:
            store.write(task, run_task(study, store, task, say))
            shutil.rmtree(store.pieces(task), ignore_errors=True)
            return "done"
        except Exception as error:  # one cell that cannot be done must not stop the others
            if _is_full(error):
                raise
            store.write_failure(task, traceback.format_exc())
            return "failed"


@contextlib.contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """
    While in use, whatever error a full disk causes becomes a :class:`DiskFullError`.

    :param folder: of the study
    """
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        text = f"no space is left for {folder}; what is finished is whole: make room and run this again"
        raise DiskFullError(text) from error


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk is what an error comes from; torch hides it in an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def work(source: Any, folder: str | Path, tasks: Sequence[Task]) -> None:
    """
    The life of a worker process.

    :param source: what the study's YAML file holds
    :param folder: of the study
    :param tasks: to do, in this order
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quieten()
    study, store = make_study(source), StudyStore(folder)
    try:
        finish(study, store, tasks)
    except DiskFullError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(DISK_FULL)


def finish(study: Study, store: StudyStore, tasks: Sequence[Task]) -> None:
    """
    Do tasks, and come back to those that others are at until these are done: they may die.

    :param study: the study
    :param store: its files
    :param tasks: in this order
    """
    left = list(tasks)
    while left:
        left = [task for task in left if attempt(study, store, task) == "taken"]
        if left:
            time.sleep(_WAIT_SECONDS)


def _end_with_parent() -> None:
    """A run that is killed must not leave workers behind, which the next run's would then share the machine with."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def quieten() -> None:
    """One thread, and no warnings of libraries that every cell would repeat."""
    th.set_num_threads(1)
    warnings.filterwarnings("ignore", module="gymnasium|pygame|stable_baselines3")


def write_references(study: Study, store: StudyStore) -> None:
    """
    Play random actions in each environment where that was not done yet.

    :param study: the study
    :param store: its files
    """
    for env in study.environments:
        if not _is_there(store, env):
            venv = make_env(env, 1)
            store.write_reference(env, random_returns(venv, N_RANDOM))
            venv.close()


def _is_there(store: StudyStore, env: str) -> bool:
    try:
        return store.reference(env) is not None
    except DamagedFileError as error:
        print(f"{error}; random actions are played again", file=sys.stderr)
        return False
