"""What a study gives: the best entry as a file for ``--conf-file``, and a line for each trial."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

_HEADER = """\
# The best of {n} finished trials of study {study}, made by
#   {command}
# Trial {number}: {value}.
# Measured after n_timesteps steps; another number of steps, with -n, is another training.
#   sb3-prune-robust train --algo {algo} --env {env} --conf-file {path}
"""


def write_entry(path: Path, env: str, entry: Mapping[str, Any], **header: Any) -> None:
    """
    Write an entry that RL Zoo's ``--conf-file`` takes.

    :param path: the file, which is replaced
    :param env: gymnasium id
    :param entry: the entry
    :param header: what the comment at its top says
    """
    text = _HEADER.format(env=env, path=path, **header) + yaml.dump({env: dict(entry)}, Dumper=_Plain, sort_keys=False)
    path.write_text(text)


class _Plain(yaml.SafeDumper):
    """Without anchors: what an entry shares with others it says in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def outcome(trial: FrozenTrial) -> str:
    """
    How a trial ended.

    :param trial: the trial, finished
    :return: its value with clean and attacked return, or why it has none
    """
    attributes = trial.user_attrs
    if trial.state == TrialState.COMPLETE:
        attacked = attributes.get("attacked")
        shown = "not attacked" if attacked is None else f"attacked {attacked:.1f}"
        return f"{trial.value:.1f} (clean {attributes['clean']:.1f}, {shown}, sparsity {attributes['sparsity']:.2f})"
    if trial.state == TrialState.PRUNED:
        return f"stopped early, after {len(trial.intermediate_values)} of its evaluations"
    return f"FAILED: {attributes.get('error', 'killed')}"


def time_left(trials: list[FrozenTrial], n_left: int, n_workers: int, until: float | None) -> str:
    """
    When a study will be done, from what its trials took.

    :param trials: all of them
    :param n_left: how many are missing
    :param n_workers: processes at it
    :param until: seconds to the time limit, ``None`` for none
    """
    seconds = [trial.duration.total_seconds() for trial in trials if trial.duration is not None]
    if not n_left or not seconds:
        return "0 s left"
    left = n_left * sum(seconds) / len(seconds) / max(n_workers, 1)
    left = left if until is None else max(min(left, until), 0.0)
    return f"about {time.strftime('%H:%M:%S', time.gmtime(left)) if left < 86400 else f'{left / 86400:.1f} days'} left"
