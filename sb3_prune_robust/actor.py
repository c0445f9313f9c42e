"""What a policy does with a batch of observations, with a noise stream for each episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import is_masking_supported
from scipy.special import softmax
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN

from sb3_prune_robust.memory import Memories, MemoryView
from sb3_prune_robust.network import (
    ActionNetwork,
    Network,
    UnsupportedNetworkError,
    action_network,
    kind_of,
    spread_network,
)
from sb3_prune_robust.observations import Observations, rows

Array = npt.NDArray[Any]
AnyNetwork = TypeVar("AnyNetwork", bound=Network)
RULED_OUT = -1e8  # logit of a choice that a mask rules out, as in sb3-contrib


def action_masks(policy: Any, venv: VecEnv, chosen: Array | None = None) -> Array | None:
    """
    The choices that a maskable policy may make.

    :param policy: an SB3 policy
    :param venv: its environments
    :param chosen: of these environments alone
    :return: shape ``(n, n_choices)``; ``None`` where all are allowed: for other policies, or environments without masks
    """
    # MaskablePPO's own classes alone take masks.
    if not isinstance(policy, MaskableActorCriticPolicy) or not is_masking_supported(venv):
        return None
    masks = venv.env_method("action_masks", indices=None if chosen is None else chosen.tolist())
    return np.stack(masks).reshape(len(masks), -1)


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
        self.spread: Network | None = None
        try:
            self.network = _in_one_type(action_network(policy))
            squashed = not deterministic and kind_of(policy) == "squashed"
            self.spread = _in_one_type(spread_network(policy)) if squashed else None
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
        inputs = observations.reshape(len(observations), -1).astype(np.float32, copy=False)
        outputs = self.network(inputs)
        if self.network.nvec:
            if masks is not None:
                outputs = np.where(masks.reshape(outputs.shape), outputs, np.float32(RULED_OUT))
            return self._choose(outputs, self.network.nvec, streams)
        if self.network.box is not None:
            return self._within(self.network.box.action(outputs + self._squashed_noise(inputs, streams))), None
        return self._gaussian(outputs, self.network.std, streams)

    def _squashed_noise(self, inputs: Array, streams: Sequence[np.random.Generator]) -> Any:
        """Of SAC, TQC and CrossQ, before the tanh: its spread depends on the state."""
        if self.spread is None:
            return 0.0
        std = np.exp(np.clip(self.spread(inputs), LOG_STD_MIN, LOG_STD_MAX))
        return (std * np.stack([stream.standard_normal(std.shape[1]) for stream in streams])).astype(std.dtype)

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

    def _predict(self, observations: Observations, streams: Sequence[np.random.Generator], masks: Array | None) -> Array:
        """Through the policy itself; samples row by row, each with the noise of its own stream, whatever rows stand beside."""
        if self.deterministic:
            return self._batch(observations, streams, masks)
        parts = [slice(i, i + 1) for i in range(len(streams))]
        actions = [self._batch(rows(observations, p), streams[p], None if masks is None else masks[p]) for p in parts]
        return np.concatenate(actions)

    def _batch(self, observations: Observations, streams: Sequence[np.random.Generator], masks: Array | None) -> Array:
        arguments: dict[str, Any] = {} if masks is None else {"action_masks": masks}
        if self.memories is not None:
            arguments = self.memories.arguments(streams)
        with th.random.fork_rng(devices=[]):
            if not self.deterministic:
                th.manual_seed(int(streams[0].integers(2**31)))
                if getattr(self.policy, "use_sde", False):
                    self.policy.reset_noise(len(streams))
            actions: Array
            actions, state = self.policy.predict(observations, deterministic=self.deterministic, **arguments)
        if self.memories is not None:
            self.memories.keep(streams, state)
        return actions


def _in_one_type(network: AnyNetwork) -> AnyNetwork:
    """Where something was folded in, some arrays are float64."""
    if len({weight.dtype for weight in network.weights}) == 1:
        return network
    cast: Any = network.astype(np.float32)
    return cast


def _invert(logits: Array, uniform: Array) -> Array:
    cumulative = softmax(logits.astype(np.float64), axis=1).cumsum(axis=1)
    return np.minimum((cumulative < uniform).sum(axis=1), logits.shape[1] - 1)
