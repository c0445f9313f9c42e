"""The base of every attack: input checks, one batch pass, and the projection that no attack can leave out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar, final

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces

from sb3_prune_robust.attacks.balls import BALLS, Ball, round_down
from sb3_prune_robust.attacks.observations import can_be_attacked, check_obs, restored

Array = npt.NDArray[Any]
Observation = TypeVar("Observation", Array, th.Tensor, dict[str, Any])
#: of a ball: one for all dimensions, one for each, or by key of a Dict observation
Radius = float | npt.ArrayLike | Mapping[str, Any]


class Attack(ABC):
    """
    An attack on a policy's observations: ``attack(policy, obs)`` gives the perturbed observations.

    Subclasses write :meth:`perturb`; whatever it returns is projected on the ball around the true observations, rounded
    inward, so that the perturbation stays within ``eps`` in exact arithmetic. The perturbed observation is not clipped to
    the observation space, as in the literature (Zhang et al. 2020).

    Images (uint8) are attacked in whole pixel values from 0 to 255, and ``eps`` is in those: the policy's own scaling to
    ``[0, 1]`` is part of the network, and ``eps=4`` may move each pixel by 4. Perturbations are rounded towards the true
    image, so that with ``norm="l2"`` small ones, spread over many pixels, use a part of ``eps`` only.

    :param eps: radius of the ball in units of the observation the policy receives (after VecNormalize, where there is one):
        a float, or an array with one radius per observation dimension, 0 where it cannot be attacked. With ``norm="l2"``
        an array gives the ellipsoid ``sum((d_i / eps_i)^2) <= 1``. For Dict observations: a dict, by key, of such; keys left
        out are not attacked
    :param norm: ``"linf"`` or ``"l2"``; over all attacked keys of a Dict observation together
    :param mask: boolean array over the observation's dimensions, False where it cannot be attacked
    :param seed: seed of the attack's own random numbers
    :param deterministic: the victim plays its mean or most likely action (True), or samples (False); selects what the
        attack maximises where the two differ
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        eps: Radius,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
    ) -> None:
        self._eps: Any = _check_eps("eps", eps)
        if isinstance(eps, Mapping) and (mask is not None or not eps):
            raise ValueError(f"eps by key must name at least one key and goes without mask, got eps={eps!r}, mask={mask!r}")
        if norm not in BALLS:
            raise ValueError(f"norm={norm!r} is not known; choose one of {sorted(BALLS)}")
        self.norm = norm
        self._mask = None if mask is None else _check_mask(mask)
        self.deterministic = deterministic
        self._rng = np.random.default_rng(seed)
        self._radii: dict[Any, tuple[Any, Array, Array]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(eps={self.eps!r}, norm={self.norm!r})"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls):
            raise TypeError(f"{cls.__name__} must implement perturb, not __call__: __call__ holds the projection on the ball")

    @property
    def eps(self) -> Any:
        """The radius as given (a copy); to attack with another one, make another attack."""
        if isinstance(self._eps, dict):
            return {key: _plain(radius) for key, radius in self._eps.items()}
        return _plain(self._eps)

    @property
    def can_perturb(self) -> bool:
        """Whether any entry of an observation may be moved at all."""
        return any(bool(radius.any()) for radius in (self._eps.values() if isinstance(self._eps, dict) else [self._eps]))

    @property
    def mask(self) -> Array | None:
        """The mask as given (a copy), or ``None``."""
        return None if self._mask is None else self._mask.copy()

    @abstractmethod
    def perturb(self, policy: Any, ball: Ball) -> Array:
        """
        The attack itself.

        :param policy: the victim, an SB3 policy
        :param ball: the allowed set around ``ball.center``, the observations flattened to ``(n, d)``
        :return: perturbed observations, shape ``(n, d)``; projected on the ball afterwards
        """

    @final
    def __call__(self, policy: Any, obs: Observation) -> Observation:
        """
        Perturb a batch of observations.

        :param policy: an SB3 policy, or an SB3 algorithm that has one
        :param obs: observations as the policy receives them, float32 or float64, shape ``(n, *observation_space.shape)``, or
            uint8 where the space is; a dict of such for Dict observations
        :return: perturbed observations of the same kind, type and shape; ``obs`` itself is not changed
        :raises ValueError: if ``obs`` has another shape, or NaN or infinite entries; for ``eps`` by key without a Dict, or the
            other way round
        :raises TypeError: if the policy or the type of ``obs`` is not supported
        """
        policy = getattr(policy, "policy", policy)
        center = check_obs(policy, obs)
        ball = self._ball(policy, center)
        if len(center) and ball.eps.any():
            perturbed = ball.project(self._checked(self.perturb(policy, ball), center))
        else:
            perturbed = center.copy()
        result: Observation = restored(policy, perturbed, ball, obs)
        return result

    def _ball(self, policy: Any, center: Array) -> Ball:
        """The allowed set around checked observations ``(n, d)``."""
        eps, radius = self._radius_of(policy.observation_space, center.dtype)
        return BALLS[self.norm](center, eps, radius)

    def _checked(self, points: Array, center: Array) -> Array:
        points = np.asarray(points, dtype=center.dtype)
        if points.shape != center.shape:
            raise ValueError(f"{type(self).__name__}.perturb returned shape {points.shape} for observations {center.shape}")
        if not np.isfinite(points).all():
            raise ValueError(f"{type(self).__name__}.perturb returned NaN or infinite observations; are the weights finite?")
        return points

    def _radius_of(self, space: spaces.Space[Any], dtype: Any) -> tuple[Array, Array]:
        """``eps`` under the mask for observations of a space, flattened, and the same rounded down to their type."""
        known = self._radii.get(dtype)
        if known is None or known[0] is not space:
            eps = self._radius(space)
            self._radii[dtype] = known = space, eps, round_down(eps, dtype)
        return known[1], known[2]

    def _radius(self, space: spaces.Space[Any]) -> Array:
        by_key = isinstance(space, spaces.Dict)
        if by_key != isinstance(self._eps, dict):
            form = "by key, as in {'position': 0.1}," if by_key else "a number or an array"
            raise ValueError(f"eps={self.eps!r} must be {form} for observations that are a {type(space).__name__}")
        if isinstance(space, spaces.Dict):
            return self._radius_by_key(space)
        shape = space.shape or ()
        eps = np.array(np.broadcast_to(_fit("eps", self._eps, shape), shape), dtype=np.float64)
        return (eps if self._mask is None else np.where(_fit("mask", self._mask, shape), eps, 0.0)).ravel()

    def _radius_by_key(self, space: spaces.Dict) -> Array:
        can = [key for key, part in space.spaces.items() if can_be_attacked(part)]
        unknown = [key for key in self._eps if key not in can]
        if unknown:
            known = ", ".join(can) or "none"
            raise ValueError(f"eps names the key {unknown[0]!r}; keys that can be attacked (Box of floats or uint8): {known}")
        parts = []
        for key, part in space.spaces.items():
            shape = part.shape or ()
            radius = _fit(f"eps[{key!r}]", self._eps[key], shape) if key in self._eps else np.zeros(())
            parts.append(np.broadcast_to(radius, shape).ravel())
        return np.concatenate(parts).astype(np.float64)


def _plain(radius: Array) -> Any:
    return float(radius) if radius.ndim == 0 else radius.copy()


def _check_eps(name: str, eps: Any) -> Any:
    if isinstance(eps, Mapping):
        return {key: _check_eps(f"{name}[{key!r}]", radius) for key, radius in eps.items()}
    if isinstance(eps, str):  # numpy would read it
        raise TypeError(f"{name}={eps!r} must be a number or an array of numbers, not text")
    try:
        array = np.array(eps, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={eps!r} must be a number or an array of numbers, one per observation dimension") from None
    if not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(f"{name}={eps!r} must be finite and not negative in every entry")
    return array


def _check_mask(mask: npt.ArrayLike) -> Array:
    array = np.array(mask)
    if array.dtype != np.bool_:
        raise TypeError(f"mask must be a boolean array over the observation's dimensions, got type {array.dtype}")
    if not array.any():
        raise ValueError("mask is False everywhere, so nothing could be attacked; use eps=0 for no attack")
    return array


def _fit(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """An array over the observation's dimensions, given flat or in the observation's shape."""
    size = int(np.prod(shape))
    if array.shape not in ((), shape, (size,)):
        raise ValueError(f"{name} has shape {array.shape}; observations have shape {shape}, so give that or ({size},)")
    return array if array.ndim == 0 else array.reshape(shape)
