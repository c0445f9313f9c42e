"""Random noise: the baseline that every attack has to beat."""

from __future__ import annotations

from typing import Any

from sb3_prune_robust.attacks.balls import Ball
from sb3_prune_robust.attacks.base import Array, Attack


class RandomAttack(Attack):
    """Uniform in the ball, for ``"l2"`` too (uniform in volume). Arguments as in :class:`Attack`."""

    def perturb(self, policy: Any, ball: Ball) -> Array:
        return ball.random(self._rng)
