"""The base of every attack: input checks, one batch pass, and the projection that no attack can leave out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar, final

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces

from sb3_prune_robust.attacks.balls import BALLS, Ball, round_down

Array = npt.NDArray[Any]
Observation = TypeVar("Observation", Array, th.Tensor)


class Attack(ABC):
    """
    An attack on a policy's observations: ``attack(policy, obs)`` gives the perturbed observations.

    Subclasses write :meth:`perturb`; whatever it returns is projected on the ball around the true observations, rounded
    inward, so that the perturbation stays within ``eps`` in exact arithmetic. The perturbed observation is not clipped to
    the observation space, as in the literature (Zhang et al. 2020).

    :param eps: radius of the ball in units of the observation the policy receives (after VecNormalize, where there is one):
        a float, or an array with one radius per observation dimension, 0 where it cannot be attacked. With ``norm="l2"``
        an array gives the ellipsoid ``sum((d_i / eps_i)^2) <= 1``.
    :param norm: ``"linf"`` or ``"l2"``
    :param mask: boolean array over the observation's dimensions, False where it cannot be attacked
    :param seed: seed of the attack's own random numbers
    :param deterministic: the victim plays its mean or most likely action (True), or samples (False); selects what the
        attack maximises where the two differ
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
    ) -> None:
        self._eps = _check_eps(eps)
        if norm not in BALLS:
            raise ValueError(f"norm={norm!r} is not known; choose one of {sorted(BALLS)}")
        self.norm = norm
        self._mask = None if mask is None else _check_mask(mask)
        self.deterministic = deterministic
        self._rng = np.random.default_rng(seed)
        self._radii: dict[Any, tuple[Array, Array]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls):
            raise TypeError(f"{cls.__name__} must implement perturb, not __call__: __call__ holds the projection on the ball")

    @property
    def eps(self) -> float | Array:
        """The radius as given (a copy); to attack with another one, make another attack."""
        return float(self._eps) if self._eps.ndim == 0 else self._eps.copy()

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
        :param obs: observations as the policy receives them, float32 or float64, shape ``(n, *observation_space.shape)``
        :return: perturbed observations of the same kind, type and shape; ``obs`` itself is not changed
        :raises ValueError: if ``obs`` has another shape, or NaN or infinite entries
        :raises TypeError: if the policy or the type of ``obs`` is not supported
        """
        policy = getattr(policy, "policy", policy)
        center = check_obs(policy, obs)
        ball = self._ball(center)
        if len(center) and ball.eps.any():
            points = self._checked(self.perturb(policy, ball), ball.center)
            perturbed = ball.project(points).reshape(center.shape)
        else:
            perturbed = center.copy()
        if isinstance(obs, th.Tensor):
            return th.as_tensor(perturbed, device=obs.device)
        return perturbed

    def _ball(self, center: Array) -> Ball:
        """The allowed set around checked observations ``(n, *shape)``."""
        eps, radius = self._radius_of(center.shape[1:], center.dtype)
        return BALLS[self.norm](center.reshape(len(center), eps.size), eps, radius)

    def _checked(self, points: Array, center: Array) -> Array:
        points = np.asarray(points, dtype=center.dtype)
        if points.shape != center.shape:
            raise ValueError(f"{type(self).__name__}.perturb returned shape {points.shape} for observations {center.shape}")
        if not np.isfinite(points).all():
            raise ValueError(f"{type(self).__name__}.perturb returned NaN or infinite observations; are the weights finite?")
        return points

    def _radius_of(self, shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
        """``eps`` under the mask for observations of this shape, flattened, and the same rounded down to their type."""
        if (shape, dtype) not in self._radii:
            eps = np.array(np.broadcast_to(_fit("eps", self._eps, shape), shape), dtype=np.float64)
            if self._mask is not None:
                eps = np.where(_fit("mask", self._mask, shape), eps, 0.0)
            self._radii[shape, dtype] = eps.ravel(), round_down(eps.ravel(), dtype)
        return self._radii[shape, dtype]


def _check_eps(eps: float | npt.ArrayLike) -> Array:
    try:
        array = np.array(eps, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"eps={eps!r} must be a number or an array of numbers, one per observation dimension") from None
    if not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(f"eps={eps!r} must be finite and not negative in every entry")
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


def check_obs(policy: Any, obs: Any) -> Array:
    """
    Observations as attacks take them.

    :param policy: the victim
    :param obs: float32 or float64, shape ``(n, *observation_space.shape)``
    :return: the same as an array
    :raises TypeError: for another type, or a policy whose observations are no Box
    :raises ValueError: for another shape, NaN or infinite entries
    """
    space = getattr(policy, "observation_space", None)
    if space is None:
        raise TypeError(f"policy must be an SB3 policy or algorithm, got {type(policy).__name__}")
    if not isinstance(space, spaces.Box):
        raise TypeError(f"policy has observation space {space}; attacks cover Box observations only")
    if not isinstance(obs, np.ndarray | th.Tensor):
        raise TypeError(f"obs must be a numpy array or a torch tensor, got {type(obs).__name__}")
    array = obs.detach().cpu().numpy() if isinstance(obs, th.Tensor) else obs
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"obs must be float32 or float64, got {array.dtype}; rescale image observations in the environment")
    if array.shape[1:] != space.shape or array.ndim == 0:
        raise ValueError(
            f"obs has shape {array.shape}; expected (n, {', '.join(map(str, space.shape))}), a batch of observations"
        )
    if not np.isfinite(array).all():
        raise ValueError("obs has NaN or infinite entries; attacks need finite observations")
    return array
