"""
Bound B, the product of spectral norms: global, often tighter than bound A in l_2, and NOT monotone under pruning.

``[[1, 1], [1, -1]]`` has norm 1.414; with the -1 set to zero it has 1.618.
"""

from __future__ import annotations

import math

import numpy as np

from sb3_prune_robust.bounds.ball import UNIT_ROUNDOFF, Ball, rounding_margin
from sb3_prune_robust.network import Array, Network


def spectral_norm(matrix: Array) -> float:
    """
    The largest singular value in float64, rounded up.

    LAPACK's is within ``p(m, n) u ||W||_2``, ``p`` a modest polynomial (LAPACK Users' Guide, section 4.9); ``10 m n`` is far
    above what is seen. Power iteration would approach the norm from below and certify nothing.

    :param matrix: shape ``(n_out, n_in)``
    :return: an upper bound on its spectral norm
    """
    if not np.all(np.isfinite(matrix)):
        return math.inf
    return float(np.linalg.norm(matrix.astype(np.float64), 2)) * (1.0 + 10.0 * (matrix.size + 10) * UNIT_ROUNDOFF)


def hidden_change(network: Network, ball: Ball) -> float:
    """
    Bound on the l_2 change of the last hidden layer: ``l_phi ||W_1 diag(eps)||_2 prod_{1<l<L} ||W_l||_2``.

    For the l_inf ball times ``sqrt(number of attackable inputs)``, as the unit box lies in the l_2 ball of that radius. With
    one layer only it is the bound on the scaled input itself.

    :param network: a network in float64
    :param ball: the perturbations
    :return: the bound
    """
    reach = math.sqrt(ball.n_attackable) if ball.norm == "linf" else 1.0
    norms = [spectral_norm(weight) for weight in _hidden_weights(network, ball)]
    margin = 1.0 + rounding_margin(4 * len(network.weights) + 8)
    return math.prod(norms) * network.activation_lipschitz * reach * margin


def _hidden_weights(network: Network, ball: Ball) -> list[Array]:
    if len(network.weights) == 1:
        return []
    return [network.weights[0] * ball.eps, *network.weights[1:-1]]


def output_rows(network: Network, ball: Ball) -> Array:
    """
    The last layer's matrix, with ``eps`` folded in if it is the first layer too.

    :param network: a network in float64
    :param ball: the perturbations
    :return: shape ``(n_outputs, n_last_hidden)``
    """
    last = network.weights[-1]
    return last * ball.eps if len(network.weights) == 1 else last
