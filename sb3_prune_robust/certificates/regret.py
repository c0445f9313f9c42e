"""
The regret of a pruned policy under attack, in three terms ("Pruning Cannot Hurt Robustness", Pedley et al. 2025).

With ``pi`` dense, ``pi~`` pruned and ``pi*`` the best clean policy,

    J(pi*) - inf_nu J(pi~ o nu) = [J(pi*) - J(pi)]                     clean-task term, no certificate
                                + [J(pi) - J(pi~)]                     pruning loss, bounded by (2) of `returns`
                                + [J(pi~) - inf_nu J(pi~ o nu)]        robustness term, bounded by (1) or (1') of `returns`

An attack bounds the robustness term from BELOW, a certificate from above. ``J(pi*)`` is not known: the best clean return seen
for the environment stands in. All returns of one decomposition are of one kind: discounted as the certificates are, or raw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.certificates.confidence import MeanBound, lower_mean
from sb3_prune_robust.certificates.returns import Episodes, LossBound, discounted_sums, remaining
from sb3_prune_robust.certificates.rewards import RewardRange
from sb3_prune_robust.network import Array


@dataclass(frozen=True)
class RegretTerms:
    """
    The three terms as measured, means over episodes.

    :param best_clean_return_seen: what stands in for ``J(pi*)``
    :param clean_task: ``best_clean_return_seen - J(pi)``
    :param pruning_loss: ``J(pi) - J(pi~)``, negative where pruning helped
    :param robustness: ``J(pi~)`` minus the return under the strongest attack found: a lower bound on the third term
    """

    best_clean_return_seen: float
    clean_task: float
    pruning_loss: float
    robustness: float

    @property
    def total(self) -> float:
        """Regret under the strongest attack found: the sum of the three."""
        return self.clean_task + self.pruning_loss + self.robustness


def _mean(name: str, returns: npt.ArrayLike) -> float:
    array = np.asarray(returns, dtype=np.float64)
    if array.size == 0 or not np.all(np.isfinite(array)):
        raise ValueError(
            f"{name} must be one or more finite returns, got {array.size}, {np.isfinite(array).sum()} of them finite"
        )
    return float(array.mean())


def regret_terms(
    best_clean_return_seen: float, dense_clean: npt.ArrayLike, pruned_clean: npt.ArrayLike, pruned_attacked: npt.ArrayLike
) -> RegretTerms:
    """
    The decomposition as measured.

    :param best_clean_return_seen: largest mean clean return of any agent seen on this environment, these two included
    :param dense_clean: returns of the dense policy without attack, one per episode
    :param pruned_clean: of the pruned policy without attack
    :param pruned_attacked: of the pruned policy under the attack that lowers its mean most
    :return: the three terms
    :raises ValueError: for no returns, returns that are not finite, or a best return that is not the best
    """
    best = _mean("best_clean_return_seen", best_clean_return_seen)
    dense, pruned = _mean("dense_clean", dense_clean), _mean("pruned_clean", pruned_clean)
    if best < max(dense, pruned):
        raise ValueError(f"best_clean_return_seen {best:g} is below a clean return given here, {max(dense, pruned):g}")
    return RegretTerms(best, best - dense, dense - pruned, pruned - _mean("pruned_attacked", pruned_attacked))


def robustness_gain(
    dense_clean: npt.ArrayLike, dense_attacked: npt.ArrayLike, pruned_clean: npt.ArrayLike, pruned_attacked: npt.ArrayLike
) -> float:
    """
    ``[J(pi) - J(pi o nu)] - [J(pi~) - J(pi~ o nu~)]`` as measured, each under the strongest attack found on it.

    Pruning pays where it exceeds the pruning loss, that is, where the worst return rises.

    :param dense_clean: returns of the dense policy without attack
    :param dense_attacked: under attack
    :param pruned_clean: returns of the pruned policy without attack
    :param pruned_attacked: under attack
    :return: the gain
    :raises ValueError: for no returns, or returns that are not finite
    """
    dense_loss = _mean("dense_clean", dense_clean) - _mean("dense_attacked", dense_attacked)
    return dense_loss - (_mean("pruned_clean", pruned_clean) - _mean("pruned_attacked", pruned_attacked))


@dataclass(frozen=True)
class CertifiedRegret:
    """
    Upper bounds on the terms that have one; the clean-task term has none.

    :param pruning_loss: (2) with ``D_TV(pi, pi~)``, states from ``pi``; ``None``: not certified
    :param robustness: (1) or (1') with ``F(pi~)``, states from ``pi~``; ``None``: not certified
    """

    pruning_loss: LossBound | None
    robustness: LossBound | None

    @property
    def total(self) -> float | None:
        """Bound on ``J(pi) - inf_nu J(pi~ o nu)``: the regret but for the clean-task term."""
        if self.pruning_loss is None or self.robustness is None:
            return None
        return self.pruning_loss.value + self.robustness.value

    @property
    def confidence(self) -> float | None:
        """With which ``total`` holds: the two may fail separately (union bound)."""
        if self.pruning_loss is None or self.robustness is None:
            return None
        return self.pruning_loss.tv.confidence + self.robustness.tv.confidence - 1.0


@dataclass(frozen=True)
class CertifiedGain:
    """
    A lower bound on the robustness gain of pruning.

    :param value: ``attacked_loss.bound - certified_loss``
    :param attacked_loss: lower confidence bound on what an attack costs the dense policy
    :param certified_loss: upper bound on what any attack can cost the pruned policy
    :param confidence: with which ``value`` holds (union bound)
    """

    value: float
    attacked_loss: MeanBound
    certified_loss: float
    confidence: float


def certified_gain(attacked_loss: MeanBound, certified_loss: LossBound) -> CertifiedGain:
    """
    A certified gain: (lower bound of the attacked loss of ``pi``) - (certified loss of ``pi~``).

    The difference of two certified losses would certify nothing: both are upper bounds.

    :param attacked_loss: from :func:`attacked_loss_bound` on the dense policy
    :param certified_loss: of the pruned policy, for the same discount and horizon
    :return: the gain, negative where nothing is shown
    """
    confidence = attacked_loss.confidence + certified_loss.tv.confidence - 1.0
    return CertifiedGain(attacked_loss.bound - certified_loss.value, attacked_loss, certified_loss.value, confidence)


def attacked_loss_bound(
    clean: tuple[Episodes, Sequence[bool]],
    attacked: tuple[Episodes, Sequence[bool]],
    known: RewardRange,
    gamma: float,
    horizon: int | None = None,
    alpha: float = 0.05,
) -> MeanBound | None:
    """
    A lower confidence bound on ``J(pi) - J(pi o nu)`` for one attack ``nu``, hence on the loss under the worst.

    The attack must have been chosen on other episodes. Episodes are paired in the order given (same seeds: a tighter bound).

    :param clean: rewards of each step of each clean episode, and whether each ended by itself
    :param attacked: the same of as many attacked episodes
    :param known: the rewards' range
    :param gamma: discount
    :param horizon: the cap, or ``None``
    :param alpha: probability that the bound fails
    :return: mean and lower bound, or ``None`` if no range of the rewards is known
    :raises ValueError: naming the argument
    """
    limits = known.limits
    if limits is None:
        return None
    if len(clean[0]) != len(attacked[0]):
        raise ValueError(f"clean and attacked must have as many episodes, got {len(clean[0])} and {len(attacked[0])}")
    lowest = _returns(clean, gamma, horizon, tail=limits[0])
    highest = _returns(attacked, gamma, horizon, tail=limits[1])
    span = (limits[1] - limits[0]) * (1.0 / (1.0 - gamma) if horizon is None else float(remaining(horizon, gamma)))
    return lower_mean(lowest - highest, -span, span, alpha)


def _returns(episodes: tuple[Episodes, Sequence[bool]], gamma: float, horizon: int | None, tail: float) -> Array:
    return discounted_sums(*episodes, gamma, horizon, tail)
