"""Runs a study on a Ray cluster: the same tasks, each a Ray task with a processor of its own and retries."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_prune_robust.study.config import Study, make_study
from sb3_prune_robust.study.plan import Estimate
from sb3_prune_robust.study.runner import Monitor
from sb3_prune_robust.study.store import StudyStore, Task
from sb3_prune_robust.study.worker import finish, quieten

CONFIG = "study.yml"  # in the folder of every study
_RETRIES = 3  # of a task whose worker dies


def do(source: Any, folder: str, task: Task) -> None:
    """
    One task on a node of the cluster.

    :param source: what the study's YAML file holds
    :param folder: of the study, which every node must see
    :param task: the task
    :raises ValueError: if the node does not see the folder
    """
    if not (Path(folder) / CONFIG).exists():
        raise ValueError(f"out {folder} is not seen on this node of the cluster: all nodes must share its file system")
    quieten()
    finish(make_study(source), StudyStore(folder), [task])


class OnRay:
    """
    Runs tasks on a cluster.

    :param address: of the cluster, as ``ray.init`` takes it; ``"auto"``: the one that this machine belongs to; ``"local"``:
        one started here
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, study: Study, store: StudyStore, missing: Sequence[Task], estimate: Estimate) -> None:
        """
        Do the tasks, or find out that they fail; one whose worker dies is tried again, and continues from its checkpoint.

        :param study: the study
        :param store: its files, on a file system that all nodes share
        :param missing: the tasks
        :param estimate: of the time they take
        :raises DiskFullError: if no space is left
        """
        ray: Any = importlib.import_module("ray")  # an extra of the package, which takes seconds

        try:
            ray.init(self.address, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}, log_to_driver=False)
        except (ValueError, ConnectionError) as error:
            raise ValueError(f"ray {self.address!r}: {error}; 'auto', 'local' or HOST:PORT of a cluster is needed") from error
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(do)
        try:
            waiting = {remote.remote(study.source, str(store.folder.resolve()), task): task for task in missing}
            with Monitor(store, missing, int(ray.cluster_resources()["CPU"]), estimate) as monitor:
                while waiting:
                    ready, _ = ray.wait(list(waiting), timeout=1.0)
                    for one in ready:
                        self._finish(ray, one, waiting.pop(one), store)
                    monitor.look()
        finally:
            ray.shutdown()

    @staticmethod
    def _finish(ray: Any, one: Any, task: Task, store: StudyStore) -> None:
        try:
            ray.get(one)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # a full disk, a folder that a node does not see: of all tasks
        except ray.exceptions.RayError as error:
            store.write_failure(task, f"its workers died {_RETRIES + 1} times: {type(error).__name__}")
