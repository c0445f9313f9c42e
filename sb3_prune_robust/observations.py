"""Batches of observations, arrays or dicts of arrays (Dict spaces), handled alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
#: ``(n, *shape)``, or by key of a Dict space
Observations = Any


def copied(obs: Observations) -> Observations:
    """
    Our own copy: environments may hand out their buffers.

    :param obs: an array, or arrays by key
    """
    return {key: np.array(part) for key, part in obs.items()} if isinstance(obs, Mapping) else np.array(obs)


def rows(obs: Observations, chosen: Any) -> Observations:
    """
    Some of the observations, one of them for a whole number.

    :param obs: an array, or arrays by key
    :param chosen: an index of rows
    """
    return {key: part[chosen] for key, part in obs.items()} if isinstance(obs, Mapping) else obs[chosen]


def flattened(obs: Observations) -> Array:
    """
    Observations as rows of numbers, keys one after the other.

    :param obs: ``n`` observations: an array, or arrays by key
    :return: shape ``(n, d)``, the type that holds all parts
    """
    parts = list(obs.values()) if isinstance(obs, Mapping) else [np.asarray(obs)]
    return np.concatenate([part.reshape(len(part), math.prod(part.shape[1:])) for part in parts], axis=1)


def difference(obs: Observations, other: Observations) -> Array:
    """
    ``obs - other``, flat, in float64: unsigned pixels would wrap around.

    :param obs: ``n`` observations
    :param other: the same kind
    :return: shape ``(n, d)``
    """
    if isinstance(obs, Mapping):
        return np.concatenate([difference(part, other[key]) for key, part in obs.items()], axis=1)
    change: Array = np.subtract(obs, other, dtype=np.float64)
    return change.reshape(len(change), math.prod(change.shape[1:]))
