"""What all tests share."""

import gymnasium as gym

# Importing RL Zoo replaces gymnasium's time limit for the whole process. Tests that import the zoo would so change the
# environments of all others, which are compared with those of processes that do not import it.
_LIMIT = gym.wrappers.TimeLimit
import rl_zoo3  # noqa: E402, F401

gym.wrappers.TimeLimit = gym.wrappers.common.TimeLimit = _LIMIT
