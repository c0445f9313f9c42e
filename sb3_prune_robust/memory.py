"""The memories of a recurrent policy, one for each episode, and the policy as an attack sees it: with its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_prune_robust.network import UnsupportedNetworkError

Array = npt.NDArray[Any]


class Memories:
    """
    The LSTM states of the episodes under way, known by their noise streams.

    Beside the actor's, which ``predict`` gives back, there is the critic's, which is not kept: attacks that look at the value
    function are refused.

    :param policy: a policy of RecurrentPPO
    """

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        layers, _, size = policy.lstm_hidden_state_shape
        self.empty = np.zeros((layers, size), np.float32), np.zeros((layers, size), np.float32)
        self._known: dict[int, tuple[Any, Any]] = {}  # the stream as well: while it is held its id is its own

    def of(self, streams: Sequence[np.random.Generator]) -> tuple[Array, Array]:
        """
        :param streams: of ``n`` episodes
        :return: hidden and cell states, each of shape ``(n_layers, n, size)``
        """
        states = [self._known[id(stream)][1] if id(stream) in self._known else self.empty for stream in streams]
        return np.stack([state[0] for state in states], axis=1), np.stack([state[1] for state in states], axis=1)

    def arguments(self, streams: Sequence[np.random.Generator]) -> dict[str, Any]:
        """What ``predict`` is given beside the observations."""
        return {"state": self.of(streams), "episode_start": np.zeros(len(streams), bool)}

    def keep(self, streams: Sequence[np.random.Generator], state: tuple[Array, Array]) -> None:
        """
        :param streams: of ``n`` episodes
        :param state: what ``predict`` gave back
        """
        for i, stream in enumerate(streams):
            self._known[id(stream)] = stream, (state[0][:, i], state[1][:, i])


class MemoryView:
    """
    A recurrent policy with the memories of ``n`` episodes, as a policy that has none: a function of the observation.

    :param policy: a policy of RecurrentPPO
    :param memory: hidden and cell states, each of shape ``(n_layers, n, size)``
    """

    def __init__(self, policy: Any, memory: tuple[Array, Array]) -> None:
        self._recurrent, self.memory = policy, memory  # not `policy`: algorithms are told by that

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_recurrent"], name)

    def get_distribution(self, obs: Any) -> Any:
        """
        :param obs: ``k n`` observations, blocks of ``n`` one after the other (the restarts of a search)
        :return: the distribution of actions with the memories as they are, which do not change
        """
        n_rows = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        times = n_rows // self.memory[0].shape[1]
        states = tuple(th.as_tensor(part, device=self._recurrent.device).repeat(1, times, 1) for part in self.memory)
        start = th.zeros(n_rows, device=self._recurrent.device)
        return self._recurrent.get_distribution(obs, states, start)[0]

    def predict_values(self, obs: Any) -> th.Tensor:
        """:raises UnsupportedNetworkError: always: the critic's memory is not known in evaluation"""
        raise UnsupportedNetworkError(
            f"{type(self._recurrent).__name__}: the critic has a memory of its own that is not kept in evaluation, so the "
            "critic attack is not covered; use random, fgsm, pgd or mad (--attacks)"
        )
