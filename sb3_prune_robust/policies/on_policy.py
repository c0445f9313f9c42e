"""Lipschitz policies for PPO, A2C and TRPO, and for MaskablePPO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_prune_robust.network import action_network
from sb3_prune_robust.policies.base import DEFAULT_LIPSCHITZ, Chain, LipschitzPolicy, check_lipschitz, check_sde
from sb3_prune_robust.policies.copying import copy_policy

SelfPolicy = TypeVar("SelfPolicy", bound="_OnPolicy")


class _OnPolicy(LipschitzPolicy):
    """What the actor-critic policies share. See :class:`LipschitzGaussianPolicy`."""

    mlp_extractor: Any
    pi_features_extractor: Any
    action_net: Any

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
        check_lipschitz(lipschitz)
        check_sde(self, kwargs.get("use_sde", False))
        self.lipschitz = lipschitz
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _chains(self) -> Iterator[Chain]:
        yield Chain(self, self.pi_features_extractor, [*self.mlp_extractor.policy_net, self.action_net], self.lipschitz)

    def _after_mask_update(self) -> None:
        if self.training:  # micro-pruning, between two optimiser steps
            self._after_step()
        else:
            self._project()

    def set_training_mode(self, mode: bool) -> None:
        """Also projects exactly when leaving training mode, as ``predict`` and every rollout do."""
        super().set_training_mode(mode)
        self._attach()
        if not mode:
            self._project()

    def projected(self: SelfPolicy) -> SelfPolicy:
        """This policy as it plays: itself if it is projected exactly, else (in the midst of training) a copy that is."""
        return self if all(projection.is_exact() for _, projection in self._projections) else copy_policy(self)


class LipschitzGaussianPolicy(_OnPolicy, ActorCriticPolicy):
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

    def _check_built(self) -> None:
        action_network(self)  # refuses activations and features extractors with no known constant


class LipschitzCategoricalPolicy(_OnPolicy, ActorCriticPolicy):
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

    def _check_built(self) -> None:
        action_network(self)


class LipschitzMaskableCategoricalPolicy(_OnPolicy, MaskableActorCriticPolicy):
    """
    :class:`LipschitzCategoricalPolicy` for sb3-contrib's MaskablePPO, which takes only policies of its own.

    The bound is on the network from observation to all logits, before invalid actions are masked: masking sets logits to a
    constant, so it never adds to the change of the others. There is no maskable Gaussian policy, because MaskablePPO refuses
    Box actions.

    :param observation_space: a Box, flat or not
    :param action_space: Discrete or MultiDiscrete
    :param lr_schedule: learning rate schedule
    :param lipschitz: l_2 bound on the network of the logits (nats per unit of observation); ``None`` for no bound
    :param args: as ``MaskableActorCriticPolicy``
    :param kwargs: as ``MaskableActorCriticPolicy``
    :raises ValueError: as :class:`LipschitzGaussianPolicy`
    """

    action_spaces = (spaces.Discrete, spaces.MultiDiscrete)
    sibling = "none, as MaskablePPO takes no Box actions (without masks: PPO with LipschitzGaussianPolicy)"
