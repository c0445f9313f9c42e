"""What a policy does with a batch of observations, with a noise stream for each episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from scipy.special import softmax

from sb3_prune_robust.memory import Memories, MemoryView
from sb3_prune_robust.network import ActionNetwork, UnsupportedNetworkError, action_network

Array = npt.NDArray[Any]
RULED_OUT = -1e8  # logit of a choice that a mask rules out, as in sb3-contrib


class Actor:
    """
    The actions of an SB3 policy: those of ``policy.predict``, several times faster where its network is a plain MLP.

    A recurrent policy's memory is kept by stream: a stream is an episode, and a new one begins with an empty memory.

    :param policy: an SB3 policy
    :param deterministic: the mode of the action distribution rather than a sample; without effect on policies that have no
        noise of their own (TD3, DQN, ARS)
    """

    def __init__(self, policy: Any, deterministic: bool) -> None:
        policy.set_training_mode(False)
        self.policy, self.deterministic = policy, deterministic
        self.memories = Memories(policy) if hasattr(policy, "lstm_actor") else None
        self.network: ActionNetwork | None
        try:
            network = action_network(policy)
            if len({weight.dtype for weight in network.weights}) > 1:  # something was folded in, in float64
                network = network.astype(np.float32)
            knows_noise = network.has_distribution or not _has_noise(policy)
            self.network = network if deterministic or knows_noise else None
        except UnsupportedNetworkError:
            self.network = None  # the same actions through the policy itself

    def victim(self, streams: Sequence[np.random.Generator]) -> Any:
        """
        What an attack sees as the policy: a recurrent one with the memories of these episodes.

        :param streams: a generator for each observation
        """
        return self.policy if self.memories is None else MemoryView(self.policy, self.memories.of(streams))

    def __call__(
        self, observations: Any, streams: Sequence[np.random.Generator], masks: Array | None = None
    ) -> tuple[Array, Array | None]:
        """
        :param observations: as the policy receives them, ``n`` rows: an array, or arrays by key
        :param streams: a generator for each row
        :param masks: of a maskable policy, the choices allowed, shape ``(n, n_choices)``; ``None``: all
        :return: actions within the action space, shape ``(n, *action_shape)``; and what was drawn for them, ``None`` if
            nothing was or it is not known: for a Gaussian policy the standard normal ``Sigma^(-1/2) (a - mu)`` of the action
            before clipping, shape ``(n, action_dim)``, else the choice of each categorical, shape ``(n, n_groups)``
        """
        if self.network is None:
            return self._predict(observations, streams, masks), None
        outputs = self.network(observations.reshape(len(observations), -1).astype(np.float32, copy=False))
        if self.network.nvec:
            if masks is not None:
                outputs = np.where(masks.reshape(outputs.shape), outputs, np.float32(RULED_OUT))
            return self._choose(outputs, self.network.nvec, streams)
        if self.network.box is not None:
            return self._within(self.network.box.action(outputs)), None
        return self._gaussian(outputs, self.network.std, streams)

    def _within(self, actions: Array) -> Array:
        space: spaces.Box = self.policy.action_space
        return np.clip(actions.reshape(-1, *space.shape), space.low, space.high).astype(space.dtype)

    def _gaussian(self, mean: Array, std: Array | None, streams: Sequence[np.random.Generator]) -> tuple[Array, Array | None]:
        noise = None
        if not self.deterministic and std is not None:
            noise = np.stack([stream.standard_normal(mean.shape[1]) for stream in streams])
            mean = mean + std * noise
        return self._within(mean), noise

    def _choose(
        self, logits: Array, nvec: tuple[int, ...], streams: Sequence[np.random.Generator]
    ) -> tuple[Array, Array | None]:
        assert self.network is not None
        greedy = self.deterministic or self.network.greedy
        parts = np.split(logits, np.cumsum(nvec)[:-1], axis=1)
        if greedy:
            choices = [part.argmax(axis=1) for part in parts]
        else:
            # Inverting the distribution function: one uniform number for each choice, however many the options are.
            uniform = np.stack([stream.random(len(nvec)) for stream in streams])
            choices = [_invert(part, uniform[:, [i]]) for i, part in enumerate(parts)]
        space: Any = self.policy.action_space
        actions = np.stack(choices, axis=1)
        return actions.reshape(-1, *space.shape), None if greedy else actions

    def _predict(self, observations: Any, streams: Sequence[np.random.Generator], masks: Array | None) -> Array:
        arguments: dict[str, Any] = {} if masks is None else {"action_masks": masks}
        if self.memories is not None:
            arguments = self.memories.arguments(streams)
        with th.random.fork_rng(devices=[]):
            th.manual_seed(int(streams[0].integers(2**31)))
            if getattr(self.policy, "use_sde", False) and not self.deterministic:
                self.policy.reset_noise(len(streams))
            actions: Array
            actions, state = self.policy.predict(observations, deterministic=self.deterministic, **arguments)
        if self.memories is not None:
            self.memories.keep(streams, state)
        return actions


def _has_noise(policy: Any) -> bool:
    return hasattr(getattr(policy, "actor", None), "latent_pi")  # SAC, TQC, CrossQ: noise that depends on the state


def _invert(logits: Array, uniform: Array) -> Array:
    cumulative = softmax(logits.astype(np.float64), axis=1).cumsum(axis=1)
    return np.minimum((cumulative < uniform).sum(axis=1), logits.shape[1] - 1)
