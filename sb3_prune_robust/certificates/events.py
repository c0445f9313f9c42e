"""
How far a categorical policy can move from a KNOWN state: with its own probabilities, less than in the worst case over them.

The log-odds of every event ``A`` (set of actions) move by at most ``omega``, so that with ``x = log P(A) / (1 - P(A))``

    D_TV <= max_A  sigma(x_A + omega) - sigma(x_A)                           tanh(omega / 4) at the worst x
    d(s)  = max_A  Phi^(-1)(sigma(x_A + omega)) - Phi^(-1)(sigma(x_A))       2 Phi^(-1)(sigma(omega / 2)) at the worst x

The second is a shift for certified return 3: the trade-off curve of two distributions on finitely many actions is convex and
has its corners at events, so it lies above that of ``N(0, 1)`` against ``N(d, 1)``, also convex, as soon as its corners do. A
confident policy moves less: at ``P(A) = .99`` by three fifths of the worst case. Both depend on the weights through ``x`` too,
and so are not monotone under pruning even where ``omega`` is, nor the same at every state.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, log_expit, logsumexp, ndtri_exp

from sb3_prune_robust.certificates.divergences import categorical_tv_bound
from sb3_prune_robust.certificates.noise import categorical_shift
from sb3_prune_robust.network import Array

# Categoricals of more choices have too many events: they get the worst case over all probabilities.
LARGEST_CATEGORICAL = 8
# Relative and absolute: what the functions and the logits in float64 can be off by.
_RELATIVE, _ABSOLUTE = 1e-9, 1e-12
# A difference of two quantiles is off by a share of them, not of itself.
_QUANTILE_ERROR = 2e-15


def event_log_odds(logits: Array) -> Array:
    """
    The log-odds of every set of actions but the empty one and its complement.

    :param logits: shape ``(n, k)``, ``k <= LARGEST_CATEGORICAL``
    :return: shape ``(n, 2^k - 2)``
    """
    k = logits.shape[1]
    members = ((np.arange(1, 2**k - 1)[:, None] >> np.arange(k)) & 1).astype(bool)
    inside = np.stack([logsumexp(logits[:, chosen], axis=1) for chosen in members], axis=1)
    return np.asarray(inside - inside[:, ::-1])  # the complement of the i-th set is the i-th from the end


def event_tv_bound(logits: Array, omega: Array) -> Array:
    """
    Bound on the total variation of one categorical whose logits' changes span ``omega``, from its logits at the state.

    :param logits: shape ``(n, k)``
    :param omega: shape ``(n,)``
    :return: shape ``(n,)``, never above ``tanh(omega / 4)``
    """
    worst = categorical_tv_bound(omega)
    if not 2 <= logits.shape[1] <= LARGEST_CATEGORICAL:
        return worst
    odds = event_log_odds(logits)
    # sigma(x + omega) - sigma(x), with no difference of near equals.
    moved = expit(odds + omega[:, None]) * expit(-odds) * -np.expm1(-omega[:, None])
    return np.minimum(worst, moved.max(axis=1) * (1.0 + _RELATIVE) + _ABSOLUTE * np.minimum(omega, 1.0))


def event_shift(logits: Array, omega: Array) -> Array:
    """
    The shift ``d`` of certified return 3 for one categorical, from its logits at the state.

    :param logits: shape ``(n, k)``
    :param omega: shape ``(n,)``
    :return: shape ``(n,)``, never above ``2 Phi^(-1)(sigma(omega / 2))``; infinite where ``omega`` is
    """
    worst = categorical_shift(omega)
    if not 2 <= logits.shape[1] <= LARGEST_CATEGORICAL:
        return worst
    odds = event_log_odds(logits)
    above, at = _normal_quantile(odds + omega[:, None]), _normal_quantile(odds)
    moved = above - at + _QUANTILE_ERROR * (1.0 + np.abs(odds) + np.abs(above) + np.abs(at))
    return np.minimum(worst, moved.max(axis=1) * (1.0 + _RELATIVE) + _ABSOLUTE * np.minimum(omega, 1.0))


def _normal_quantile(odds: Array) -> Array:
    """``Phi^(-1)(sigma(x))``, by the tail that is the smaller."""
    return np.asarray(-np.sign(odds) * ndtri_exp(log_expit(-np.abs(odds))))
