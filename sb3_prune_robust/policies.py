"""Stable-Baselines3 policies whose action network keeps a Lipschitz bound and its pruned weights at zero."""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_prune_robust.layers import LipschitzProjection, weight_masks
from sb3_prune_robust.network import action_network

DEFAULT_LIPSCHITZ = 20.0

SelfPolicy = TypeVar("SelfPolicy", bound=BasePolicy)
SelfLipschitz = TypeVar("SelfLipschitz", bound="_LipschitzActorCriticPolicy")


class _LipschitzActorCriticPolicy(ActorCriticPolicy):
    """
    What the Gaussian and the categorical policy share. See :class:`LipschitzGaussianPolicy`.

    Everything happens in hooks, after SB3 has built the policy: initialisation, parameter names and order, the state dict and
    the files are SB3's.
    """

    action_spaces: tuple[type[spaces.Space[Any]], ...]
    sibling: str

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        lipschitz: float | None = DEFAULT_LIPSCHITZ,
        **kwargs: Any,
    ) -> None:
        self._check_spaces(observation_space, action_space)
        _check_lipschitz(lipschitz)
        if kwargs.get("use_sde"):
            raise ValueError(
                f"use_sde=True given to {type(self).__name__}: gSDE's std depends on the state, so no bound on it holds"
            )
        self.lipschitz = lipschitz
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _check_spaces(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        name = type(self).__name__
        if not isinstance(action_space, self.action_spaces):
            accepted = " or ".join(space.__name__ for space in self.action_spaces)
            raise ValueError(f"{name} needs a {accepted} action space, got {action_space}; its sibling: {self.sibling}")
        if not isinstance(observation_space, spaces.Box):
            raise ValueError(
                f"{name} needs a Box observation space, got {type(observation_space).__name__}; make the observation a Box "
                "with gymnasium.wrappers.FlattenObservation (Dict, Tuple, Discrete, ...)"
            )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        network = action_network(self)  # refuses activations and features extractors with no known constant
        self._projection: LipschitzProjection | None = None
        masks = weight_masks(self)
        if self.lipschitz is not None:
            layers = [module for module in (*self.mlp_extractor.policy_net, self.action_net) if isinstance(module, nn.Linear)]
            self._projection = LipschitzProjection([m.weight for m in layers], self.lipschitz / network.activation_lipschitz)
            self._projection.attach(self.optimizer)
            masks.after_update = self._after_mask_update

    def _after_mask_update(self) -> None:
        assert self._projection is not None
        if self.training:  # micro-pruning, between two optimiser steps
            self._projection.after_step()
        else:
            self._projection.project()

    def set_training_mode(self, mode: bool) -> None:
        """Also projects exactly when leaving training mode, as ``predict`` and every rollout do."""
        super().set_training_mode(mode)
        weight_masks(self)  # an optimiser that took the place of the one hooked
        if self._projection is not None:
            self._projection.attach(self.optimizer)
            if not mode:
                self._projection.project()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """SB3's state dict, of exactly projected weights."""
        if self._projection is not None:
            self._projection.project()
        return super().state_dict(*args, **kwargs)

    def projected(self: SelfLipschitz) -> SelfLipschitz:
        """This policy as it plays: itself if it is projected exactly, else (in the midst of training) a copy that is."""
        return self if self._projection is None or self._projection.is_exact() else copy_policy(self)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "lipschitz": self.lipschitz}

    def __deepcopy__(self: SelfPolicy, memo: dict[int, Any]) -> SelfPolicy:
        # The default would copy tensors without the hooks on them, and the copy's zeros would not stay.
        return copy_policy(self)


class LipschitzGaussianPolicy(_LipschitzActorCriticPolicy):
    """
    SB3's ``MlpPolicy`` for Box actions with a bound on the Lipschitz constant of the mean network.

    After each optimiser step the layers of the mean network are scaled by one factor <= 1 so that the product of their exact
    spectral norms and of the activations' Lipschitz constants is at most ``lipschitz * (1 + 1e-2)``; whenever the policy
    predicts, collects a rollout or is saved, at most ``lipschitz * (1 + 1e-5)`` (projection: Gouk et al. 2018). The stored
    weight is the effective weight: files load as SB3's ``ActorCriticPolicy`` and the other way round, pruned weights are plain
    zeros, and zeros found by ``load_state_dict`` stay zero in further training.

    :param observation_space: a Box, flat or not
    :param action_space: a Box
    :param lr_schedule: learning rate schedule
    :param lipschitz: l_2 bound on the whole action network, in action units per unit of the observation that the network
        receives (after VecNormalize); ``None`` for no bound
    :param args: as ``ActorCriticPolicy``
    :param kwargs: as ``ActorCriticPolicy``; ``activation_fn`` needs a known Lipschitz constant, ``use_sde`` is refused
    :raises ValueError: for other spaces, a bound that is not positive and finite, other features extractors or activations
    """

    action_spaces = (spaces.Box,)
    sibling = "LipschitzCategoricalPolicy (Discrete, MultiDiscrete)"


class LipschitzCategoricalPolicy(_LipschitzActorCriticPolicy):
    """
    SB3's ``MlpPolicy`` for Discrete and MultiDiscrete actions with a bound on the Lipschitz constant of the logits.

    As :class:`LipschitzGaussianPolicy`, with the network from observation to all logits in place of the mean network.

    :param observation_space: a Box, flat or not
    :param action_space: Discrete or MultiDiscrete
    :param lr_schedule: learning rate schedule
    :param lipschitz: l_2 bound on the network of the logits (nats per unit of observation); ``None`` for no bound
    :param args: as ``ActorCriticPolicy``
    :param kwargs: as ``ActorCriticPolicy``
    :raises ValueError: as :class:`LipschitzGaussianPolicy`
    """

    action_spaces = (spaces.Discrete, spaces.MultiDiscrete)
    sibling = "LipschitzGaussianPolicy (Box)"


def _check_lipschitz(lipschitz: float | None) -> None:
    is_number = isinstance(lipschitz, (int, float, np.floating)) and not isinstance(lipschitz, bool)
    if lipschitz is not None and not (is_number and 0 < lipschitz < math.inf):
        raise ValueError(f"lipschitz must be a positive finite number, or None for no bound; got {lipschitz!r}")


def copy_policy(policy: SelfPolicy) -> SelfPolicy:
    """
    An independent copy of an actor-critic policy, rebuilt from its constructor's arguments and its state dicts.

    ``copy.deepcopy`` would drop the hooks that keep zeros and bounds, and fails on a policy that has been trained.

    :param policy: the policy; it is not changed, and neither is the state of the random number generators
    :return: the copy, in evaluation mode, with the optimiser's state
    """
    arguments = policy._get_constructor_parameters()
    if isinstance(policy, ActorCriticPolicy):  # SB3 leaves it out
        arguments["share_features_extractor"] = policy.share_features_extractor
    with th.random.fork_rng(devices=[]):
        clone = type(policy)(**arguments)
    clone.to(policy.device)
    clone.load_state_dict(nn.Module.state_dict(policy))  # not ours, which projects the original
    for parameter, original in zip(clone.parameters(), policy.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    clone.optimizer.load_state_dict(copy.deepcopy(policy.optimizer.state_dict()))
    clone.set_training_mode(False)
    return clone
