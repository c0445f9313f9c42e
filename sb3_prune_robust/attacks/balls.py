"""The sets an attack may choose from, one per norm: random start, steepest step, projection.

Projections are exact: in exact arithmetic the floating-point point that comes out lies in the ball around the
floating-point centre. Plain ``centre + eps`` does not: rounded to float32 it leaves the ball for most entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def move_inward(center: Array, offset: Array) -> Array:
    """
    ``center + offset`` rounded towards ``center``, so that no entry moves further than its ``offset``.

    Rounding to nearest overshoots by at most half a unit in the last place; one float back towards the centre undoes that,
    and never passes the centre, because rounding is monotone.

    :param center: floating-point array
    :param offset: what to add, in the same or a wider type
    :return: array of ``center``'s type with ``|result - center| <= |offset|`` in exact arithmetic
    """
    return np.nextafter((center + offset).astype(center.dtype, copy=False), center)


def round_down(eps: Array, dtype: Any) -> Array:
    """Non-negative ``eps`` in another floating-point type, never larger than it was."""
    with np.errstate(over="ignore"):
        radius = eps.astype(dtype)
    return np.where(radius > eps, np.nextafter(radius, radius.dtype.type(0)), radius)


class Ball(ABC):
    """
    The perturbations allowed around a batch of observations.

    :param center: the true observations, float32 or float64, shape ``(n, d)``
    :param eps: radius of each dimension, float64, shape ``(d,)``; 0: not attackable
    :param radius: ``round_down(eps, center.dtype)``, which is the same for every batch
    """

    def __init__(self, center: Array, eps: Array, radius: Array) -> None:
        self.center = center
        self.eps = eps
        self.radius = radius

    def repeat(self, times: int) -> Ball:
        """The same ball ``times`` over, one block of ``n`` rows after the other."""
        return self if times == 1 else type(self)(np.tile(self.center, (times, 1)), self.eps, self.radius)

    @abstractmethod
    def random(self, rng: np.random.Generator) -> Array:
        """Points uniform in the ball, shape ``(n, d)``."""

    @abstractmethod
    def step(self, points: Array, gradient: Array, size: float) -> Array:
        """
        One step of steepest ascent in this norm, kept in the ball.

        :param points: where to start, shape ``(n, d)``
        :param gradient: what to climb, shape ``(n, d)``; where it is zero the point stays
        :param size: length of the step as a fraction of ``eps``
        """

    @abstractmethod
    def project(self, points: Array) -> Array:
        """``points`` moved into the ball, exactly; points inside stay as they are."""

    @abstractmethod
    def contains(self, points: Array) -> Array:
        """
        Which rows of ``points`` are in the ball, shape ``(n,)``.

        :param points: shape ``(n, d)``, each entry of a whole offset, or projected before; l_2's very edge counts as outside
        """


class LInfBall(Ball):
    """``|d_i| <= eps_i`` for every dimension."""

    def __init__(self, center: Array, eps: Array, radius: Array) -> None:
        super().__init__(center, eps, radius)
        self._upper = move_inward(center, radius)
        self._lower = move_inward(center, -radius)

    def random(self, rng: np.random.Generator) -> Array:
        share = rng.random(self.center.shape, dtype=self.center.dtype.type)
        return self.project(self.center + self.radius * (share + share - 1))

    def step(self, points: Array, gradient: Array, size: float) -> Array:
        return self.project(points + self.radius * size * np.sign(gradient))

    def project(self, points: Array) -> Array:
        return np.minimum(np.maximum(points, self._lower), self._upper)

    def contains(self, points: Array) -> Array:
        return np.asarray(np.all(np.abs(points.astype(np.float64) - self.center) <= self.eps, axis=1))


class L2Ball(Ball):
    """The ellipsoid ``sum_i (d_i / eps_i)^2 <= 1``: with one ``eps`` for all, the Euclidean ball."""

    def random(self, rng: np.random.Generator) -> Array:
        # Uniform in k dimensions: a uniform direction, at a radius whose k-th power is uniform.
        direction = rng.standard_normal(self.center.shape) * (self.eps > 0)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        radius = rng.uniform(size=(len(direction), 1)) ** (1.0 / np.count_nonzero(self.eps))
        return self.project((self.center + self.eps * radius * direction).astype(self.center.dtype))

    def step(self, points: Array, gradient: Array, size: float) -> Array:
        # argmax of g.d over the ellipsoid: d_i = eps_i^2 g_i / ||eps g||; the first division keeps squares from underflowing.
        stretched = self.eps * gradient
        largest = np.abs(stretched).max(axis=1, keepdims=True)
        stretched = np.divide(stretched, largest, out=np.zeros_like(stretched), where=largest > 0)
        length = np.linalg.norm(stretched, axis=1, keepdims=True)
        direction = self.eps * np.divide(stretched, length, out=np.zeros_like(stretched), where=length > 0)
        return self.project((points + size * direction).astype(self.center.dtype))

    def project(self, points: Array) -> Array:
        points = np.where(self.eps > 0, points, self.center)
        offset, length = self._length(points)
        outside = length > 1.0 - self._margin
        if not outside.any():
            return points
        factor = np.divide(1.0 - 2.0 * self._margin, length, out=np.ones_like(length), where=outside)
        return np.where(outside, move_inward(self.center, offset * factor), points)

    def contains(self, points: Array) -> Array:
        moved = (points != self.center)[:, self.eps == 0].any(axis=1)
        return np.asarray((self._length(points)[1][:, 0] <= 1.0 - self._margin) & ~moved)

    @property
    def _margin(self) -> float:
        """Above the relative rounding error of a sum of d squares."""
        return float((self.eps.size + 16) * np.finfo(np.float64).eps)

    def _length(self, points: Array) -> tuple[Array, Array]:
        """Offsets from the centre, and their length in units of ``eps``, shape ``(n, 1)``."""
        offset = points.astype(np.float64) - self.center
        with np.errstate(over="ignore"):
            scaled = np.divide(offset, self.eps, out=np.zeros_like(offset), where=self.eps > 0)
            return offset, np.sqrt(np.sum(scaled * scaled, axis=1, keepdims=True))


BALLS: dict[str, type[Ball]] = {"linf": LInfBall, "l2": L2Ball}
