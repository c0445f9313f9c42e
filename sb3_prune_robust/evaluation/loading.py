"""Agents and environments from what a user has: model files, VecNormalize files, environment ids."""

from __future__ import annotations

import functools
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

ALGORITHMS: dict[str, Any] = {"ppo": PPO, "a2c": A2C, "trpo": TRPO}


def load_model(path: str | Path, algorithm: str | None = None) -> Any:
    """
    Load an SB3 PPO, A2C or TRPO model on the CPU. The file is read only.

    :param path: the zip file
    :param algorithm: ``"ppo"``, ``"a2c"`` or ``"trpo"``; ``None``: told from the file
    :return: the model
    :raises ValueError: if the file is missing, cut short, not an SB3 model, or of another algorithm
    """
    path = Path(path)
    name = guess_algorithm(path) if algorithm is None else algorithm
    if name not in ALGORITHMS:
        raise ValueError(f"algo {name!r} is unknown; known: {', '.join(ALGORITHMS)}")
    try:
        return ALGORITHMS[name].load(path, device="cpu")
    except Exception as error:  # whatever a broken file makes zipfile, pickle, torch and SB3 raise
        raise ValueError(f"model {path} could not be loaded as {name}: {_first_line(error)}") from error


def guess_algorithm(path: Path) -> str:
    """
    The algorithm that saved a model file, told from the settings in it.

    :param path: the zip file
    :return: ``"ppo"``, ``"a2c"`` or ``"trpo"``
    :raises ValueError: if it is not a whole SB3 model, or of another algorithm
    """
    settings = _settings(path)
    if "gae_lambda" not in settings:
        raise ValueError(
            f"model {path} is not of PPO, A2C or TRPO (an off-policy algorithm, it seems: no gae_lambda); only those have "
            "the state-independent action distribution that the certificates cover"
        )
    policy = str(settings.get("policy_class", ""))
    if "_last_lstm_states" in settings or "Recurrent" in policy or "Maskable" in policy:
        raise ValueError(f"model {path} has a recurrent or maskable policy; only PPO, A2C and TRPO are covered")
    if "cg_max_steps" in settings:
        return "trpo"
    return "ppo" if "clip_range" in settings else "a2c"


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"model {path} does not exist or is not a file")
    try:
        with zipfile.ZipFile(path) as archive:
            settings: dict[str, Any] = json.loads(archive.read("data"))
            damaged = archive.testzip()
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise ValueError(f"model {path} is not an SB3 model file, or is cut short: {_first_line(error)}") from error
    if damaged is not None:
        raise ValueError(f"model {path} is damaged: its member {damaged!r} fails its checksum")
    return settings


def make_env(
    env: str | Callable[[], gym.Env[Any, Any]], n_envs: int = 1, vec_normalize: str | Path | None = None
) -> DummyVecEnv | VecNormalize:
    """
    Environments for evaluation.

    :param env: a registered id, or a function that makes an environment
    :param n_envs: how many
    :param vec_normalize: a file of VecNormalize statistics, to be applied frozen; ``None``: no normalisation
    :return: the environments
    :raises ValueError: for an unknown id, or a statistics file that is broken or of another environment
    """
    if n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, got {n_envs!r}")
    venv = DummyVecEnv([functools.partial(make_single, env)] * n_envs)
    return venv if vec_normalize is None else _load_normalizer(Path(vec_normalize), venv)


def make_single(env: str | Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """
    One environment.

    :param env: a registered id, or a function that makes an environment
    :return: the environment
    :raises ValueError: for an id that gymnasium does not know or cannot make
    """
    if not isinstance(env, str):
        return env()
    try:
        return gym.make(env)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"env {env!r} cannot be made: {_first_line(error)}") from error


def _load_normalizer(path: Path, venv: DummyVecEnv) -> VecNormalize:
    if not path.is_file():
        raise ValueError(f"vec-normalize {path} does not exist or is not a file")
    try:
        normalizer = VecNormalize.load(str(path), venv)
    except AssertionError as error:
        raise ValueError(
            f"vec-normalize {path} holds statistics of another environment (the shapes of the observations differ: "
            f"this one has {venv.observation_space.shape}): {_first_line(error)}"
        ) from error
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"vec-normalize {path} is not a VecNormalize file, or is cut short: {_first_line(error)}") from error
    if not isinstance(normalizer, VecNormalize):
        raise ValueError(f"vec-normalize {path} holds a {type(normalizer).__name__}, not a VecNormalize")
    if normalizer.action_space != venv.action_space:  # observations of the same shape prove little
        raise ValueError(
            f"vec-normalize {path} holds statistics of another environment: its actions are {normalizer.action_space}, "
            f"this one's {venv.action_space}"
        )
    normalizer.training = normalizer.norm_reward = False
    return normalizer


def check_spaces(model: Any, venv: VecEnv, name: str = "model") -> None:
    """
    :param model: an SB3 model
    :param venv: the environments it is to play
    :param name: what to call the model in the message
    :raises ValueError: unless the observations are a Box, and both spaces have the model's shapes
    """
    if not isinstance(model.observation_space, spaces.Box):
        raise ValueError(f"{name} observes a {type(model.observation_space).__name__}; only Box observations can be attacked")
    for what, ours, theirs in (
        ("observations", model.observation_space, venv.observation_space),
        ("actions", model.action_space, venv.action_space),
    ):
        if type(ours) is not type(theirs) or ours.shape != theirs.shape or getattr(ours, "n", 0) != getattr(theirs, "n", 0):
            raise ValueError(f"{name} was trained with {what} {ours}, env has {theirs}: not the environment of this model")


def horizon_of(venv: VecEnv) -> int | None:
    """The time limit of the environments in steps, ``None`` if they have none."""
    spec = venv.get_attr("spec")[0]
    return None if spec is None else spec.max_episode_steps


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
