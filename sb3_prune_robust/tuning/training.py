"""One trial: an entry trained as RL Zoo trains it, and evaluated clean and attacked on the way and at the end."""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_prune_robust.attacks import make_attack
from sb3_prune_robust.attacks.adversarial_training import without_adversary
from sb3_prune_robust.evaluation.rollouts import rollout
from sb3_prune_robust.pruning import sparsity
from sb3_prune_robust.tuning.settings import FIRST_SEED, TuneSettings

N_REPORTS = 5  # evaluations of a trial, the last at its end
ENVS_AT_MOST = 8
ALIVE_SECONDS = 30.0


@dataclass(frozen=True)
class Score:
    """
    What a policy achieved.

    :param clean: mean raw return
    :param attacked: mean raw return of the same episodes under attack; ``None``: weight 0, there was no attack
    :param weight: of the attacked return
    """

    clean: float
    attacked: float | None
    weight: float

    @property
    def value(self) -> float:
        """What is maximised."""
        return self.clean if self.attacked is None else (1 - self.weight) * self.clean + self.weight * self.attacked


class Training:
    """
    An entry set up as the zoo does it: model, environments, callbacks.

    :param settings: what is tuned
    :param entry: the entry, as a YAML file holds it
    :param seed: of training
    :param folder: where the zoo may write
    """

    def __init__(self, settings: TuneSettings, entry: Mapping[str, Any], seed: int, folder: Path) -> None:
        self.settings = settings
        config = folder / "entry.yml"
        config.write_text(yaml.safe_dump({settings.env: dict(entry)}))
        with contextlib.redirect_stdout(io.StringIO()):  # the zoo prints whatever verbose is
            self.manager = ExperimentManager(
                argparse.Namespace(),
                settings.algo,
                settings.env,
                str(folder),
                eval_freq=-1,
                verbose=0,
                seed=seed,
                device="cpu",
                config=str(config),
            )
            self.model: Any = self.manager.setup_experiment()[0]  # type: ignore[index]
            self.venv: VecEnv = self.manager.create_envs(min(settings.n_episodes, ENVS_AT_MOST), eval_env=True)

    def evaluate(self) -> Score:
        """Play the held-out episodes: the same for every trial and evaluation, and seen by no training."""
        sync_envs_normalization(without_adversary(self.model.get_env()), self.venv)
        settings = self.settings
        play: dict[str, Any] = dict(n_episodes=settings.n_episodes, deterministic=True, seed=FIRST_SEED)
        clean = float(rollout(self.model.policy, self.venv, **play).returns.mean())
        if settings.weight == 0:
            return Score(clean, None, 0.0)
        attack = make_attack(settings.attack, settings.eps, seed=FIRST_SEED, deterministic=True)
        attacked = rollout(self.model.policy, self.venv, attack=attack, **play)
        return Score(clean, float(attacked.returns.mean()), settings.weight)

    def probe(self) -> None:
        """One step of the evaluation, untrained: what cannot be attacked is refused before a trial is spent on it."""
        play: dict[str, Any] = dict(n_episodes=1, deterministic=True, seed=FIRST_SEED, max_steps=1)
        rollout(self.model.policy, self.venv, **play)
        if self.settings.weight > 0:
            attack = make_attack(self.settings.attack, self.settings.eps, seed=FIRST_SEED, deterministic=True)
            attack(self.model.policy, np.asarray(self.venv.reset()))

    def learn(self, report: BaseCallback) -> None:
        """Train to the end, or until ``report`` stops it."""
        self.model.learn(self.manager.n_timesteps, callback=CallbackList([*self.manager.callbacks, report]))

    def close(self) -> None:
        """Close the environments."""
        self.model.get_env().close()
        self.venv.close()


class Report(BaseCallback):
    """
    Tells a trial its value at equal parts of training, and stops a training that the study's pruner calls hopeless.

    :param training: the training
    :param trial: the Optuna trial
    :param on_steps: called with the number of new environment steps
    """

    def __init__(self, training: Training, trial: optuna.Trial, on_steps: Callable[[int], object]) -> None:
        super().__init__()
        self.training, self.trial, self.on_steps = training, trial, on_steps
        self.n_reports, self.stopped, self._seen = 0, False, 0.0

    def _on_step(self) -> bool:
        self.on_steps(self.training_env.num_envs)
        if time.time() - self._seen > ALIVE_SECONDS:
            self._seen = time.time()
            self.trial.set_user_attr("seen", self._seen)
        share = self.num_timesteps / self.training.manager.n_timesteps
        if not self.n_reports + 1 <= share * N_REPORTS < N_REPORTS:
            return True
        self.n_reports = int(share * N_REPORTS)
        self.trial.report(self.training.evaluate().value, self.n_reports)
        self.stopped = self.trial.should_prune()
        return not self.stopped


def run_trial(
    trial: optuna.Trial, settings: TuneSettings, entry: Mapping[str, Any], seed: int, on_steps: Callable[[int], object]
) -> float:
    """
    Train and evaluate.

    :param trial: the Optuna trial; told how it goes, and the clean and attacked return and sparsity at the end
    :param settings: what is tuned
    :param entry: the entry with the trial's values
    :param seed: of training
    :param on_steps: as :class:`Report`
    :return: the value
    :raises optuna.TrialPruned: if the study's pruner stopped it
    """
    with tempfile.TemporaryDirectory() as folder:
        training = Training(settings, entry, seed, Path(folder))
        try:
            report = Report(training, trial, on_steps)
            training.learn(report)
            if report.stopped:
                raise optuna.TrialPruned
            score = training.evaluate()
        finally:
            training.close()
    trial.set_user_attr("clean", score.clean)
    trial.set_user_attr("attacked", score.attacked)
    trial.set_user_attr("sparsity", sparsity(training.model)["actor"])
    return score.value


def check_training(settings: TuneSettings, entry: Mapping[str, Any]) -> None:
    """
    Set an entry up and attack one observation, so that what cannot work is said before the first trial.

    :param settings: what is tuned
    :param entry: the entry to start from
    :raises ValueError: with what is wrong
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            training = Training(settings, entry, 0, Path(folder))
            training.probe()
        except Exception as error:  # whatever an entry can make the zoo, SB3 and attacks raise
            what = " ".join(str(error).split())
            raise ValueError(f"the entry for {settings.env} cannot be tuned: {type(error).__name__}: {what}") from error
        training.close()
