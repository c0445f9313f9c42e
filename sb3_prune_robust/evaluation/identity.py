"""What a result depends on, as plain values that tell one result from another."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize

from sb3_prune_robust.attacks import Attack, FittedAttack
from sb3_prune_robust.evaluation.report import plain

PACKAGES = ("sb3-prune-robust", "stable-baselines3", "torch", "gymnasium", "mujoco", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed, say
            continue
    return found


def normal_form(key: Mapping[str, Any]) -> Any:
    """
    A key as JSON gives it back.

    :param key: dictionaries, lists, numbers, strings, ``None``, numpy arrays
    :raises TypeError: for what JSON cannot hold
    """
    return json.loads(json.dumps(plain(key)))


def digest(key: Mapping[str, Any]) -> str:
    """
    A name for a key: equal for equal keys, and for no others.

    :param key: as :func:`normal_form` takes
    :return: hexadecimal digits
    """
    return hashlib.sha256(json.dumps(normal_form(key), sort_keys=True).encode()).hexdigest()


def _digest_of_arrays(arrays: Mapping[str, Any]) -> str:
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        array = np.ascontiguousarray(array)
        found.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


def victim_key(policy: Any, venv: VecEnv) -> dict[str, Any]:
    """
    A policy (its weights, layers, spaces and arguments) and the environments it plays in, with their VecNormalize statistics.

    An environment is known by its id and arguments, and it, its wrappers and the policy by their classes and by the
    constructor's arguments that they keep under the same name (or with ``_`` in front, or as gymnasium records them). What
    changes as it is played, such as counts of episodes, is no part of it.

    :param policy: an SB3 policy
    :param venv: environments
    """
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in policy.state_dict().items()}
    spaces = [repr(policy.observation_space), repr(policy.action_space)]
    return {
        "weights": _digest_of_arrays(weights),
        "policy": [_class(policy), repr(policy), *spaces, _arguments(policy)],
        "environments": _environments(venv),
        "normalizer": _normalizer(venv),
    }


def _class(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _held(value: Any) -> Any:
    """A value as JSON text; what JSON cannot hold by its class, a function by its name, instructions and constants."""
    if inspect.isfunction(value):
        constants = [repr(one) for one in value.__code__.co_consts if not inspect.iscode(one)]
        return [value.__module__, value.__qualname__, value.__code__.co_code.hex(), constants]
    try:
        return json.dumps(plain(value), sort_keys=True)
    except (TypeError, ValueError):
        return _class(value)


def _arguments(thing: Any) -> dict[str, Any]:
    """The arguments that an environment, wrapper or policy was made with, if it keeps them: none that playing changes."""
    makers = [maker for cls in type(thing).__mro__ if inspect.isfunction(maker := vars(cls).get("__init__"))]
    names = {name for maker in makers for name in inspect.signature(maker).parameters} - {"self", "env", "venv"}
    kept = vars(thing)
    found = {name: kept[place] for name in names for place in (f"_{name}", name) if place in kept}
    return {name: _held(value) for name, value in {**found, **kept.get("_saved_kwargs", {})}.items()}


def _environments(venv: VecEnv) -> list[Any]:
    """The wrappers around all, and each: its wrappers, class, id and arguments. Their number is among the key's parts so."""
    chain = []
    while isinstance(venv, VecEnvWrapper):
        chain.append([_class(venv), {} if isinstance(venv, VecNormalize) else _arguments(venv)])
        venv = venv.venv
    envs = getattr(venv, "envs", [])
    each = [[str(env), *_registered(env.spec), _wrappers(env)] for env in envs]
    return [chain, [_class(venv), venv.num_envs], each]


def _wrappers(env: Any) -> list[Any]:
    """From the outermost wrapper to the environment itself: class and arguments."""
    chain = [[_class(env), _arguments(env)]]
    while isinstance(env, gym.Wrapper):
        env = env.env
        chain.append([_class(env), _arguments(env)])
    return chain


def _registered(spec: Any) -> list[Any]:
    return [] if spec is None else [spec.id, repr(spec.kwargs), spec.max_episode_steps]


def _normalizer(venv: VecEnv) -> dict[str, Any] | None:
    normalizer = unwrap_vec_normalize(venv)
    if normalizer is None or not normalizer.norm_obs:
        return None
    known: Any = normalizer.obs_rms
    each = {f"{key}.": one for key, one in known.items()} if isinstance(known, dict) else {"": known}  # of Dict observations
    arrays = {f"{key}{name}": getattr(one, name) for key, one in each.items() for name in ("mean", "var")}
    return {"statistics": _digest_of_arrays(arrays), "clip": normalizer.clip_obs, "epsilon": normalizer.epsilon}


def attack_key(attack: FittedAttack) -> dict[str, Any]:
    """
    A learned attack: its class and settings, and what it learned, if it did.

    :param attack: the attack
    """
    learned = None if attack.cost is None else _digest_of_arrays(attack._arrays())
    return {"class": _class(attack), "settings": {**attack._common(), **attack._settings()}, "learned": learned}


def named_key(name: str, attack: Attack) -> dict[str, Any]:
    """
    An attack by name that is not learned: with its class and settings, so that one of other defaults is another.

    :param name: the name, which tells the seed, too
    :param attack: the attack
    """
    settings = {of: _held(value) for of, value in vars(attack).items() if not of.startswith("_")}
    return {"attack": name, "eps": attack.eps, "class": _class(attack), "settings": settings}


def is_learned(attack: Any) -> bool:
    """
    Whether an attack must learn before it can be used.

    :param attack: the attack; with ``eps = 0`` there is nothing to learn
    """
    return isinstance(attack, FittedAttack) and attack.cost is None and can_perturb(attack)


def can_perturb(attack: Attack) -> bool:
    """
    Whether an attack may move any observation.

    :param attack: the attack
    """
    return attack.can_perturb
