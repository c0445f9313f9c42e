"""The study, with trainings of no cost: what counts, what is queued again, what is refused."""

import datetime
import os
import socket
import subprocess
import sys
import time

import optuna
import pytest
from optuna.trial import TrialState

from sb3_prune_robust.tuning import study as module
from sb3_prune_robust.tuning.output import time_left
from sb3_prune_robust.tuning.settings import TuneSettings
from sb3_prune_robust.tuning.study import NoTrialError, Tuning, open_storage
from sb3_prune_robust.tuning.workers import SILENCE_SECONDS, is_running

SETTINGS = TuneSettings("ppo", "CartPole-v1", eps=0.1, timesteps=1000)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A trial's value is its final sparsity; nothing is trained."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.setattr(module, "check_training", lambda settings, entry: None)
    train(monkeypatch, lambda trial, entry: trial.params["final_sparsity"])


def train(monkeypatch, function):
    def run_trial(trial, settings, entry, seed, on_steps):
        value = function(trial, entry)
        for name in ("clean", "attacked", "sparsity"):
            trial.set_user_attr(name, 0.5)
        return value

    monkeypatch.setattr(module, "run_trial", run_trial)


@pytest.fixture(params=["sqlite:///{}/tune.db", "{}/tune.log"])
def storage(request, tmp_path):
    return request.param.format(tmp_path)


def tuning(storage=None, settings=SETTINGS, **arguments):
    lines = []
    made = Tuning(settings, open_storage(storage), "s", tell=lines.append, **arguments)
    return made, lines


def states(made):
    return [trial.state for trial in made.study.trials if trial.state != TrialState.WAITING]


def test_first_trial_is_the_entry():
    made, lines = tuning()
    made.optimize(2)
    first = made.study.trials[0]
    expected = {
        "lipschitz": 20.0,
        "final_sparsity": 0.7,
        "schedule": "polynomial",
        "distribution": "erk",
        "learning_rate": 1e-3,
    }
    assert first.params == expected
    entry = made.entry_of(first.params)
    assert {**entry, "policy_kwargs": None} == {**SETTINGS.entry, "policy_kwargs": None}
    assert entry["policy_kwargs"] == {"lipschitz": 20.0} and entry["learning_rate"] == "lin_0.001"
    assert lines[0].startswith("trial 0: 0.7 (clean 0.5, attacked 0.5, sparsity 0.50); best 0.7; 1 of 2 done, about")
    assert lines[1].endswith("2 of 2 done, 0 s left")


def test_continued_study_has_as_many_trials_as_asked_for(storage):
    for n_trials, n_new in ((2, 2), (3, 1), (3, 0)):
        made, lines = tuning(storage)
        made.optimize(n_trials)
        assert len(lines) == n_new and states(made) == [TrialState.COMPLETE] * n_trials


def test_what_is_tried_depends_on_seed_and_number_alone(storage):
    whole, _ = tuning()
    whole.optimize(4)
    for n_trials in (2, 4):  # two processes, one after the other
        parts, _ = tuning(storage)
        parts.optimize(n_trials)
    assert [t.params for t in parts.study.trials] == [t.params for t in whole.study.trials]
    assert parts.study.trials[1].params != parts.study.trials[2].params  # each from the start of its process
    other, _ = tuning(seed=1)
    other.optimize(4)
    assert other.study.trials[1].params != whole.study.trials[1].params


def test_failed_trial_is_failed_and_the_study_goes_on(monkeypatch):
    def sometimes(trial, entry):
        if trial.number == 1:
            raise ValueError("NaN in\nthe weights")
        return 1.0

    train(monkeypatch, sometimes)
    made, lines = tuning()
    made.optimize(3)
    assert states(made) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert lines[1].startswith("trial 1: FAILED: ValueError: NaN in the weights; best 1.0; 2 of 3 done")


def test_only_failures_is_an_error(monkeypatch):
    def never(trial, entry):
        raise ValueError(f"number {trial.number}")

    train(monkeypatch, never)
    made, _ = tuning()
    made.optimize(3)
    assert states(made) == [TrialState.FAIL] * 3
    with pytest.raises(NoTrialError, match=r"study 's' gave a value: all 3 failed, the last with ValueError: number 2"):
        made.best()


def test_stopped_early_is_neither_failed_nor_best(monkeypatch):
    def stop(trial, entry):
        trial.report(9.0, 1)
        if trial.number == 1:
            raise optuna.TrialPruned
        return 1.0

    train(monkeypatch, stop)
    made, lines = tuning()
    made.optimize(2)
    assert states(made) == [TrialState.COMPLETE, TrialState.PRUNED] and made.best().number == 0
    assert lines[1].startswith("trial 1: stopped early, after 1 of its evaluations; best 1.0")


def test_interrupted_trial_is_queued_again(storage, monkeypatch):
    def interrupt(trial, entry):
        if trial.number == 1:
            raise KeyboardInterrupt
        return 1.0

    train(monkeypatch, interrupt)
    made, _ = tuning(storage)
    with pytest.raises(KeyboardInterrupt):
        made.optimize(2)
    again, _ = tuning(storage)
    again.optimize(2)
    assert states(again) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert again.study.trials[1].params == again.study.trials[2].params


def start(made, host, pid, seconds_ago):
    """A trial that some process is at."""
    trial = made.study.ask()
    made._suggest(trial)
    trial.set_user_attr("worker", f"{host}:{pid}")
    trial.set_user_attr("seen", time.time() - seconds_ago)
    return trial


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("host", "pid", "seconds_ago", "alive"),
    [
        (socket.gethostname(), dead_pid(), 0, False),
        (socket.gethostname(), os.getpid(), 0, False),  # this process runs one trial at a time, and is between two
        (socket.gethostname(), os.getppid(), 0, True),
        ("elsewhere", 1, SILENCE_SECONDS - 60, True),
        ("elsewhere", 1, SILENCE_SECONDS + 60, False),
    ],
    ids=["dead", "itself", "parent", "elsewhere", "silent"],
)
def test_killed_trial_is_queued_again(storage, host, pid, seconds_ago, alive):
    made, _ = tuning(storage)
    killed = start(made, host, pid, seconds_ago)
    assert is_running(made.study.trials[0]) is alive
    again, lines = tuning(storage)
    again.optimize(2)
    if alive:  # it counts as one of the two
        assert states(again) == [TrialState.RUNNING, TrialState.COMPLETE]
        assert again.study.trials[1].params != killed.params
    else:
        assert states(again) == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
        assert again.study.trials[1].params == killed.params and "its process is gone" in lines[0]


def test_trial_that_was_just_begun_is_left_alone():
    """Between being asked for and saying whose it is."""
    made, _ = tuning()
    made.study.ask()
    made.optimize(2)
    assert states(made) == [TrialState.RUNNING, TrialState.COMPLETE]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0.2}, r"eps=0\.1, not 0\.2"),
        ({"weight": 1.0}, r"weight=0\.5, not 1\.0"),
        ({"timesteps": 2000}, "timesteps=1000"),
    ],
)
def test_trials_of_other_settings_are_not_mixed(storage, changes, message):
    tuning(storage)[0].optimize(1)
    asked = dict(algo="ppo", env="CartPole-v1", eps=0.1, timesteps=1000)
    tuning(storage, TuneSettings(**asked))
    with pytest.raises(ValueError, match=rf"study-name 's' holds trials with {message}"):
        tuning(storage, TuneSettings(**{**asked, **changes}))


def test_study_of_another_program_is_refused(storage):
    optuna.create_study(storage=open_storage(storage), study_name="s").ask()
    with pytest.raises(ValueError, match=r"study-name 's' holds trials"):
        tuning(storage)


def test_timeout_starts_no_further_trial(monkeypatch):
    train(monkeypatch, lambda trial, entry: time.sleep(0.2) or 1.0)
    made, _ = tuning()
    made.optimize(50, timeout=0.3)
    assert len(made.study.trials) == 2


def test_time_left():
    def trial(seconds):
        start = datetime.datetime(2026, 1, 1)
        end = start + datetime.timedelta(seconds=seconds)
        made = optuna.trial.create_trial(value=0.0)
        made.datetime_start, made.datetime_complete = start, end
        return made

    trials = [trial(10), trial(20)]
    assert time_left(trials, 8, 2, None) == "about 00:01:00 left"  # 8 * 15 / 2 seconds
    assert time_left(trials, 8, 2, 5.0) == "about 00:00:05 left"
    assert time_left(trials, 0, 1, None) == "0 s left"
    assert time_left(trials, 86400, 1, None) == "about 15.0 days left"


@pytest.mark.parametrize(
    "storage", ["nothing", "sqlite:////nonexistent/x.db", "/nonexistent/x.log", "nosuch://x", "{}/text.log", "{}/text.db"]
)
def test_storage_that_cannot_be_opened(storage, tmp_path):
    for name in ("text.log", "text.db"):
        (tmp_path / name).write_text("not a storage\n" * 100)
    storage = storage.format(tmp_path)
    storage = f"sqlite:///{storage}" if storage.endswith("text.db") else storage
    with pytest.raises(ValueError, match=r"storage '.*' could not be opened \(sqlite:///FILE\.db"):
        open_storage(storage)
