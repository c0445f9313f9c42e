"""The bounds by name."""

from __future__ import annotations

from collections.abc import Callable

from sb3_prune_robust.bounds.action import ActionChange, absolute_change, lipsdp_change, spectral_change
from sb3_prune_robust.bounds.ball import Ball
from sb3_prune_robust.bounds.local import alpha_change, crown_change, interval_change
from sb3_prune_robust.network import ActionNetwork, Array

Method = Callable[[ActionNetwork, Array, Ball], ActionChange]

# The same at every state.
GLOBAL_METHODS: dict[str, Method] = {"abs": absolute_change, "spectral": spectral_change, "lipsdp": lipsdp_change}
# All that "best" takes the smallest of.
METHODS: dict[str, Method] = {**GLOBAL_METHODS, "interval": interval_change, "crown": crown_change}
# With what is too slow to be tried unasked.
ALL_METHODS: dict[str, Method] = {**METHODS, "alpha": alpha_change}
