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
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage

from sb3_prune_robust import defences

ALGORITHMS: dict[str, Any] = {
    "ppo": PPO,
    "a2c": A2C,
    "trpo": TRPO,
    "ppo_lstm": RecurrentPPO,
    "ppo_mask": MaskablePPO,
    "sac": SAC,
    "td3": TD3,
    "ddpg": DDPG,
    "dqn": DQN,
    "tqc": TQC,
    "qrdqn": QRDQN,
    "crossq": CrossQ,
    "ars": ARS,
    **defences.ALGORITHMS,
}


def load_model(path: str | Path, algorithm: str | None = None) -> Any:
    """
    Load a model of SB3, sb3-contrib or this package on the CPU. The file is read only; loading it runs whatever code was
    pickled into it.

    :param path: the zip file
    :param algorithm: a key of :data:`ALGORITHMS`, the zoo's names and ``"ppo_mask"``; ``None``: told from the file
    :return: the model
    :raises ValueError: if the file is missing, cut short, not an SB3 model, or of another algorithm
    """
    path = Path(path)
    name = guess_algorithm(path) if algorithm is None else algorithm
    if name not in ALGORITHMS:
        raise ValueError(f"algo {name!r} is unknown; known: {', '.join(ALGORITHMS)}")
    try:
        # A replay buffer is allocated at loading, and not used here.
        kept = {"buffer_size": 1} if issubclass(ALGORITHMS[name], OffPolicyAlgorithm) else {}
        return ALGORITHMS[name].load(path, device="cpu", custom_objects=kept)
    except Exception as error:  # whatever a broken file makes zipfile, pickle, torch and SB3 raise
        raise ValueError(f"model {path} could not be loaded as {name}: {_first_line(error)}") from error


def guess_algorithm(path: Path) -> str:
    """
    The algorithm that saved a model file, told from the settings in it.

    DDPG is TD3 with other settings, and told to be so.

    :param path: the zip file
    :return: a key of :data:`ALGORITHMS`
    :raises ValueError: if it is not a whole SB3 model, or of an algorithm that is not known
    """
    settings = _settings(path)
    found = next((name for name, has in _MARKS if has(settings)), None)
    if found is None:
        raise ValueError(f"model {path} is of no algorithm known here ({', '.join(ALGORITHMS)}); if it is, name it by --algo")
    return found


def _policy(settings: dict[str, Any]) -> str:
    return str(settings.get("policy_class", ""))


# From the settings that only some algorithms have, the first that fits.
_MARKS: tuple[tuple[str, Callable[[dict[str, Any]], bool]], ...] = (
    ("ars", lambda s: "n_delta" in s),
    ("pa_atla_ppo", lambda s: "adversary_kwargs" in s and "kappa" in s),
    ("atla_ppo", lambda s: "adversary_kwargs" in s),
    ("wocar_ppo", lambda s: "worst_case_lr" in s),
    ("radial_ppo", lambda s: "eps_schedule" in s and "weight" in s),
    ("sa_dqn", lambda s: "kappa" in s and "exploration_fraction" in s),
    ("sa_sac", lambda s: "kappa" in s and "ent_coef" in s and "clip_range" not in s),
    ("sa_td3", lambda s: "kappa" in s and "target_policy_noise" in s),
    ("sappo", lambda s: "kappa" in s and "inner" in s),
    ("certified_ppo", lambda s: "kappa" in s),
    ("trpo", lambda s: "cg_max_steps" in s),
    ("ppo_lstm", lambda s: "_last_lstm_states" in s or "Recurrent" in _policy(s)),
    ("ppo_mask", lambda s: "clip_range" in s and ("Maskable" in _policy(s) or ".maskable." in _policy(s))),
    ("ppo", lambda s: "clip_range" in s),
    ("a2c", lambda s: "gae_lambda" in s),
    ("tqc", lambda s: "top_quantiles_to_drop_per_net" in s),
    ("qrdqn", lambda s: "exploration_fraction" in s and "n_quantiles" in s),
    ("dqn", lambda s: "exploration_fraction" in s),
    ("crossq", lambda s: "ent_coef" in s and "policy_delay" in s),
    ("sac", lambda s: "ent_coef" in s),
    ("td3", lambda s: "target_policy_noise" in s),
)


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


def as_trained(model: Any, venv: VecEnv) -> VecEnv:
    """
    Environments with the wrapper that SB3 puts around images with their channels last.

    :param model: an SB3 model
    :param venv: the environments
    """
    own, theirs = model.observation_space, venv.observation_space
    is_last = is_image_space(theirs) and not is_image_space_channels_first(theirs)  # type: ignore[arg-type]
    return VecTransposeImage(venv) if is_last and own.shape != theirs.shape else venv


def check_spaces(model: Any, venv: VecEnv, name: str = "model") -> None:
    """
    :param model: an SB3 model
    :param venv: the environments it is to play
    :param name: what to call the model in the message
    :raises ValueError: unless the observations are a Box, and both spaces have the model's shapes
    """
    if not isinstance(model.observation_space, spaces.Box):
        raise ValueError(
            f"{name} observes a {type(model.observation_space).__name__}; only Box observations can be audited, where one eps "
            "is the radius of all (attacks and rollout take a Dict's keys)"
        )
    for what, ours, theirs in (
        ("observations", model.observation_space, venv.observation_space),
        ("actions", model.action_space, venv.action_space),
    ):
        if not _alike(ours, theirs, what):
            raise ValueError(f"{name} was trained with {what} {ours}, env has {theirs}: not the environment of this model")


def _alike(ours: spaces.Space[Any], theirs: spaces.Space[Any], what: str) -> bool:
    """Of observations the shape alone: what normalises them may have changed their limits."""
    return ours == theirs if what == "actions" else type(ours) is type(theirs) and ours.shape == theirs.shape


def horizon_of(venv: VecEnv) -> int | None:
    """The time limit of the environments in steps, ``None`` if they have none."""
    spec = venv.get_attr("spec")[0]
    return None if spec is None else spec.max_episode_steps


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
