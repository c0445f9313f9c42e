"""The whole of ``sb3-prune-robust tune``: open, search, write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState
from tqdm import tqdm

from sb3_prune_robust.tuning.output import outcome, write_entry
from sb3_prune_robust.tuning.settings import TuneSettings
from sb3_prune_robust.tuning.study import Tuning, open_storage


@dataclass(frozen=True)
class Request:
    """
    How to search, and where to keep what is found.

    :param out: file for the best entry
    :param n_trials: trials that the study is to have
    :param timeout: seconds after which no trial is started; ``None``: no limit
    :param storage: as :func:`~.study.open_storage`
    :param study_name: ``None``: from algorithm and environment
    :param seed: as :class:`~.study.Tuning`
    :param sampler: as :class:`~.study.Tuning`
    :param pruner: as :class:`~.study.Tuning`
    """

    out: Path
    n_trials: int = 20
    timeout: float | None = None
    storage: str | None = None
    study_name: str | None = None
    seed: int = 0
    sampler: str = "tpe"
    pruner: str = "median"

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed!r}")
        if self.out.is_dir() or not self.out.parent.is_dir():
            raise ValueError(f"out {self.out} must be a file in a folder that exists")


def tune(settings: TuneSettings, request: Request, command: str) -> None:
    """
    Search, and write the best entry.

    :param settings: what is tuned
    :param request: how, and where to
    :param command: the command line, for the record
    :raises ValueError: for what is wrong, before the first trial
    :raises NoTrialError: if no trial came to its end
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = request.study_name or f"{settings.algo}-{settings.env}"
    tuning = Tuning(settings, open_storage(request.storage), name, request.seed, request.sampler, request.pruner)
    with _bar(tuning):
        tuning.optimize(request.n_trials, request.timeout)
    best = tuning.best()
    n_finished = len(tuning.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    header = dict(algo=settings.algo, command=command, n=n_finished, study=name, number=best.number, value=outcome(best))
    write_entry(request.out, settings.env, tuning.entry_of(best.params), **header)
    if n_running := len(tuning.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))):
        print(f"Other processes are still at {n_running} trials: the same command, when they are done, writes the best of all")
    print(f"Best of {n_finished} finished trials: trial {best.number}, {outcome(best)}")
    print("  " + ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in best.params.items()))
    zoo = f"sb3-prune-robust train --algo {settings.algo} --env {settings.env} --conf-file {request.out}"
    print(f"Written to {request.out}, for {zoo}")


@contextmanager
def _bar(tuning: Tuning) -> Iterator[None]:
    """The trial at hand; none where the output is no terminal."""
    with tqdm(total=int(tuning.settings.entry["n_timesteps"]), desc="this trial", unit="step", disable=None) as bar:

        def tell(line: str) -> None:
            bar.write(line)
            bar.reset()

        tuning.tell, tuning.on_steps = tell, bar.update
        yield
