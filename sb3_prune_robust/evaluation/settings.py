"""What an evaluation over sparsities measures, and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sb3_prune_robust.attacks import Budget
from sb3_prune_robust.attacks.registry import expand, is_fitted_attack
from sb3_prune_robust.certificates import RewardRange
from sb3_prune_robust.evaluation.held_out import check_attacks, check_seeds

MODES = ("stochastic", "deterministic")
NORMS = ("linf", "l2")
_GRID = (1 / 256, 1 / 64, 1 / 16, 1 / 4)  # of eps: returns are certified at far smaller radii than attacks need
NO_RANGE = RewardRange(None, None, ends_early=True, reason="no range of the rewards was given")


@dataclass(frozen=True)
class Settings:
    """
    What is measured, and how.

    :param eps: radius of the ball around each observation, in units of what the network receives (after VecNormalize)
    :param norm: ``"linf"`` or ``"l2"``
    :param attacks: names of attacks; suites are written out
    :param n_episodes: episodes for each cell (agent, sparsity, attack, mode)
    :param modes: ``"stochastic"`` and/or ``"deterministic"``; certificates speak of the stochastic policy alone
    :param gamma: discount of the certificates and the discounted returns
    :param seed: seed of the first episode
    :param confidence: level of every interval
    :param rewards: their range, or why none is known: then no return is certified
    :param horizon: time limit in steps, ``None`` if there is none
    :param eps_grid: further radii, for certified against attacked returns over eps; empty: 1/256, 1/64, 1/16, 1/4 of ``eps``
    :param smoothing_std: noise on observations for policy smoothing, certified beside the policy's own noise; ``None``: left
        out
    :param attack_budget: what fitting each learned attack may take, for each agent, sparsity and mode; ``None``: the
        default of its class
    :raises ValueError: for a value outside its range or an unknown name
    """

    eps: float
    norm: str = "linf"
    attacks: tuple[str, ...] = ("random", "fgsm", "mad", "critic")
    n_episodes: int = 50
    modes: tuple[str, ...] = MODES
    gamma: float = 0.99
    seed: int = 0
    confidence: float = 0.95
    rewards: RewardRange = NO_RANGE
    horizon: int | None = None
    eps_grid: tuple[float, ...] = ()
    smoothing_std: float | None = None
    attack_budget: Budget | None = None

    @property
    def learned(self) -> tuple[str, ...]:
        """The attacks that are learned on the agent before they attack."""
        return tuple(name for name in self.attacks if is_fitted_attack(name))

    @property
    def radii(self) -> tuple[float, ...]:
        """``eps`` and the radii of the grid, ascending; none if ``eps`` is 0."""
        grid = self.eps_grid or tuple(self.eps * share for share in _GRID)
        return tuple(sorted({*grid, self.eps})) if self.eps > 0 else ()

    @property
    def not_certified(self) -> str | None:
        """Why no return is certified, whatever the agents; ``None`` where one may be."""
        if "stochastic" not in self.modes:
            return "the agent plays its mode, and the noise of its samples is what certifies"
        if self.rewards.low is None:
            return f"no smallest reward is known ({self.rewards.reason}): give reward-min or clip-rewards"
        if self.eps == 0:
            return "eps is 0"
        return "one episode cannot both choose and certify" if self.n_episodes < 2 else None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must be a finite number of at least 0, got {self.eps!r}")
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r} is unknown; known: {', '.join(NORMS)}")
        check_attacks(self.attacks)
        object.__setattr__(self, "attacks", expand(self.attacks))
        _check_names("modes", self.modes, MODES)
        if self.n_episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.n_episodes!r}")
        if not 0 < self.gamma <= 1 or (self.gamma == 1 and self.horizon is None):
            raise ValueError(f"gamma must lie in (0, 1], and below 1 without a time limit; got {self.gamma!r}")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must lie in [0.5, 1), got {self.confidence!r}")
        if not all(math.isfinite(radius) and radius > 0 for radius in self.eps_grid):
            raise ValueError(f"eps_grid must hold positive finite numbers, got {self.eps_grid!r}")
        if self.smoothing_std is not None and not 0 < self.smoothing_std < math.inf:
            raise ValueError(f"smoothing_std must be positive and finite, got {self.smoothing_std!r}")
        check_seeds(self.seed, self.n_episodes)


def _check_names(argument: str, names: Sequence[str], known: Any) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) != len(names):
        what = f"{unknown[0]!r} is unknown" if unknown else f"each at most once and at least one, got {list(names)!r}"
        raise ValueError(f"{argument}: {what}; known: {', '.join(known)}")
