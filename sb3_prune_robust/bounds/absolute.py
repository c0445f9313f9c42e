"""
Bound A, the absolute path product: global, and monotone under pruning.

With ``P = l_phi |W_L| ... |W_1|``, ``|f(s) - f(s_hat)| <= P |s - s_hat|`` elementwise: by induction over the layers, as
``|W h - W h'| <= |W| |h - h'|`` and ``|phi(x) - phi(y)| <= l_phi |x - y|``. Zeroing a weight lowers or leaves every entry of
``P``, hence everything computed from it by a function that rises with each entry ("Pruning Cannot Hurt Robustness",
Pedley et al. 2025, arXiv 2510.12939).

The computed numbers keep this exactly. Correctly rounded additions, products and square roots of non-negative numbers never
fall when an operand rises, so a fixed sequence of them is monotone; BLAS and numpy's reductions promise no fixed order, which
is why the sums here are Python loops over elementwise operations. Rounding margins depend on shapes only.
"""

from __future__ import annotations

import math

import numpy as np

from sb3_prune_robust.bounds.ball import Ball, rounding_margin
from sb3_prune_robust.network import Array, Network

# 2^20-th power of a matrix: the trace bound is then within r^(2^-21) of the norm, 1.4e-6 relative at rank 17.
_SQUARINGS = 20


def ordered_sum(terms: Array) -> Array:
    """
    The sum over the first axis, one term after the other.

    :param terms: shape ``(n, ...)``
    :return: shape ``(...)``
    """
    total = np.zeros(terms.shape[1:])
    for term in terms:
        total = total + term
    return total


def _ordered_matmul(left: Array, right: Array) -> Array:
    product = np.zeros((left.shape[0], right.shape[1]))
    for column, row in zip(left.T, right, strict=True):
        product += column[:, None] * row
    return product


def absolute_path_product(network: Network, ball: Ball) -> Array:
    """
    ``P diag(eps)``, rounded up: how far each output can move per unit of each input of the unit ball.

    :param network: a network in float64
    :param ball: the perturbations
    :return: shape ``(n_outputs, n_inputs)``, in units of the outputs
    """
    product = np.abs(network.weights[0]) * ball.eps
    for weight in network.weights[1:]:
        product = _ordered_matmul(np.abs(weight), product)
    depth = sum(weight.shape[1] + 2 for weight in network.weights)
    return product * (network.activation_lipschitz * (1.0 + rounding_margin(depth + len(network.weights))))


def path_radius(product: Array, ball: Ball) -> Array:
    """
    Bound on the change of each output: ``eps P 1`` (l_inf), ``eps ||P_i||_2`` (l_2).

    :param product: from :func:`absolute_path_product`, shape ``(n_outputs, n_inputs)``
    :param ball: the perturbations
    :return: shape ``(n_outputs,)``
    """
    margin = 1.0 + rounding_margin(product.shape[1] + 4)
    if ball.norm == "linf":
        return ordered_sum(product.T) * margin
    return np.sqrt(ordered_sum(np.square(product.T))) * margin


def path_norm(product: Array, ball: Ball) -> float:
    """
    Bound on the l_2 norm of the outputs' joint change: ``eps ||P 1||_2`` (l_inf), ``eps ||P||_2`` (l_2).

    :param product: from :func:`absolute_path_product`, its rows divided by the std for whitened actions
    :param ball: the perturbations
    :return: the bound
    """
    if ball.norm == "linf":
        radius = path_radius(product, ball)
        return math.sqrt(float(ordered_sum(np.square(radius)))) * (1.0 + rounding_margin(len(radius) + 4))
    return nonnegative_spectral_norm(product)


def nonnegative_spectral_norm(matrix: Array) -> float:
    """
    An upper bound on ``||Q||_2`` of a non-negative matrix that never rises when an entry falls.

    ``||Q||_2^2 = rho(M) <= tr(M^n)^(1/n)`` for ``M = Q Q^T``, positive semidefinite; with ``n = 2^20`` it is above by at most
    a factor ``rank^(2^-21)``. A singular value decomposition is as sharp but monotone only up to its rounding. Powers are
    scaled by powers of two, which is exact, and the root is taken as repeated square roots, correctly rounded.

    :param matrix: non-negative, shape ``(n_outputs, n_inputs)``
    :return: the bound, relative error at most ``rank^(2^-21) - 1`` and rounding, upwards
    """
    if not np.all(np.isfinite(matrix)):
        return math.inf
    factor = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    factor, factor_exponent = _scaled(factor)
    power, exponent = _scaled(_ordered_matmul(factor, factor.T))
    exponent += 2 * factor_exponent
    for _ in range(_SQUARINGS):
        power, scale = _scaled(_ordered_matmul(power, power))
        exponent = 2 * exponent + scale
    root = _root(float(ordered_sum(np.diag(power))), exponent, _SQUARINGS + 1)
    # An error made after j squarings counts 2^-j of itself in the root: in all at most twice that of the first product.
    return root * (1.0 + rounding_margin(2 * (factor.shape[1] + factor.shape[0]) + 64))


def _scaled(matrix: Array) -> tuple[Array, int]:
    """``matrix = scaled * 2^exponent`` with the largest entry of ``scaled`` in [1/2, 1)."""
    exponent = int(np.frexp(matrix.max(initial=0.0))[1])
    return np.ldexp(matrix, -exponent), exponent


def _root(value: float, exponent: int, n_square_roots: int) -> float:
    """``(value * 2^exponent)^(2^-n)`` without ever forming the large number."""
    for _ in range(n_square_roots):
        if exponent % 2:
            value, exponent = 2.0 * value, exponent - 1
        value, exponent = math.sqrt(value), exponent // 2
    return math.ldexp(value, exponent)
