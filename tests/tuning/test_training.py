"""A trial in earnest, and the command as a user types it."""

import optuna
import pytest
import torch as th
import yaml
from optuna.trial import FixedTrial
from stable_baselines3.common.callbacks import BaseCallback

from sb3_prune_robust import sparsity
from sb3_prune_robust.cli import main
from sb3_prune_robust.evaluation.rollouts import rollout
from sb3_prune_robust.tuning import training as module
from sb3_prune_robust.tuning.command import Request
from sb3_prune_robust.tuning.settings import FIRST_SEED, TuneSettings
from sb3_prune_robust.tuning.study import PRUNERS, SAMPLERS
from sb3_prune_robust.tuning.training import Report, Score, Training, check_training, run_trial

SETTINGS = TuneSettings("ppo", "CartPole-v1", eps=0.5, weight=0.25, timesteps=1024, n_episodes=4)
TUNE = ["tune", "--algo", "ppo", "--env", "CartPole-v1", "--eps", "0.1"]


@pytest.fixture(autouse=True)
def one_thread():
    th.set_num_threads(1)


def test_value():
    assert Score(100.0, 60.0, 0.25).value == 90.0
    assert Score(100.0, None, 0.0).value == 100.0


@pytest.fixture(scope="module")
def run():
    trial = FixedTrial({})
    reported, steps = [], []
    trial.report = lambda value, step: reported.append((step, value))
    return trial, run_trial(trial, SETTINGS, SETTINGS.entry, 3, steps.append), reported, steps


def test_trial_reports_and_records(run):
    trial, value, reported, steps = run
    assert [step for step, _ in reported] == [1, 2, 3, 4]
    assert sum(steps) == 1024
    attributes = trial.user_attrs
    assert value == 0.75 * attributes["clean"] + 0.25 * attributes["attacked"]
    assert attributes["attacked"] != attributes["clean"]
    assert attributes["sparsity"] == pytest.approx(0.7, abs=0.001)


def test_evaluation_leaves_training_as_it_is(run, tmp_path):
    """The same training, not evaluated on the way, ends with the same return, by SB3's own means of seeding."""
    training = Training(SETTINGS, SETTINGS.entry, 3, tmp_path)
    training.model.learn(1024, callback=training.manager.callbacks)
    score = training.evaluate()
    assert (score.clean, score.attacked) == (run[0].user_attrs["clean"], run[0].user_attrs["attacked"])
    alone = rollout(training.model.policy, training.venv, 4, deterministic=True, seed=FIRST_SEED)
    assert score.clean == alone.returns.mean()
    assert sparsity(training.model)["actor"] == run[0].user_attrs["sparsity"]
    training.close()


def test_normalised_statistics_are_those_of_training(tmp_path):
    settings = TuneSettings("ppo", "Pendulum-v1", eps=0.1, weight=0.0, n_episodes=1)
    training = Training(settings, {**settings.entry, "n_steps": 16}, 0, tmp_path)
    training.model.learn(256)
    score = training.evaluate()
    assert score.attacked is None and -2000 < score.clean < 0  # raw: no normalised return is as low
    assert (training.venv.obs_rms.mean == training.model.get_env().obs_rms.mean).all()
    assert training.model.get_env().training and training.model.get_env().norm_reward
    training.close()


def test_training_under_attack_is_evaluated_on_the_way(tmp_path):
    under_attack = {"sb3_prune_robust.attacks.AdversarialTrainingCallback": {"attack": "random", "eps": 0.1}}
    settings = TuneSettings("ppo", "Pendulum-v1", eps=0.1, weight=0.5, n_episodes=1)
    training = Training(settings, {**settings.entry, "n_steps": 16, "callback": [under_attack]}, 0, tmp_path)
    scores = []

    class Evaluation(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            scores.append((training.evaluate(), type(self.training_env).__name__))

    training.model.learn(256, callback=[*training.manager.callbacks, Evaluation()])
    assert {name for _, name in scores} == {"TrainingAdversary"} and scores[0][0].attacked != scores[0][0].clean
    training.close()


def test_hopeless_training_is_stopped(tmp_path):
    training, steps = Training(SETTINGS, SETTINGS.entry, 0, tmp_path), []
    trial = FixedTrial({})
    trial.should_prune = lambda: True
    report = Report(training, trial, steps.append)
    training.learn(report)
    assert report.stopped and report.n_reports == 1 and sum(steps) == 208  # the first step of eight past a fifth of 1024
    training.close()
    trial = FixedTrial({})
    trial.should_prune = lambda: True
    with pytest.raises(optuna.TrialPruned):
        run_trial(trial, SETTINGS, SETTINGS.entry, 0, steps.append)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_stepss": 5}, r"TypeError: .*unexpected keyword argument 'n_stepss'"),
        (
            {"callback": [{"sb3_prune_robust.pruning.PruningCallback": {"final_sparsity": 2}}]},
            r"ValueError: final_sparsity must",
        ),
        ({"policy_kwargs": {"lipschitz": -1}}, r"ValueError: lipschitz must be a positive"),
        ({"policy": "no.such.Policy"}, r"ModuleNotFoundError: No module named 'no'"),
    ],
)
def test_entry_that_cannot_be_trained(changes, message):
    with pytest.raises(ValueError, match=rf"the entry for CartPole-v1 cannot be tuned: {message}"):
        check_training(SETTINGS, {**SETTINGS.entry, **changes})


def test_attack_that_cannot_be_carried_out(monkeypatch):
    def refuse(*args, **kwargs):
        raise TypeError("no gradient here")

    monkeypatch.setattr(module, "make_attack", refuse)
    with pytest.raises(ValueError, match=r"cannot be tuned: TypeError: no gradient here"):
        check_training(SETTINGS, SETTINGS.entry)


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--timesteps", "512", "--episodes", "2", "--n-trials", "2", "--storage", "sqlite:///t.db"]
    assert main([*TUNE, *small]) == 0
    printed = capsys.readouterr().out
    assert "trial 1: " in printed and "2 of 2 done, 0 s left" in printed and "Written to tuned.yml" in printed
    study = optuna.load_study(study_name="ppo-CartPole-v1", storage="sqlite:///t.db")
    text = (tmp_path / "tuned.yml").read_text()
    assert (
        f"sb3-prune-robust {' '.join(TUNE)}" in text and f"Trial {study.best_trial.number}: {study.best_value:.1f} (" in text
    )
    entry, best = yaml.safe_load(text)["CartPole-v1"], study.best_trial.params
    assert entry["policy_kwargs"]["lipschitz"] == best["lipschitz"] and entry["n_timesteps"] == 512
    assert entry["learning_rate"] == f"lin_{best['learning_rate']!r}"
    assert entry["callback"][0]["sb3_prune_robust.pruning.PruningCallback"]["final_sparsity"] == best["final_sparsity"]
    value = run_trial(FixedTrial({}), TuneSettings(**settings()), entry, study.best_trial.number, lambda n: None)
    assert value == study.best_value  # what is written gives what was measured


def settings():
    return dict(algo="ppo", env="CartPole-v1", eps=0.1, timesteps=512, n_episodes=2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--algo", "ars"], "algo 'ars' is unknown"),
        (["--storage", "sqlite:////nonexistent/x.db"], "storage 'sqlite:////nonexistent/x.db' could not be opened"),
        (["--out", "/nonexistent/x.yml"], "out /nonexistent/x.yml must be a file in a folder that exists"),
        (["--seed", "-1"], "seed must be at least 0"),
    ],
)
def test_wrong_options(wrong, message, capsys):
    assert main([*TUNE, *wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sb3-prune-robust tune: error: {message}") and error.count("\n") == 1


@pytest.mark.parametrize(
    "wrong", [["--sampler", "grid"], ["--pruner", "x"], ["--n-trials", "0"], ["--timeout", "-1"], ["--eps", "x"]]
)
def test_options_that_the_parser_refuses(wrong, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*TUNE, *wrong])
    assert exit_.value.code == 2 and f"argument {wrong[0]}" in capsys.readouterr().err


def test_every_trial_failed(monkeypatch, capsys, tmp_path):
    def fail(*args):
        raise ValueError("diverged")

    monkeypatch.setattr("sb3_prune_robust.tuning.study.run_trial", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SystemExit, match=r"tune: error: no trial of study .* all 2 failed, the last with ValueError: diverged"
    ):
        main([*TUNE, "--n-trials", "2"])
    assert not (tmp_path / "tuned.yml").exists()


def test_choices_of_the_parser_are_those_there_are(capsys):
    for name, choices in (("--sampler", SAMPLERS), ("--pruner", PRUNERS)):
        with pytest.raises(SystemExit):
            main([*TUNE, name, "?"])
        assert f"choose from {', '.join(choices)}" in capsys.readouterr().err.replace("'", "")


def test_out_must_not_be_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"must be a file in a folder that exists"):
        Request(tmp_path)
