"""What is still to be done in a study, and how long it may take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sb3_prune_robust.study.cells import NONE
from sb3_prune_robust.study.config import Study
from sb3_prune_robust.study.files import DamagedFileError
from sb3_prune_robust.study.results import Results
from sb3_prune_robust.study.spots import best_sparsities
from sb3_prune_robust.study.store import STAGES, StudyStore, Task, make_task

_CHOSEN = ("env", "algorithm", "policy", "scores", "distribution", "schedule", "sparsity")


@dataclass(frozen=True)
class State:
    """
    How far a study is.

    :param done: tasks whose file is there and whole
    :param damaged: by name of a task, what is wrong with its file: it will be done again
    :param failed: by name of a task, the error of its last run: it will be tried again
    :param missing: tasks to do, those that are damaged or failed among them
    """

    done: tuple[Task, ...]
    damaged: dict[str, str]
    failed: dict[str, str]
    missing: tuple[Task, ...]


def short_tasks(study: Study) -> list[Task]:
    """The first stage: every cell."""
    return [make_task(study, cell, "short") for cell in study.cells]


def strong_tasks(study: Study, store: StudyStore) -> list[Task]:
    """
    The second stage: the dense agents, and the candidates by the first stage of their variant, where that is finished.

    :param study: the study
    :param store: its files
    """
    if study.strong is None:
        return []
    unfinished = {task.cell.variant for task in short_tasks(study) if not store.is_done(task)}
    ready = [cell for cell in study.cells if not {cell.variant, (*cell.variant[:3], NONE, NONE, NONE)} & unfinished]
    spots = best_sparsities(collect(study, store, ["short"]).frame, study.confidence)
    chosen = set(spots[list(_CHOSEN)].itertuples(index=False, name=None))  # by any criterion, at any eps, supported or not
    cells = [cell for cell in ready if cell.sparsity == 0 or tuple(cell.axes()[axis] for axis in _CHOSEN) in chosen]
    return [make_task(study, cell, "strong") for cell in cells]


def all_tasks(study: Study) -> list[Task]:
    """Whatever a file may be of: strong attacks on any cell, since an agent that is a candidate no more was one."""
    stages = ("short",) if study.strong is None else STAGES
    return [make_task(study, cell, stage) for stage in stages for cell in study.cells]


def tasks(study: Study, store: StudyStore) -> list[Task]:
    """All tasks that are known: those of the second stage where the first is finished."""
    return short_tasks(study) + strong_tasks(study, store)


def state(store: StudyStore, todo: Iterable[Task]) -> State:
    """
    :param store: the study's files
    :param todo: the tasks to look at
    """
    done: list[Task] = []
    missing: list[Task] = []
    damaged, failed = {}, {}
    for task in todo:
        try:
            found = store.read(task) is not None
        except DamagedFileError as error:
            found, damaged[task.name] = False, str(error)
        (done if found else missing).append(task)
        failure = None if found else store.failure(task)
        if failure is not None:
            failed[task.name] = failure
    return State(tuple(done), damaged, failed, tuple(missing))


def collect(study: Study, store: StudyStore, stages: Sequence[str] = STAGES) -> Results:
    """
    What a study has found so far.

    :param study: the study
    :param store: its files
    :param stages: the stages wanted
    """
    now = state(store, [task for task in all_tasks(study) if task.stage in stages])
    records = [record for task in now.done if (record := store.read(task)) is not None]
    faults = [*now.damaged.values(), *(f"{name} failed: {text.splitlines()[-1]}" for name, text in now.failed.items())]
    references, damaged = read_references(study, store)
    return Results(
        study.name,
        study.description,
        records,
        references,
        len(study.cells),
        [*faults, *damaged],
        study.confidence,
        Counter(cell.variant for cell in {replace(cell, seed=0) for cell in study.cells if cell.sparsity}),
    )


def read_references(study: Study, store: StudyStore) -> tuple[dict[str, float], list[str]]:
    """
    The mean returns of random actions.

    :param study: the study
    :param store: its files
    :return: by environment, those that are known; and what is wrong with files that are damaged
    """
    found: dict[str, float] = {}
    damaged = []
    for env in study.environments:
        try:
            mean = store.reference(env)
        except DamagedFileError as error:
            damaged.append(str(error))
        else:
            found |= {} if mean is None else {env: mean}
    return found, damaged


class Estimate:
    """
    How long tasks take, from those that are finished.

    :param store: the study's files
    """

    def __init__(self, store: StudyStore) -> None:
        self.store = store
        self._seconds: dict[tuple[str, str, str], list[float]] = {}
        self._seen: set[str] = set()

    def learn(self, done: Iterable[Task]) -> None:
        """Take in the CPU seconds of finished tasks."""
        for task in done:
            if task.name not in self._seen:
                record = self.store.read(task)
                self._seen.add(task.name)
                seconds = {} if record is None else record["cpu_seconds"]
                total = sum(value for what, value in seconds.items() if task.stage == "short" or what != "train")
                for kind in self._kinds(task):
                    self._seconds.setdefault(kind, []).append(total)

    @staticmethod
    def _kinds(task: Task) -> list[tuple[str, str, str]]:
        """From what is most alike to what is least."""
        return [(task.stage, task.cell.env, task.cell.algorithm), (task.stage, task.cell.env, ""), (task.stage, "", "")]

    def seconds(self, task: Task, alike: bool = False) -> float | None:
        """
        CPU seconds that a task may take: the mean of the finished ones most like it.

        :param task: the task
        :param alike: only finished ones of the same environment and algorithm count
        :return: ``None`` if there is none
        """
        kinds = self._kinds(task)[: 1 if alike else None]
        known = (self._seconds[kind] for kind in kinds if kind in self._seconds)
        return next((sum(values) / len(values) for values in known), None)

    def total(self, missing: Sequence[Task]) -> float | None:
        """CPU seconds for all of them; ``None`` if nothing is known of one."""
        each = [self.seconds(task) for task in missing]
        return None if any(one is None for one in each) else float(sum(one for one in each if one is not None))


def left(seconds: float | None, workers: int) -> str:
    """Time left, for people."""
    if seconds is None:
        return "time left unknown until a cell is finished"
    hours, minutes = divmod(round(seconds / workers / 60), 60)
    if hours or minutes:
        return f"about {hours} h {minutes:02d} min left" if hours else f"about {minutes} min left"
    return "less than a minute left"


def clock() -> str:
    """The time of day, for lines of a log."""
    return time.strftime("%H:%M:%S")
