"""Runs a study on this machine: worker processes of one thread each, and a line of progress."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from sb3_prune_robust.study.config import Study
from sb3_prune_robust.study.plan import Estimate, State, clock, left, short_tasks, state, strong_tasks, tasks
from sb3_prune_robust.study.store import StudyStore, Task
from sb3_prune_robust.study.worker import DISK_FULL, DiskFullError, work, write_references

_LOOK_SECONDS = 1.0
_DEATHS = 4  # of workers in a row, with nothing finished in between, before the run gives up
_DEATHS_AT_ONE = 3  # before the task that they were at counts as failed


Run = Callable[[Study, StudyStore, Sequence[Task], Estimate], None]


class WorkersDiedError(RuntimeError):
    """Workers were killed again and again before they finished anything."""


def run_stages(study: Study, store: StudyStore, run: Run) -> State:
    """
    Run what is missing of the first stage, then of the second for each variant whose first is finished.

    :param study: the study
    :param store: its files
    :param run: runs tasks: called with the study, the store, the tasks, and what is known of the time they take
    :return: how far the study is then
    """
    write_references(study, store)
    _run(study, store, short_tasks(study), run)
    _run(study, store, strong_tasks(study, store), run)
    return state(store, tasks(study, store))


def _run(study: Study, store: StudyStore, todo: Sequence[Task], run: Run) -> None:
    now, estimate = state(store, todo), Estimate(store)
    estimate.learn(now.done)
    for task in now.missing:
        store.forget_failure(task)
    if now.missing:
        run(study, store, now.missing, estimate)


class Local:
    """
    Runs tasks in processes of this machine.

    :param workers: how many processes
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._context: Any = multiprocessing.get_context("spawn")  # torch and its threads do not survive a fork
        self._deaths = self._done_at_death = 0
        self._deaths_at: Counter[str] = Counter()  # by name of a task

    def __call__(self, study: Study, store: StudyStore, missing: Sequence[Task], estimate: Estimate) -> None:
        """
        Do the tasks, or find out that they fail; a worker that is killed is replaced.

        :param study: the study
        :param store: its files
        :param missing: the tasks
        :param estimate: of the time they take
        :raises DiskFullError: if no space is left
        :raises WorkersDiedError: if workers die before they finish anything
        """
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when a worker imports torch
        how: dict[str, Any] = dict(target=work, args=(study.source, store.folder, missing), daemon=True)
        processes = [self._context.Process(**how) for _ in range(min(self.workers, len(missing)))]
        with Monitor(store, missing, self.workers, estimate) as monitor:
            try:
                for process in processes:
                    process.start()
                while any(process.exitcode != 0 for process in processes):  # None: alive; others are replaced
                    time.sleep(_LOOK_SECONDS)
                    monitor.look()
                    for i in (i for i, process in enumerate(processes) if process.exitcode not in (None, 0)):
                        self._judge(processes[i], monitor, store)
                        processes[i] = self._context.Process(**how)
                        processes[i].start()
                monitor.look()
            finally:
                _end(processes)

    def _judge(self, process: Any, monitor: Monitor, store: StudyStore) -> None:
        """Whether another worker may take the place of one that died."""
        if process.exitcode == DISK_FULL:
            raise DiskFullError(f"no space is left for {store.folder}; what is finished is whole: make room, run this again")
        self._deaths = 1 if monitor.n_done > self._done_at_death else self._deaths + 1
        self._done_at_death = monitor.n_done
        task = monitor.missing.get(store.left_by(process.pid) or "")
        how = f"(exit code {process.exitcode})" + (f" at {task.name}" if task else "")
        if self._deaths >= _DEATHS:
            raise WorkersDiedError(f"{_DEATHS} workers in a row died before any cell was finished, the last {how}")
        if task is not None:
            self._deaths_at[task.name] += 1
            if self._deaths_at[task.name] >= _DEATHS_AT_ONE:
                store.write_failure(task, f"{_DEATHS_AT_ONE} workers died at it, the last {how}")
                self._done_at_death += 1  # it will be counted with what is finished, and is no sign of life
        monitor.say(f"a worker died {how}; another continues from the last checkpoint")


def _end(processes: Sequence[Any]) -> None:
    for process in (process for process in processes if process.pid is not None):
        process.terminate()
        process.join()


class Monitor:
    """
    A bar of tasks with the time left, and on no terminal a line for each that is finished.

    :param store: the study's files
    :param missing: the tasks
    :param workers: how many work at a time
    :param estimate: of the time that tasks take; learns from those that are finished
    """

    def __init__(self, store: StudyStore, missing: Sequence[Task], workers: int, estimate: Estimate) -> None:
        self.store, self.workers = store, workers
        self.missing = {task.name: task for task in missing}
        self.estimate = estimate
        self.n_done, self.total = 0, len(missing)

    def __enter__(self) -> Monitor:
        self.bar = tqdm(total=self.total, unit="cell", disable=None, bar_format="{n}/{total} {bar} {desc}")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.bar.write(f"{clock()} {text}") if not self.bar.disable else print(clock(), text, flush=True)

    def look(self) -> int:
        """
        See what is finished, and say so.

        :return: number of tasks done so far
        """
        for name, task in list(self.missing.items()):
            failed = self.store.failure(task)
            if self.store.is_done(task):
                self.estimate.learn([task])
                self._finished(name, "done")
            elif failed is not None and name not in self.store.running():
                self._finished(name, f"FAILED: {failed.splitlines()[-1]}")
        if not self.bar.disable:
            self.bar.set_description_str(f"{self._left()}; {self._at()}")
        return self.n_done

    def _finished(self, name: str, how: str) -> None:
        del self.missing[name]
        self.n_done += 1
        self.bar.update()
        self.say(f"{self.n_done} of {self.total}: {name} {how}; {self._left()}")

    def _left(self) -> str:
        missing = list(self.missing.values())
        return left(self.estimate.total(missing), max(1, min(self.workers, len(missing))))

    def _at(self) -> str:
        return ", ".join(f"{name}: {one['what']} {one['share']:.0%}" for name, one in self.store.running().items())


def default_workers() -> int:
    """One for each processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
