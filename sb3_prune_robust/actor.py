"""What a policy does with a batch of observations, with a noise stream for each episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from scipy.special import softmax

from sb3_prune_robust.network import ActionNetwork, UnsupportedNetworkError, action_network

Array = npt.NDArray[Any]


class Actor:
    """
    The actions of an SB3 policy: those of ``policy.predict``, several times faster where its network is a plain MLP.

    :param policy: an actor-critic policy
    :param deterministic: the mode of the action distribution rather than a sample
    """

    def __init__(self, policy: Any, deterministic: bool) -> None:
        policy.set_training_mode(False)
        self.policy, self.deterministic = policy, deterministic
        self.network: ActionNetwork | None
        try:
            self.network = action_network(policy)
        except UnsupportedNetworkError:
            self.network = None  # the same actions through the policy itself

    def __call__(self, observations: Array, streams: Sequence[np.random.Generator]) -> tuple[Array, Array | None]:
        """
        :param observations: as the policy receives them, shape ``(n, *observation_shape)``
        :param streams: a generator for each row
        :return: actions within the action space, shape ``(n, *action_shape)``; and what was drawn for them, ``None`` if
            nothing was or it is not known: for a Gaussian policy the standard normal ``Sigma^(-1/2) (a - mu)`` of the action
            before clipping, shape ``(n, action_dim)``, else the choice of each categorical, shape ``(n, n_groups)``
        """
        if self.network is None:
            return self._predict(observations, streams), None
        outputs = self.network(observations.reshape(len(observations), -1).astype(np.float32, copy=False))
        if self.network.std is not None:
            return self._gaussian(outputs, self.network.std, streams)
        return self._categorical(outputs, self.network.nvec, streams)

    def _gaussian(self, mean: Array, std: Array, streams: Sequence[np.random.Generator]) -> tuple[Array, Array | None]:
        noise = None
        if not self.deterministic:
            noise = np.stack([stream.standard_normal(mean.shape[1]) for stream in streams])
            mean = mean + std * noise
        space: spaces.Box = self.policy.action_space
        return np.clip(mean.reshape(-1, *space.shape), space.low, space.high).astype(space.dtype), noise

    def _categorical(
        self, logits: Array, nvec: tuple[int, ...], streams: Sequence[np.random.Generator]
    ) -> tuple[Array, Array | None]:
        parts = np.split(logits, np.cumsum(nvec)[:-1], axis=1)
        if self.deterministic:
            choices = [part.argmax(axis=1) for part in parts]
        else:
            # Inverting the distribution function: one uniform number for each choice, however many the options are.
            uniform = np.stack([stream.random(len(nvec)) for stream in streams])
            choices = [_invert(part, uniform[:, [i]]) for i, part in enumerate(parts)]
        space: Any = self.policy.action_space
        actions = np.stack(choices, axis=1)
        return actions.reshape(-1, *space.shape), None if self.deterministic else actions

    def _predict(self, observations: Array, streams: Sequence[np.random.Generator]) -> Array:
        with th.random.fork_rng(devices=[]):
            th.manual_seed(int(streams[0].integers(2**31)))
            if getattr(self.policy, "use_sde", False) and not self.deterministic:
                self.policy.reset_noise(len(observations))
            actions: Array = self.policy.predict(observations, deterministic=self.deterministic)[0]
        return actions


def _invert(logits: Array, uniform: Array) -> Array:
    cumulative = softmax(logits.astype(np.float64), axis=1).cumsum(axis=1)
    return np.minimum((cumulative < uniform).sum(axis=1), logits.shape[1] - 1)
