"""Which process is at a trial, and whether it still is."""

from __future__ import annotations

import os
import socket
import time

from optuna.trial import FrozenTrial

# A trial says that it is alive every half a minute, but not during an evaluation.
SILENCE_SECONDS = 600.0


def worker() -> str:
    """This process, as a trial names it: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_running(trial: FrozenTrial) -> bool:
    """
    Whether the process at a trial is still there: looked up on this machine, on others judged by when it last spoke.

    :param trial: a trial in state ``RUNNING``, not one that this process is at
    """
    host, _, pid = trial.user_attrs.get("worker", "").rpartition(":")
    if host == socket.gethostname() and (int(pid) == os.getpid() or not _exists(int(pid))):
        return False
    assert trial.datetime_start is not None
    seen = trial.user_attrs.get("seen", trial.datetime_start.timestamp())
    return bool(time.time() - seen < SILENCE_SECONDS)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True
