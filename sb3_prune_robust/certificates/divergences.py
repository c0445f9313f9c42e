"""Total variation and Kullback-Leibler divergence of action distributions: exact where there is a formula, else bounds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import erf, log_softmax, softmax

from sb3_prune_robust.network import Array


def gaussian_tv(delta: npt.ArrayLike) -> Array:
    """
    ``D_TV(N(mu, Sigma), N(mu', Sigma)) = erf(delta / (2 sqrt 2))``, exact.

    Along ``Sigma^(-1/2) (mu - mu')`` the two are ``N(0, 1)`` and ``N(delta, 1)``, alike across it; the densities cross at
    ``delta / 2``, so ``D_TV = Phi(delta / 2) - Phi(-delta / 2)``.

    :param delta: ``||Sigma^(-1/2) (mu - mu')||_2``, any shape
    :return: total variation, same shape
    """
    return np.asarray(erf(np.asarray(delta, dtype=np.float64) / (2.0 * np.sqrt(2.0))))


def gaussian_kl(delta: npt.ArrayLike) -> Array:
    """
    ``KL(N(mu, Sigma) || N(mu', Sigma)) = delta^2 / 2``, exact and the same both ways.

    :param delta: ``||Sigma^(-1/2) (mu - mu')||_2``, any shape
    :return: divergence in nats, same shape
    """
    return 0.5 * np.square(np.asarray(delta, dtype=np.float64))


def diagonal_gaussian_kl(mean: Array, std: Array, other_mean: Array, other_std: Array) -> Array:
    """
    ``KL(N(mu, diag(s^2)) || N(m, diag(t^2))) = sum_i log(t_i / s_i) + (s_i^2 + (mu_i - m_i)^2) / (2 t_i^2) - 1/2``.

    :param mean: ``mu``, shape ``(..., action_dim)``
    :param std: ``s``, shape ``(action_dim,)``
    :param other_mean: ``m``, shape ``(..., action_dim)``
    :param other_std: ``t``, shape ``(action_dim,)``
    :return: divergence in nats, shape ``(...)``
    """
    ratio = std / other_std
    shift = (mean - other_mean) / other_std
    return np.asarray(np.sum(-np.log(ratio) + 0.5 * (ratio**2 + shift**2) - 0.5, axis=-1))


def tv_from_kl(kl: npt.ArrayLike) -> Array:
    """
    ``D_TV <= min(sqrt(KL / 2), sqrt(1 - exp(-KL)))``: Pinsker, and Bretagnolle and Huber (1979), which stays below 1.

    :param kl: divergence in nats, either way round, any shape
    :return: bound on the total variation, same shape
    """
    kl = np.maximum(np.asarray(kl, dtype=np.float64), 0.0)
    return np.minimum(np.sqrt(0.5 * kl), np.sqrt(-np.expm1(-kl)))


def categorical_tv(logits: Array, other_logits: Array) -> Array:
    """
    ``D_TV(softmax(z), softmax(z')) = 1/2 sum_i |p_i - p'_i|``, exact.

    :param logits: ``z``, shape ``(..., n)``
    :param other_logits: ``z'``, shape ``(..., n)``
    :return: total variation, shape ``(...)``
    """
    return np.asarray(0.5 * np.abs(softmax(logits, axis=-1) - softmax(other_logits, axis=-1)).sum(axis=-1))


def categorical_kl(logits: Array, other_logits: Array) -> Array:
    """
    ``KL(softmax(z) || softmax(z')) = sum_i p_i (log p_i - log p'_i)``, exact.

    :param logits: ``z``, shape ``(..., n)``
    :param other_logits: ``z'``, shape ``(..., n)``
    :return: divergence in nats, shape ``(...)``
    """
    log_p, log_q = log_softmax(logits, axis=-1), log_softmax(other_logits, axis=-1)
    return np.asarray(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1))


def categorical_tv_bound(omega: npt.ArrayLike) -> Array:
    """
    ``D_TV <= tanh(omega / 4)`` for logits whose changes span ``omega = max_i D_i - min_i D_i``; attained.

    The log-odds of any event move by at most ``omega``, and ``sigma(x + omega) - sigma(x)`` is largest at ``x = -omega / 2``.
    For a product of independent categoricals (MultiDiscrete) the joint logits are sums: give the sum of the ``omega``.

    :param omega: any shape
    :return: bound on the total variation, same shape
    """
    return np.asarray(np.tanh(np.asarray(omega, dtype=np.float64) / 4.0))


def categorical_kl_bound(omega: npt.ArrayLike) -> Array:
    """
    ``KL <= omega^2 / 8``, both ways round.

    ``KL(p || p') = log E_p[exp D] - E_p[D]`` with ``D`` in an interval of length ``omega``: Hoeffding's lemma. Independent
    categoricals add up.

    :param omega: any shape
    :return: bound on the divergence in nats, same shape
    """
    return np.square(np.asarray(omega, dtype=np.float64)) / 8.0


def product_tv_bound(tv: Array) -> Array:
    """
    ``D_TV <= 1 - prod_g (1 - D_TV_g)`` for products of independent distributions: couple each pair optimally, independently.

    :param tv: total variation of each factor, shape ``(..., n_groups)``
    :return: bound on that of the products, shape ``(...)``
    """
    return np.asarray(1.0 - np.prod(1.0 - tv, axis=-1))
