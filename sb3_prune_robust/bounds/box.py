"""
How large ``||M x||_2`` can be over the box ``|x_i| <= 1``: sound upper bounds, for many matrices at once.

The maximum of a convex function is at a corner, so up to :data:`MAX_ENUMERATED` inputs all corners are tried, half of them as
``x`` and ``-x`` are alike. Beyond that it is the Shor bound: for any ``d > 0``, ``x^T G x <= sum_i d_i x_i^2 lambda`` with
``lambda = lambda_max(D^(-1/2) G D^(-1/2))``, so the maximum is at most ``lambda sum(d)``; at the best ``d`` this is within a
factor ``pi / 2`` of the maximum (Nesterov 1998), so within 1.26 for the norm, and in practice within a few percent.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sb3_prune_robust.bounds.ball import UNIT_ROUNDOFF, rounding_margin
from sb3_prune_robust.network import Array

MAX_ENUMERATED = 12
# Corners times matrices in memory at once: 2^22 float64, 32 MiB.
_CHUNK = 2**22
_ITERATIONS = 20


def box_quadratic_bound(gram: Array) -> Array:
    """
    An upper bound on ``max x^T G x`` over the box, exact to rounding for up to :data:`MAX_ENUMERATED` inputs.

    :param gram: positive semidefinite matrices, shape ``(..., n, n)``
    :return: shape ``(...)``; infinite for matrices that are not finite
    """
    n = gram.shape[-1]
    flat = gram.reshape(-1, n, n)
    finite = np.all(np.isfinite(flat), axis=(1, 2))
    scaled, exponent = _scaled(flat[finite])
    bound = np.full(len(flat), np.inf)
    bound[finite] = _unscaled(_corner_maximum(scaled) if n <= MAX_ENUMERATED else _dual_quadratic(scaled), exponent)
    return bound.reshape(gram.shape[:-2])


def box_norm_bound(matrices: Array) -> Array:
    """
    An upper bound on ``max ||M x||_2`` over the box, exact to rounding for one row or up to :data:`MAX_ENUMERATED` inputs.

    :param matrices: shape ``(..., m, n)``, cheapest for ``m`` much smaller than ``n``
    :return: shape ``(...)``; infinite for matrices that are not finite
    """
    m, n = matrices.shape[-2:]
    flat = matrices.reshape(-1, m, n)
    finite = np.all(np.isfinite(flat), axis=(1, 2))
    scaled, exponent = _scaled(flat[finite])
    bound = np.full(len(flat), np.inf)
    bound[finite] = _unscaled(_unit_norm_bound(scaled), exponent)
    return bound.reshape(matrices.shape[:-2])


def _scaled(matrices: Array) -> tuple[Array, Array]:
    """``matrices = scaled * 2^exponent``, exactly, so that squares of the scaled neither overflow nor all underflow."""
    exponent = np.frexp(np.abs(matrices).max(axis=(1, 2), initial=0.0))[1]
    return np.ldexp(matrices, -exponent[:, None, None]), exponent


def _unscaled(bound: Array, exponent: Array) -> Array:
    with np.errstate(over="ignore"):  # infinite: no bound
        return np.asarray(np.ldexp(bound, exponent))


def _unit_norm_bound(matrices: Array) -> Array:
    m, n = matrices.shape[1:]
    if m == 1:
        return np.abs(matrices[:, 0]).sum(axis=1) * (1.0 + rounding_margin(n + 2))
    if n <= MAX_ENUMERATED:
        # Entries of M^T M are off by m u |M|^T |M|, whose sum over all entries is at most n tr(G) <= n max x^T G x.
        square = _corner_maximum(matrices.swapaxes(1, 2) @ matrices) * (1.0 + n * rounding_margin(m + 4))
    else:
        square = _dual_norm(matrices)
    return np.asarray(np.sqrt(square) * (1.0 + rounding_margin(4)))


@lru_cache(maxsize=MAX_ENUMERATED + 1)
def _corner_products(n: int) -> Array:
    """``2 x_i x_j`` for ``i < j`` (columns) at each corner with ``x_0 = 1`` (rows)."""
    bits = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1
    signs = 1.0 - 2.0 * bits
    first, second = np.triu_indices(n, 1)
    return np.asarray(2.0 * signs[:, first] * signs[:, second])


def _corner_maximum(gram: Array) -> Array:
    """``x^T G x = tr G + sum_(i<j) 2 x_i x_j G_ij``: linear in the products of signs, one matrix product for all of them."""
    n = gram.shape[-1]
    corners, (first, second) = _corner_products(n), np.triu_indices(n, 1)
    upper = gram[:, first, second].T
    step = max(1, _CHUNK // len(corners))
    largest = [(corners @ upper[:, i : i + step]).max(axis=0) for i in range(0, upper.shape[1], step)]
    maximum = np.trace(gram, axis1=1, axis2=2) + (np.concatenate(largest) if largest else 0.0)
    return maximum + np.abs(gram).sum(axis=(1, 2)) * rounding_margin(n * n + 4)


def _dual_quadratic(gram: Array) -> Array:
    n = gram.shape[-1]
    multipliers, bounds = box_multipliers(gram), [np.abs(gram).sum(axis=(1, 2))]
    for d in (multipliers, np.ones_like(multipliers)):
        scale = np.sqrt(d[:, :, None]) * np.sqrt(d[:, None, :])
        bounds.append(np.maximum(np.linalg.eigvalsh(gram / scale)[:, -1], 0.0) * d.sum(axis=1))
    # Rounding of D^(-1/2) G D^(-1/2) and of LAPACK's eigenvalue is relative to its norm, at least its largest entry.
    return np.asarray(np.minimum.reduce(bounds) * (1.0 + _eigenvalue_margin(n, n)))


def box_multipliers(gram: Array) -> Array:
    """
    A good ``d`` for the Shor bound.

    :param gram: positive semidefinite matrices, shape ``(k, n, n)``
    :return: shape ``(k, n)``, positive
    """
    values, vectors = np.linalg.eigh(gram)
    return _multipliers(np.sqrt(np.maximum(values, 0.0))[:, :, None] * vectors.swapaxes(1, 2))


def _dual_norm(matrices: Array) -> Array:
    """The Shor bound on ``||M x||^2``: ``lambda_max(D^(-1/2) M^T M D^(-1/2)) = lambda_max(M D^(-1) M^T)``, an m x m matrix."""
    m, n = matrices.shape[1:]
    multipliers = _multipliers(matrices)
    dual = _largest_eigenvalue(matrices, multipliers) * multipliers.sum(axis=1)
    plain = _largest_eigenvalue(matrices, np.ones_like(multipliers)) * n
    rows = np.square(np.abs(matrices).sum(axis=2)).sum(axis=1)
    return np.minimum.reduce([dual, plain, rows]) * (1.0 + _eigenvalue_margin(m, n))


def _eigenvalue_margin(m: int, n: int) -> float:
    return 10.0 * (m * n + 10) * UNIT_ROUNDOFF + m * rounding_margin(2 * n + 16)


def _largest_eigenvalue(matrices: Array, multipliers: Array) -> Array:
    product = (matrices / multipliers[:, None, :]) @ matrices.swapaxes(1, 2)
    return np.maximum(np.linalg.eigvalsh(product)[:, -1], 0.0)


def _multipliers(matrices: Array) -> Array:
    """
    A good ``d`` for the Shor bound of each ``M``, any positive one being sound.

    The dual of the bound is ``max_R sum_i ||R^T m_i||`` over ``||R||_F = 1``, ``m_i`` the columns of ``M``. It is convex in
    ``R``, so that going to its gradient ``M D^(-1) M^T R``, ``d_i = ||R^T m_i||``, normalised, never lowers it.

    :param matrices: shape ``(k, m, n)``
    :return: shape ``(k, n)``, positive
    """
    root = np.tile(np.eye(matrices.shape[1]), (len(matrices), 1, 1))
    transposed = matrices.swapaxes(1, 2)
    for _ in range(_ITERATIONS):
        images = transposed @ root
        root = matrices @ (images / (np.linalg.norm(images, axis=2, keepdims=True) + 1e-300))
        root = root / (np.linalg.norm(root, axis=(1, 2), keepdims=True) + 1e-300)
    multipliers = np.linalg.norm(transposed @ root, axis=2)
    floor = 1e-9 * multipliers.max(axis=1, keepdims=True)
    return np.where(floor > 0, np.maximum(multipliers, floor), 1.0)
