"""An environment of no consequence, for what does not depend on one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

BOX = spaces.Box(-2.0, 2.0, (2,))


class Walk(gym.Env[Any, Any]):
    """Observations at random, a reward for acting along with them, episodes of 20 steps at most."""

    observation_space = spaces.Box(-3.0, 3.0, (3,))

    def __init__(self, actions: Any = BOX) -> None:
        self.action_space = actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 20
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        reward, self.left = float(self.seen[0] * np.ravel(action)[0]), self.left - 1
        return self._observe(), reward, bool(self.np_random.random() < 0.05), self.left == 0, {}

    def _observe(self) -> Any:
        self.seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.seen
