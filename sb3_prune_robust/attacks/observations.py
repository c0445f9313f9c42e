"""Observations of every space as attacks work on them, flat rows of floats, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces

from sb3_prune_robust.attacks.balls import Ball
from sb3_prune_robust.observations import Array

_FLOATS = (np.float32, np.float64)
_PIXEL_ROUNDING = 1e-3  # float32's spacing is 3e-5 at 510, as far as a pixel can be pushed


def check_obs(policy: Any, obs: Any) -> Array:
    """
    Observations as attacks take them, flattened.

    Dict observations are their parts one after the other, in the order of the space. Pixels (uint8) become float32.

    :param policy: the victim
    :param obs: shape ``(n, *observation_space.shape)``, float32 or float64, or uint8 where the space is; a dict of such arrays
        for a Dict space
    :return: shape ``(n, d)``, float32 or float64
    :raises TypeError: for another type, or a policy whose observations are no Box or Dict
    :raises ValueError: for another shape, NaN or infinite entries
    """
    space = getattr(policy, "observation_space", None)
    if space is None:
        raise TypeError(f"policy must be an SB3 policy or algorithm, got {type(policy).__name__}")
    if isinstance(space, spaces.Box):
        return _check_part("obs", space, obs)
    if not isinstance(space, spaces.Dict):
        raise TypeError(f"policy has observation space {space}; attacks cover Box and Dict observations only")
    if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
        given = sorted(obs) if isinstance(obs, Mapping) else type(obs).__name__
        raise TypeError(f"obs must be a dict with the keys {sorted(space.spaces)}, got {given}")
    parts = [_check_part(f"obs[{key!r}]", part, obs[key]) for key, part in space.spaces.items()]
    if len({len(part) for part in parts}) > 1:
        raise ValueError(f"obs has parts of different lengths: {[len(part) for part in parts]}")
    return np.concatenate(parts, axis=1)


def _check_part(name: str, space: spaces.Space[Any], obs: Any) -> Array:
    if not isinstance(obs, np.ndarray | th.Tensor):
        raise TypeError(f"{name} must be a numpy array or a torch tensor, got {type(obs).__name__}")
    array: Array = obs.detach().cpu().numpy() if isinstance(obs, th.Tensor) else obs
    shape = space.shape or ()
    is_part = name != "obs"  # of a Dict: whether it can be attacked is another question
    if not is_part and array.dtype not in (*_FLOATS, *([np.uint8] if space.dtype == np.uint8 else [])):
        raise TypeError(
            f"{name} must be float32 or float64 (uint8 where the space is), got {array.dtype}; let the environment say float32"
        )
    if array.shape[1:] != shape or array.ndim == 0:
        raise ValueError(
            f"{name} has shape {array.shape}; expected (n, {', '.join(map(str, shape))}), a batch of observations"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite entries; attacks need finite observations")
    return array.reshape(len(array), math.prod(shape)).astype(
        array.dtype if array.dtype in _FLOATS else np.float32, copy=False
    )


def size_of(space: spaces.Space[Any]) -> int:
    """Number of entries of an observation, flat."""
    if isinstance(space, spaces.Dict):
        return sum(map(size_of, space.spaces.values()))
    return math.prod(space.shape or ())


def restored(policy: Any, points: Array, ball: Ball, obs: Any) -> Any:
    """
    Perturbed observations in the form of the true ones.

    Pixels are rounded towards the true ones, to whole values in the range of the space: so the ball is not left.

    :param policy: the victim
    :param points: perturbed, flat, shape ``(n, d)``, in the ball
    :param ball: the allowed set around the true ones
    :param obs: true, as they were given
    """
    space = policy.observation_space
    points = _in_whole_pixels(points, ball, _pixels(space, obs))
    if isinstance(space, spaces.Box):
        return _restored(space, points, ball.center, obs)
    places = np.cumsum([size_of(part) for part in space.spaces.values()])[:-1]
    pairs = zip(np.split(points, places, axis=1), np.split(ball.center, places, axis=1), strict=True)
    return {key: _restored(space[key], *pair, obs[key]) for key, pair in zip(space.spaces, pairs, strict=True)}


def _pixels(space: spaces.Space[Any], obs: Any) -> npt.NDArray[np.bool_]:
    """Which entries of flat observations are pixels, shape ``(d,)``."""
    if isinstance(space, spaces.Dict):
        return np.concatenate([_pixels(part, obs[key]) for key, part in space.spaces.items()])
    return np.full(size_of(space), _dtype(obs) == np.uint8)


def _dtype(obs: Any) -> Any:
    return obs.detach().cpu().numpy().dtype if isinstance(obs, th.Tensor) else obs.dtype


def _in_whole_pixels(points: Array, ball: Ball, pixels: npt.NDArray[np.bool_]) -> Array:
    """
    Offsets of pixels without their fractions.

    The float below a whole offset means that offset: points were rounded into the ball, which at ``eps=4`` gives 3.99999.
    Where that is not in the ball after all, fractions are cut off as they are.
    """
    if not pixels.any():
        return points
    offset = (points - ball.center)[:, pixels]
    cut, whole = points.copy(), points.copy()
    cut[:, pixels] = ball.center[:, pixels] + np.trunc(offset)
    whole[:, pixels] = ball.center[:, pixels] + np.trunc(offset + np.copysign(_PIXEL_ROUNDING, offset))
    return np.where(ball.contains(whole)[:, None], whole, cut)


def _restored(space: spaces.Space[Any], points: Array, center: Array, obs: Any) -> Any:
    is_tensor = isinstance(obs, th.Tensor)
    dtype = _dtype(obs)
    if not isinstance(space, spaces.Box) or not can_be_attacked(space, dtype):
        return obs.clone() if is_tensor else obs.copy()
    if dtype == np.uint8:
        points = np.clip(points, space.low.ravel(), space.high.ravel())
    result = _narrowed(points, center, dtype).reshape(obs.shape)
    return th.as_tensor(result, device=obs.device) if is_tensor else result


def can_be_attacked(space: spaces.Space[Any], dtype: Any = None) -> bool:
    """
    Whether an observation, or a part of a Dict, is of numbers that an attack may move.

    :param space: its space
    :param dtype: its type; ``None``: the space's
    """
    return isinstance(space, spaces.Box) and (space.dtype if dtype is None else dtype) in (*_FLOATS, np.uint8)


def _narrowed(points: Array, center: Array, dtype: Any) -> Array:
    """In a narrower type, never further from the center than before: a cast rounds to the nearest."""
    result = points.astype(dtype, copy=False)
    if dtype == points.dtype:
        return result
    outward = np.abs(result.astype(np.float64) - center) > np.abs(points - center)
    return np.where(outward, np.nextafter(result, center.astype(dtype)), result) if dtype in _FLOATS else result


def as_observation(policy: Any, flat: th.Tensor) -> Any:
    """
    Flat rows as the policy's own modules take them.

    :param policy: the victim
    :param flat: shape ``(n, d)``
    :return: a tensor ``(n, *shape)``, or one for each key of a Dict space; differentiable in ``flat``
    """
    space = policy.observation_space
    if not isinstance(space, spaces.Dict):
        return flat.reshape(-1, *space.shape)
    parts = flat.split([size_of(part) for part in space.spaces.values()], dim=1)
    named = zip(space.spaces.items(), parts, strict=True)
    return {key: part.reshape(-1, *(one.shape or ())) for (key, one), part in named}
