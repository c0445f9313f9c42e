"""
RL Zoo: what ``--gym-packages sb3_prune_robust.zoo`` imports, and runs of the zoo as they were trained.

Importing this module makes the zoo know this package's algorithms, its ``-optimize`` tune this package's hyperparameters
(:func:`~.tuning.register`), and the zoo save VecNormalize's statistics with its checkpoints (:func:`keep_statistics`). For the
names after ``--algo`` that is too late in ``rl_zoo3.train`` and ``rl_zoo3.enjoy``: ``sb3-prune-robust train`` and ``enjoy``
import this module first.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from huggingface_sb3 import EnvironmentName  # type: ignore[import-untyped, unused-ignore]
from rl_zoo3.callbacks import SaveVecNormalizeCallback
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, create_test_env, get_model_path, get_saved_hyperparams
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage, unwrap_vec_normalize

from sb3_prune_robust import tuning

CHECKPOINT, STATISTICS = "rl_model", "vecnormalize"  # how files of a checkpoint begin: the zoo's name, and ours


@dataclass(frozen=True)
class Which:
    """
    Which model of which run, as the flags of ``rl_zoo3.enjoy`` say it.

    :param algo: the zoo's name of the algorithm
    :param env: environment id
    :param folder: log folder
    :param exp_id: number of the run; 0: the latest, -1: files lie in the folder of the algorithm itself
    :param load_best: ``best_model.zip``, the best in evaluations during training; with the run's last statistics of
        VecNormalize, as in the zoo, which keeps no others
    :param load_checkpoint: the checkpoint after so many steps, with its own statistics where this package saved them
    :param load_last_checkpoint: the last checkpoint, likewise
    """

    algo: str
    env: str
    folder: str = "logs"
    exp_id: int = 0
    load_best: bool = False
    load_checkpoint: int | None = None
    load_last_checkpoint: bool = False


@dataclass(frozen=True)
class Run:
    """
    A trained agent and environments like those it was trained in.

    :param model: the model, on the CPU
    :param env: environments on ``DummyVecEnv`` with the run's wrappers, its VecNormalize statistics (frozen) and frame stack
    :param path: the model's file
    """

    model: Any
    env: VecEnv
    path: Path


def load_run(which: Which, n_envs: int = 1, seed: int = 0, env_kwargs: dict[str, Any] | None = None) -> Run:
    """
    A run of the zoo, by the zoo's own functions. This runs code: models hold pickled code, ``config.yml`` may name any.

    :param which: the run
    :param n_envs: how many environments
    :param seed: of the environments
    :param env_kwargs: arguments of the environment, over those of the run
    :return: model and environments
    :raises ValueError: if there is no such algorithm, environment, run or model, or it cannot be loaded
    """
    if which.algo not in ALGOS:
        raise ValueError(f"algo {which.algo!r} is unknown to RL Zoo; known: {', '.join(ALGOS)}")
    if which.env not in gym.envs.registry:
        close = "".join(f", maybe you meant {one}" for one in difflib.get_close_matches(which.env, gym.envs.registry, n=1))
        raise ValueError(f"env {which.env!r} is not registered{close}; environments of other packages need --gym-packages")
    path, folder = _find(which)
    with contextlib.redirect_stdout(sys.stderr):  # the zoo says what it loads
        env, hyperparams = _environments(which, folder, n_envs, seed, env_kwargs or {})
        _take_statistics(env, folder / EnvironmentName(which.env), path)
        return Run(_model(which, path, env, hyperparams), env, path)


def plays_mode(env_id: str) -> bool:
    """Whether the zoo plays the mode of policies in this environment, rather than samples, when nothing is said."""
    return not (ExperimentManager.is_atari(env_id) or ExperimentManager.is_minigrid(env_id))


def _find(which: Which) -> tuple[Path, Path]:
    """The model's file and the run's folder."""
    name = EnvironmentName(which.env)
    checkpoint: Any = which.load_checkpoint
    chosen = (which.load_best, checkpoint, which.load_last_checkpoint)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _, path, folder = get_model_path(which.exp_id, which.folder, which.algo, name, *chosen)
    except (AssertionError, ValueError) as error:
        raise ValueError(_what_is_missing(which, name, str(error))) from error
    return Path(path), Path(folder)


def _what_is_missing(which: Which, name: str, error: str) -> str:
    of_algorithm = Path(which.folder) / which.algo
    runs = sorted(path.name for path in of_algorithm.glob(f"{name}_*") if path.is_dir())
    there = f"runs of {which.algo} on {which.env} there: {', '.join(runs) or 'none'}"
    if not of_algorithm.is_dir() or (not runs and which.exp_id >= 0):
        return f"folder {which.folder}: {there}"
    if which.exp_id > 0 and f"{name}_{which.exp_id}" not in runs:
        return f"exp-id {which.exp_id} was not found in {which.folder}; {there}"
    if which.load_best:
        return (
            "load-best: the run has no best_model.zip, which evaluations during training write: it was trained with "
            f"--eval-freq off, or for fewer steps than that ({error})"
        )
    if which.load_checkpoint is not None or which.load_last_checkpoint:
        return f"load-checkpoint: the run has no such checkpoint, which training with --save-freq writes ({error})"
    return f"the run has no final model: was its training cut short? --load-best or --load-last-checkpoint may help ({error})"


def _environments(
    which: Which, folder: Path, n_envs: int, seed: int, env_kwargs: dict[str, Any]
) -> tuple[VecEnv, dict[str, Any]]:
    settings = folder / EnvironmentName(which.env)
    if not (settings / "config.yml").is_file():
        raise ValueError(
            f"{settings / 'config.yml'} is missing: how the run wrapped and normalised its environments is not known"
        )
    hyperparams, statistics = get_saved_hyperparams(str(settings), norm_reward=False, test_mode=True)
    kwargs = {**_env_kwargs(settings, hyperparams.pop("env_kwargs", None)), **env_kwargs}
    try:
        env = create_test_env(
            which.env,
            n_envs=n_envs,
            stats_path=statistics,
            seed=seed,
            should_render=False,
            hyperparams=hyperparams,
            env_kwargs=kwargs,
            vec_env_cls=DummyVecEnv,
        )
    except (gym.error.Error, ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"env {which.env} of the run cannot be made: {error}") from error
    space: Any = env.observation_space
    if is_image_space(space) and not is_image_space_channels_first(space):
        env = VecTransposeImage(env)  # as SB3 did in training: attacks act on what the policy receives
    return env, hyperparams


def _take_statistics(env: VecEnv, settings: Path, path: Path) -> None:
    """Those saved with a checkpoint: the run's own are of the agent that trained on."""
    file = settings / path.with_suffix(".pkl").name.replace(CHECKPOINT, STATISTICS)
    normalizer = unwrap_vec_normalize(env)
    if normalizer is not None and path.name.startswith(CHECKPOINT) and file.is_file():
        saved = VecNormalize.load(str(file), normalizer.venv)
        normalizer.obs_rms, normalizer.ret_rms = saved.obs_rms, saved.ret_rms


def _env_kwargs(settings: Path, of_config: dict[str, Any] | None) -> dict[str, Any]:
    """Those of the entry, or of training's command line, which the zoo lets replace them."""
    arguments = settings / "args.yml"
    if arguments.is_file():
        given = yaml.load(arguments.read_text(), Loader=yaml.UnsafeLoader).get("env_kwargs")
        if given is not None:
            return dict(given)
    return dict(of_config or {})


def _model(which: Which, path: Path, env: VecEnv, hyperparams: dict[str, Any]) -> Any:
    kwargs: dict[str, Any] = {"device": "cpu"}
    if issubclass(ALGOS[which.algo], OffPolicyAlgorithm):
        kwargs.update(buffer_size=1)  # no memory is needed to play
        if "optimize_memory_usage" in hyperparams:
            kwargs.update(optimize_memory_usage=False)
    if "HerReplayBuffer" in str(hyperparams.get("replay_buffer_class", "")):
        kwargs["env"] = env
    constants = {"learning_rate": 0.0, "lr_schedule": _zero, "clip_range": _zero}  # as in enjoy: schedules of another Python
    try:
        return ALGOS[which.algo].load(path, custom_objects=constants, **kwargs)
    except Exception as error:  # whatever a broken or foreign file makes zipfile, pickle, torch and SB3 raise
        raise ValueError(f"model {path} could not be loaded as {which.algo}: {error}") from error


def _zero(_: float) -> float:
    return 0.0


def keep_statistics() -> None:
    """
    Make the zoo save VecNormalize's statistics with its checkpoints (``--save-freq``): the latest where ``-i`` looks for them,
    and those of each checkpoint, which :func:`load_run` takes.

    By itself it saves them with a new best model and at the end, so that a training that was killed would continue with
    those of nobody. May be called again.
    """
    original = ExperimentManager.create_callbacks
    if hasattr(original, "__wrapped__"):
        return

    create: Any = original

    @functools.wraps(original)
    def create_callbacks(self: Any) -> None:
        create(self)
        if self.normalize and self.save_freq > 0:
            for prefix in (None, STATISTICS):
                self.callbacks.append(SaveVecNormalizeCallback(self.save_freq, self.params_path, name_prefix=prefix))

    ExperimentManager.create_callbacks = create_callbacks  # type: ignore[method-assign]


tuning.register()
keep_statistics()
