"""The set of perturbed observations, and the rounding margin that all bounds share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.network import Array

NORMS = ("linf", "l2")

# Half the distance from 1 to the next float64: the relative error of one correctly rounded operation. All bounds are
# computed with such operations and then widened by `rounding_margin`; results below 1e-300 (underflow) are not covered.
UNIT_ROUNDOFF = 2.0**-53


def rounding_margin(n_operations: int, unit_roundoff: float = UNIT_ROUNDOFF) -> float:
    """
    A relative margin that covers ``n_operations`` rounded operations in a row on non-negative numbers.

    ``n`` operations multiply the exact result by ``(1 + e_1) ... (1 + e_n)``, ``|e_i| <= u``, so that it is at most
    ``(1 - u)^-n <= 1 + 2 n u`` times the computed one while ``n u <= 1/4`` (Higham, Accuracy and Stability of Numerical
    Algorithms, 2002, section 3.1). A sum of ``n`` terms in any order is at most ``n - 1`` operations deep.

    :param n_operations: number of operations on the way from an input to the result
    :param unit_roundoff: relative error of one operation
    :return: ``2 n u``
    """
    return 2.0 * n_operations * unit_roundoff


@dataclass(frozen=True)
class Ball:
    """
    Perturbations ``d`` of one observation.

    ``"linf"``: ``|d_i| <= eps_i``. ``"l2"``: the ellipsoid ``sum_i (d_i / eps_i)^2 <= 1``, a ball of radius ``eps`` when all
    ``eps_i`` are alike. ``eps_i = 0``: dimension ``i`` cannot be attacked. In both, ``d = eps * x`` elementwise with ``x`` in
    the unit ball of the norm, so that a bound folds ``eps`` into the columns of the first layer.

    :param eps: shape ``(n_inputs,)``, float64, in units of the observation the policy receives
    :param norm: ``"linf"`` or ``"l2"``
    """

    eps: Array
    norm: str

    @classmethod
    def create(cls, eps: npt.ArrayLike, norm: str, shape: tuple[int, ...]) -> Ball:
        """
        A ball from what a user gives.

        :param eps: a number, or an array of the observation's shape (or that shape flattened)
        :param norm: ``"linf"`` or ``"l2"``
        :param shape: shape of one observation
        :return: the ball, ``eps`` flattened
        :raises ValueError: for another norm, and for an ``eps`` that is negative, not finite or of another shape
        """
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}; got {norm!r}")
        return cls(_check_eps(eps, shape), norm)

    @property
    def n_attackable(self) -> int:
        """Number of dimensions with ``eps_i > 0``."""
        return int(np.count_nonzero(self.eps))

    def row_norms(self, rows: Array) -> Array:
        """
        ``max_x rows @ x`` over the unit ball, for rows with ``eps`` folded in: the dual norm of each, rounding not covered.

        :param rows: shape ``(n, n_inputs)``
        :return: shape ``(n,)``
        """
        return np.asarray(np.linalg.norm(rows, ord=1 if self.norm == "linf" else 2, axis=1))


def _check_eps(eps: Any, shape: tuple[int, ...]) -> Array:
    n_inputs = int(np.prod(shape))
    try:
        array = np.asarray(eps, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"eps must be a number or an array of numbers, got {eps!r}") from None
    if array.shape not in ((), shape, (n_inputs,)):
        raise ValueError(f"eps must be a number or an array of shape {shape}, got shape {array.shape}")
    if not np.all(np.isfinite(array)) or np.any(array < 0):
        raise ValueError(f"eps must be finite and >= 0, got {eps!r}")
    return np.array(np.broadcast_to(array.ravel(), (n_inputs,)))
