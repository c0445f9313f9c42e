"""The study: trials in a storage that several processes and machines share, and that outlives each of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sb3_prune_robust.tuning.entries import Entry, changed_entry
from sb3_prune_robust.tuning.output import outcome, time_left
from sb3_prune_robust.tuning.settings import TuneSettings
from sb3_prune_robust.tuning.space import baseline, rate_like, space_of, suggest_kappa, suggest_learning_rate
from sb3_prune_robust.tuning.training import N_REPORTS, check_training, run_trial
from sb3_prune_robust.tuning.workers import is_running, worker

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=N_REPORTS // 2),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(),
    "none": lambda: optuna.pruners.NopPruner(),
}


class NoTrialError(RuntimeError):
    """No trial of a study came to its end."""


def open_storage(storage: str | None) -> BaseStorage | None:
    """
    Open a storage.

    :param storage: a URL such as ``sqlite:///tune.db``, a path that ends in ``.log`` for Optuna's journal (as in RL Zoo), or
        ``None`` for this process's memory
    :return: the storage
    :raises ValueError: if it cannot be opened
    """
    if storage is None:
        return None
    try:
        if storage.endswith(".log"):
            return JournalStorage(JournalFileBackend(storage))
        patience = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}
        return RDBStorage(storage, engine_kwargs=patience)
    except Exception as error:  # whatever a wrong URL or file makes optuna, sqlalchemy and drivers raise
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"storage {storage!r} could not be opened (sqlite:///FILE.db, another database's URL, or FILE.log): {what}"
        ) from error


@dataclass
class Tuning:
    """
    A study of this package.

    :param settings: what is tuned
    :param storage: an open storage, ``None`` for this process's memory
    :param name: of the study; one that exists is continued
    :param seed: of the sampler and of training; each trial has its own, made from it and the trial's number
    :param sampler: a name of :data:`SAMPLERS`
    :param pruner: a name of :data:`PRUNERS`
    :param tell: called with a line for each trial
    :param on_steps: called with the number of new environment steps
    :raises ValueError: if the study holds trials of other settings, or the entry cannot be trained or attacked
    """

    settings: TuneSettings
    storage: BaseStorage | None
    name: str
    seed: int = 0
    sampler: str = "tpe"
    pruner: str = "median"
    tell: Callable[[str], object] = print
    on_steps: Callable[[int], object] = lambda n: None

    def __post_init__(self) -> None:
        entry, settings = self.settings.entry, self.settings
        limits = {"sparsities": settings.sparsities, "schedules": settings.schedules}
        check_training(settings, entry)
        self.space = space_of(entry, entry.get("callback"), **limits)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=self.name,
            direction="maximize",
            load_if_exists=True,
            pruner=PRUNERS[self.pruner](),
        )
        self._check_identity()
        self.study.enqueue_trial(baseline(entry, self.space), skip_if_exists=True)

    def _check_identity(self) -> None:
        identity, known = self.settings.identity(), self.study.user_attrs.get("settings")
        if known is None and not self.study.trials:
            self.study.set_user_attr("settings", identity)
            return
        known = known or {}
        differing = [name for name in identity if name not in known or known[name] != identity[name]]
        if differing:
            what = (
                ", ".join(f"{n}={known.get(n)!r}, not {identity[n]!r}" for n in differing if n != "entry") or "another entry"
            )
            raise ValueError(
                f"study-name {self.name!r} holds trials with {what}; they cannot be compared: choose another name"
            )

    def optimize(self, n_trials: int, timeout: float | None = None) -> None:
        """
        Run trials until the study has so many, whoever ran them, or the time is up; a trial that has begun is finished.

        :param n_trials: finished, stopped early or failed, and those that other processes are at
        :param timeout: seconds
        """
        start = time.monotonic()
        while self.n_counted() < n_trials and (timeout is None or time.monotonic() - start < timeout):
            number = self._run_one()
            self.tell(self._line(number, n_trials, None if timeout is None else timeout - (time.monotonic() - start)))

    def n_counted(self) -> int:
        """Trials that count; those whose process was killed do not, and are queued again."""
        self._recover()
        return sum(_counts(trial) for trial in self.study.get_trials(deepcopy=False))

    def _recover(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not is_running(trial):
                self._requeue(trial, "its process is gone")

    def _requeue(self, trial: FrozenTrial | optuna.Trial, why: str) -> None:
        try:
            self.study.tell(trial.number, state=TrialState.FAIL)
        except ValueError:  # another process was first
            return
        self.study.enqueue_trial(trial.params)
        self.tell(f"trial {trial.number}: {why}; queued again")

    def _line(self, number: int, n_trials: int, until: float | None) -> str:
        trials = self.study.get_trials(deepcopy=False)
        n_running = sum(trial.state == TrialState.RUNNING for trial in trials)
        n_left = max(n_trials - sum(map(_counts, trials)) + n_running, 0)
        left = time_left([t for t in trials if _counts(t)], n_left, n_running + 1, until)
        best = max((t.value for t in trials if t.state == TrialState.COMPLETE and t.value is not None), default=None)
        shown = "" if best is None else f"; best {best:.1f}"
        return f"trial {number}: {outcome(trials[number])}{shown}; {n_trials - n_left} of {n_trials} done, {left}"

    def _run_one(self) -> int:
        trial = self.study.ask()
        trial.set_user_attr("worker", worker())
        trial.set_user_attr("seen", time.time())
        # A sampler for each trial, seeded by its number: two processes never try the same, and what is tried depends on the
        # seed and the trials before it alone.
        seed = int(np.random.SeedSequence([self.seed, trial.number]).generate_state(1)[0])
        self.study.sampler = SAMPLERS[self.sampler](seed)
        try:
            entry = self.entry_of(self._suggest(trial))
            value = run_trial(trial, self.settings, entry, self.seed + trial.number, self.on_steps)
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        except KeyboardInterrupt:
            self._requeue(trial, "interrupted")
            raise
        except Exception as error:  # a trial that fails is a failed trial; the study goes on
            trial.set_user_attr("error", f"{type(error).__name__}: {' '.join(str(error).split())}")
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, value)
        return trial.number

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        self.space.suggest(trial)
        suggest_learning_rate(trial, self.settings.entry)
        suggest_kappa(trial, self.settings.entry)
        return trial.params

    def entry_of(self, params: dict[str, Any]) -> Entry:
        """
        The entry with the parameters of a trial.

        :param params: as Optuna keeps them
        """
        entry = self.settings.entry
        rate = rate_like(entry["learning_rate"], params["learning_rate"])
        return changed_entry(entry, {**params, "learning_rate": rate})

    def best(self) -> FrozenTrial:
        """
        The best finished trial.

        :raises NoTrialError: if there is none
        """
        if self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return self.study.best_trial
        errors = [trial.user_attrs["error"] for trial in self.study.trials if "error" in trial.user_attrs]
        what = f"all {len(errors)} failed, the last with {errors[-1]}" if errors else "none was run to its end"
        raise NoTrialError(f"no trial of study {self.name!r} gave a value: {what}")


def _counts(trial: FrozenTrial) -> bool:
    """Killed trials do not: they failed with no error of their own."""
    ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    return ended or (trial.state == TrialState.FAIL and "error" in trial.user_attrs)
