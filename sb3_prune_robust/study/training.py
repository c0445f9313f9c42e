"""The agent of a cell, trained as RL Zoo trains it, with checkpoints from which a killed training continues."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization, unwrap_vec_normalize

from sb3_prune_robust.attacks.base import Attack
from sb3_prune_robust.attacks.fitting import FittedAttack
from sb3_prune_robust.attacks.registry import expand, make_attack
from sb3_prune_robust.evaluation.identity import normal_form
from sb3_prune_robust.evaluation.rollouts import NoAttackError, rollout
from sb3_prune_robust.pruning import sparsity
from sb3_prune_robust.study.config import Study
from sb3_prune_robust.study.files import read_checked, write_checked
from sb3_prune_robust.tuning.algorithms import register_algorithms
from sb3_prune_robust.tuning.entries import with_lipschitz

CHECKPOINT_SECONDS = 60.0  # of wall time: what a kill costs at most
_MODEL, _STATISTICS, _BUFFER, _ABOUT = "model.zip", "vecnormalize.pkl", "replay_buffer.pkl", "about.json"
FINAL = "final"
_TRIED_EPS = 0.01  # whether an attack covers a victim does not depend on it
_SEED_OF_RESUMED = 2**28  # far from the seeds of held-out episodes

Entry = dict[str, Any]
Say = Callable[[str, float], object]


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint is not whole; the training continues from an earlier one, or from its start."""


class UncoveredAttackWarning(UserWarning):
    """An attack of the strong stage does not cover a kind of agent."""


@dataclass(frozen=True)
class Trained:
    """
    A trained agent.

    :param model: the SB3 model
    :param venv: environments to evaluate it in, with its frozen VecNormalize statistics
    :param about: how it was trained: timesteps, CPU seconds, how often resumed, sparsities, digest of the model's file
    """

    model: Any
    venv: VecEnv
    about: dict[str, Any]


def make_entry(key: Mapping[str, Any]) -> Entry:
    """
    The hyperparameters of a cell as RL Zoo takes them.

    :param key: as :meth:`~sb3_prune_robust.study.config.Study.key` gives it
    :return: the environment's entry with the cell's algorithm arguments, policy and pruning
    """
    cell = key["cell"]
    entry = {**key["entry"], **key["algorithm"]}
    entry |= _policy(cell["env"], cell["algorithm"], key["policy"], entry.get("policy_kwargs"))
    if cell["sparsity"]:
        arguments = {
            "final_sparsity": cell["sparsity"],
            **{name: cell[name] for name in ("scores", "distribution", "schedule")},
        }
        entry["callback"] = [{"sb3_prune_robust.pruning.PruningCallback": arguments}]
    return entry


def _policy(env: str, algorithm: str, policy: Mapping[str, Any], policy_kwargs: Any) -> Entry:
    if "lipschitz" not in policy:
        return {"policy": "MlpLstmPolicy" if algorithm == "ppo_lstm" else "MlpPolicy"}
    discrete = not isinstance(gym.make(env).action_space, spaces.Box)
    kinds = (("sac", "SAC"), ("td3", "TD3"), ("ddpg", "TD3"), ("dqn", "DQN"))
    kind = next((kind for name, kind in kinds if algorithm.endswith(name)), "Categorical" if discrete else "Gaussian")
    name = f"sb3_prune_robust.policies.Lipschitz{kind}Policy"
    return {"policy": name, "policy_kwargs": with_lipschitz(policy_kwargs, policy["lipschitz"])}


def train(key: Mapping[str, Any], folder: Path, n_envs: int, on_progress: Say = lambda what, share: None) -> Trained:
    """
    Train the agent of a cell, or continue its training, or load it if it is trained.

    :param key: as :meth:`~sb3_prune_robust.study.config.Study.key` gives it
    :param folder: of its checkpoints
    :param n_envs: environments to evaluate it in
    :param on_progress: told what is done, and its share
    :return: the agent
    """
    register_algorithms()
    started, key = time.process_time(), normal_form(key)
    for left_over in folder.glob(".*.tmp"):  # of a worker that was killed while it saved
        shutil.rmtree(left_over, ignore_errors=True)
    checkpoint = newest(folder, key)
    manager, model = _set_up(key, checkpoint)
    about: dict[str, Any] = {"cpu_seconds": 0.0, "resumed": 0} if checkpoint is None else read_checked(checkpoint / _ABOUT)
    if checkpoint is None or checkpoint.name != FINAL:
        about = {**about, "key": key, "resumed": about["resumed"] + (checkpoint is not None)}
        saver = _Checkpoints(folder, about, started, manager.n_timesteps, on_progress)
        steps = max(0, manager.n_timesteps - model.num_timesteps)
        model.learn(steps, callback=[*manager.callbacks, saver], reset_num_timesteps=checkpoint is None)
        about = saver.save(FINAL)
        _remove_all_but(folder, FINAL)
    venv = manager.create_envs(n_envs, eval_env=True, no_log=True)
    sync_envs_normalization(model.get_env(), venv)
    model.get_env().close()
    return Trained(model, venv, {name: value for name, value in about.items() if name not in ("key", "files")})


def check_kinds(study: Study) -> None:
    """
    Set up each kind of training and try each attack on it, so that what cannot work is said before hours are spent on others.

    Attacks that learn are not fitted for that: they are asked whom they cover. A strong attack that does not cover a kind is
    warned of, since all else of the study can be done.

    :param study: the study
    :raises ValueError: with the environment, algorithm and policy, and what is wrong
    """
    register_algorithms()
    kinds = {(cell.env, cell.algorithm, cell.policy): study.key(cell) for cell in study.cells}
    for kind, key in kinds.items():
        _check_kind(", ".join(kind), key, study)


def _check_kind(name: str, key: Mapping[str, Any], study: Study) -> None:
    try:
        model = _set_up(key, None)[1]
    except Exception as error:  # whatever an entry can make the zoo and SB3 raise
        raise ValueError(f"{name} cannot be trained: {_said(error)}") from error
    short = expand(study.evaluation.attacks)
    for attack in dict.fromkeys((*short, *expand(study.strong.attacks if study.strong else ()))):
        try:
            _try_attack(make_attack(attack, _TRIED_EPS, study.evaluation.norm, seed=0, deterministic=True), model)
        except Exception as error:  # of an environment of the user's, too
            what = f"{name} cannot be attacked by {attack}: {_said(error)}"
            if attack in short:
                raise ValueError(what) from error
            warnings.warn(f"{what}; strong cells of this kind will fail", UncoveredAttackWarning, stacklevel=3)
    model.get_env().close()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _try_attack(attack: Attack, model: Any) -> None:
    venv = model.get_env()
    if isinstance(attack, FittedAttack):
        attack.check(model, venv)
    else:
        with contextlib.suppress(NoAttackError):  # an untrained agent may give it nothing to change
            rollout(model, venv, venv.num_envs, attack=attack, deterministic=True, max_steps=1)


def _set_up(key: Mapping[str, Any], checkpoint: Path | None) -> tuple[Any, Any]:
    """RL Zoo's manager with its callbacks, and the model: new, or as the checkpoint has it."""
    cell = key["cell"]
    with (
        tempfile.TemporaryDirectory() as place,
        contextlib.redirect_stdout(io.StringIO()),
    ):  # the zoo prints whatever verbose is
        config = Path(place) / "entry.yml"
        config.write_text(yaml.safe_dump({cell["env"]: make_entry(key)}))
        quiet: dict[str, Any] = dict(eval_freq=-1, verbose=0, seed=cell["seed"], device="cpu", config=str(config))
        manager: Any = ExperimentManager(argparse.Namespace(), cell["algorithm"], cell["env"], place, **quiet)
        model: Any = manager.setup_experiment()[0]
    return manager, model if checkpoint is None else _loaded(cell, checkpoint, model.get_env())


def _loaded(cell: Mapping[str, Any], checkpoint: Path, venv: VecEnv) -> Any:
    statistics = unwrap_vec_normalize(venv)
    if statistics is not None:
        kept = VecNormalize.load(str(checkpoint / _STATISTICS), statistics.venv)
        statistics.obs_rms, statistics.ret_rms = kept.obs_rms, kept.ret_rms
    model: Any = ALGOS[cell["algorithm"]].load(checkpoint / _MODEL, env=venv, device="cpu")
    if (checkpoint / _BUFFER).exists():
        model.load_replay_buffer(checkpoint / _BUFFER)
    # Random numbers are not kept: those of the start again would repeat the noise and the episodes that were seen.
    model.set_random_seed(cell["seed"] + model.num_timesteps + _SEED_OF_RESUMED)
    return model


class _Checkpoints(BaseCallback):
    """Keeps the agent as it is between rollouts, every minute, and tells of progress."""

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        started: float,
        n_timesteps: int,
        on_progress: Callable[[str, float], object],
    ) -> None:
        super().__init__()
        self.folder, self.about, self.started, self.on_progress = folder, about, started, on_progress
        self.n_timesteps, self.saved = n_timesteps, time.time()

    def _on_step(self) -> bool:
        self.on_progress("training", min(1.0, self.num_timesteps / self.n_timesteps))
        return True

    def _on_rollout_start(self) -> None:
        if time.time() - self.saved >= CHECKPOINT_SECONDS:
            name = f"{self.model.num_timesteps:012d}"
            self.save(name)
            _remove_all_but(self.folder, name)
            self.saved = time.time()

    def save(self, name: str) -> dict[str, Any]:
        """Keep the agent: a folder that is there whole or not at all."""
        place = self.folder / f".{name}.{os.getpid()}.tmp"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            about = self._write(place, name == FINAL)
            shutil.rmtree(self.folder / name, ignore_errors=True)  # a damaged one
            os.replace(place, self.folder / name)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return about

    def _write(self, place: Path, final: bool) -> dict[str, Any]:
        self.model.save(place / _MODEL)
        statistics = unwrap_vec_normalize(self.training_env)
        if statistics is not None:
            statistics.save(str(place / _STATISTICS))
        if isinstance(self.model, OffPolicyAlgorithm) and not final:
            self.model.save_replay_buffer(place / _BUFFER)
        about = {
            **self.about,
            "timesteps": int(self.model.num_timesteps),
            "cpu_seconds": self.about["cpu_seconds"] + time.process_time() - self.started,
            "sparsity": {part: share for part, share in sparsity(self.model).items() if part != "layers"},
            "sha256": _sha256(place / _MODEL),
            "files": {path.name: _sha256(path) for path in sorted(place.iterdir())},
        }
        write_checked(place / _ABOUT, about)
        return about


def newest(folder: Path, key: Mapping[str, Any]) -> Path | None:
    """
    The newest checkpoint that is whole and of this training; the finished agent is the newest of all.

    :param folder: of the checkpoints
    :param key: of the training, as JSON gives it back
    :return: its folder, ``None`` if there is none
    """
    places = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    for place in sorted(places, key=lambda path: (path.name == FINAL, path.name), reverse=True):
        try:
            _check(place, key)
            return place
        except (OSError, ValueError) as error:
            text = f"checkpoint {place} is damaged or of another training, so it is not used: {error}"
            warnings.warn(text, DamagedCheckpointWarning, stacklevel=2)
    return None


def _check(place: Path, key: Mapping[str, Any]) -> None:
    about = read_checked(place / _ABOUT)
    if about.get("key") != key or _MODEL not in about.get("files", {}):
        raise ValueError("it is of another training")
    for name, expected in about["files"].items():
        if _sha256(place / name) != expected:
            raise ValueError(f"{name} does not have its checksum")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _remove_all_but(folder: Path, name: str) -> None:
    for path in folder.glob("*"):
        if path.name != name and not path.name.endswith(".tmp"):
            shutil.rmtree(path, ignore_errors=True)
