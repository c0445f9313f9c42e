"""
The folder of a study: one file for each finished cell, which many workers may write, here or on a shared file system.

``cells/`` holds the results and is all that a report needs; ``agents/`` what was trained, with checkpoints of what is being
trained; ``running/`` a file for each cell that a worker is at, locked while it is; ``failed/`` the error of each cell whose
last run failed; ``pieces/`` finished episodes of evaluations under way. All but ``cells/`` and ``references/`` may be deleted;
what then needs an agent trains it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from sb3_prune_robust.evaluation.identity import digest, normal_form
from sb3_prune_robust.study.cells import Cell
from sb3_prune_robust.study.config import Attacks, Study
from sb3_prune_robust.study.files import DamagedFileError, read_checked, write_checked

STAGES = ("short", "strong")
_DIGITS = 10


@dataclass(frozen=True)
class Task:
    """
    A cell and what is done with it.

    :param cell: the agent
    :param stage: ``"short"``: trained, attacked and certified; ``"strong"``: attacked by the strong suite on top
    :param agent: name of its folder below ``agents/``, which tells it from agents trained otherwise
    :param name: name of its file below ``cells/``, which tells it from the same agent measured otherwise
    :param key: all that the file depends on
    """

    cell: Cell
    stage: str
    agent: str
    name: str
    key: Mapping[str, Any]


def make_task(study: Study, cell: Cell, stage: str) -> Task:
    """
    :param study: the study
    :param cell: one of its cells
    :param stage: one of :data:`STAGES`
    """
    training = study.key(cell)
    attacks: Attacks | None = study.evaluation if stage == "short" else study.strong
    environment = study.environments[cell.env]
    measured = {"evaluation": vars(attacks), "eps": environment.eps, "clip_rewards": environment.clip_rewards, "stage": stage}
    if stage == "strong" and study.evaluation.norm != "linf":  # a strong file that names no norm is of linf
        measured["norm"] = study.evaluation.norm
    key = normal_form({**training, **measured})
    agent = f"{cell.name}-{digest(training)[:_DIGITS]}"
    return Task(cell, stage, agent, f"{cell.name}-{stage}-{digest(key)[:_DIGITS]}", key)


class StudyStore:
    """
    The files of a study.

    :param folder: where; made when something is written
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def agent(self, task: Task) -> Path:
        """The folder of what is trained for a task."""
        return self.folder / "agents" / task.agent

    def pieces(self, task: Task) -> Path:
        """The folder of an evaluation's finished episodes, of no use once the cell's file is there."""
        return self.folder / "pieces" / task.name

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name}.json"

    def read(self, task: Task) -> dict[str, Any] | None:
        """
        What a finished cell found.

        :param task: the task
        :return: its record, ``None`` if it is not finished
        :raises DamagedFileError: if there is a file that is not whole or of something else
        """
        path = self._path("cells", task.name)
        if not path.exists():
            return None
        record = read_checked(path)
        if record.pop("key") != task.key:
            raise DamagedFileError(f"{path} is of something else than its name says")
        return record

    def is_done(self, task: Task) -> bool:
        """Whether the cell's file is there and whole."""
        try:
            return self.read(task) is not None
        except DamagedFileError:
            return False

    def write(self, task: Task, record: Mapping[str, Any]) -> None:
        """
        Keep what a cell found: a file that is there whole or not at all.

        :param task: the task
        :param record: what JSON can hold, and numpy arrays
        """
        write_checked(self._path("cells", task.name), {**record, "key": task.key})
        self._path("failed", task.name).unlink(missing_ok=True)

    def write_failure(self, task: Task, error: str) -> None:
        """
        :param task: what failed
        :param error: how, for whoever mends it
        """
        write_checked(self._path("failed", task.name), {"error": error, "when": time.strftime("%Y-%m-%d %H:%M:%S")})

    def failure(self, task: Task) -> str | None:
        """The error of a task whose last run failed, ``None`` if it did not."""
        path = self._path("failed", task.name)
        try:
            return str(read_checked(path)["error"]) if path.exists() else None
        except DamagedFileError as error:
            return str(error)

    def forget_failure(self, task: Task) -> None:
        """
        :param task: to be tried again
        """
        self._path("failed", task.name).unlink(missing_ok=True)

    def reference(self, env: str) -> float | None:
        """
        The mean return of random actions.

        :param env: environment id
        :return: ``None`` if it is not known yet
        :raises DamagedFileError: if its file is not whole or of another environment
        """
        path = self._path("references", env.replace("/", "_"))
        if not path.exists():
            return None
        found = read_checked(path)
        if found.get("env") != env:
            raise DamagedFileError(f"{path} is of {found.get('env')!r}, not of {env!r} as its name says")
        return float(found["mean"])

    def write_reference(self, env: str, returns: npt.NDArray[Any]) -> None:
        """
        :param env: environment id
        :param returns: of episodes with random actions, shape ``(n,)``
        """
        content = {"env": env, "mean": float(returns.mean()), "returns": returns}
        write_checked(self._path("references", env.replace("/", "_")), content)

    @contextlib.contextmanager
    def training(self, task: Task) -> Iterator[Path]:
        """
        While in use, nobody else trains this agent: tasks that measure it otherwise share its folder, and wait here.

        :param task: the task
        :return: the agent's folder
        """
        path = self.agent(task)
        path.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(f"{path.name}.lock"), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield path

    @contextlib.contextmanager
    def claimed(self, task: Task) -> Iterator[Any]:
        """
        While in use, no other worker takes the task. The system itself lets go when the process ends, however it ends.

        :param task: the task
        :return: a function to be told of progress (what is done, its share); ``None`` if another worker has the task
        """
        path = self._path("running", task.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            yield Progress(path)
            path.unlink(missing_ok=True)

    def left_by(self, pid: int) -> str | None:
        """
        The task that a process was at when it was killed.

        :param pid: of a process that has ended
        :return: the task's name, ``None`` if it was at none or another has taken it since
        """
        for path in sorted((self.folder / "running").glob("*.json")):
            with contextlib.suppress(FileNotFoundError, ValueError):
                if json.loads(path.read_text())["pid"] == pid:
                    return path.stem
        return None

    def running(self) -> dict[str, dict[str, Any]]:
        """By name of a task that a worker on this machine is at: what it does, its share, and since when."""
        found = {}
        for path in sorted((self.folder / "running").glob("*.json")):
            with contextlib.suppress(FileNotFoundError), open(path) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    with contextlib.suppress(ValueError):  # being written
                        found[path.stem] = json.loads(file.read())
        return found


class Progress:
    """
    Says what a worker is at, twice a second at most.

    :param path: the file that says it, which the worker has locked
    """

    def __init__(self, path: Path) -> None:
        self.path, self._said = path, 0.0
        self.since = time.time()
        self("starting", 0.0)

    def __call__(self, what: str, share: float) -> None:
        """
        :param what: is being done
        :param share: of it, in [0, 1]
        """
        if time.time() - self._said < 0.5:
            return
        self._said = time.time()
        self.path.write_text(json.dumps({"what": what, "share": round(share, 3), "since": self.since, "pid": os.getpid()}))
