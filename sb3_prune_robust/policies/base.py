"""What all Lipschitz policies share: checks, projections after optimiser steps, files that are SB3's."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_prune_robust.layers import LipschitzProjection, weight_masks
from sb3_prune_robust.network import UnsupportedNetworkError, read_layers
from sb3_prune_robust.policies.copying import copy_policy, parts

DEFAULT_LIPSCHITZ = 20.0
DEFAULT_ACTOR_LIPSCHITZ = 100.0  # of off-policy actors: 20 costs SAC and TD3 return (docs/learning.md)

SelfPolicy = TypeVar("SelfPolicy", bound="LipschitzPolicy")


class Chain(NamedTuple):
    """
    Layers whose product of norms is bounded.

    :param owner: the module whose ``optimizer`` steps them
    :param extractor: what comes before them
    :param modules: linear layers and activations in the order in which they are applied, a linear layer last
    :param lipschitz: the bound on the whole chain; ``None`` for no bound
    """

    owner: Any
    extractor: nn.Module
    modules: list[nn.Module]
    lipschitz: float | None


class LipschitzPolicy(BasePolicy):
    """
    Mixed into a policy class of SB3, before it in the list of bases.

    Everything happens in hooks, after SB3 has built the policy: initialisation, parameter names and order, the state dict and
    the files are SB3's.
    """

    action_spaces: tuple[type[spaces.Space[Any]], ...]
    sibling: str
    lipschitz: float | None
    #: see :class:`sb3_prune_robust.layers.LipschitzProjection`
    proven_norms = False

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

    @abstractmethod
    def _chains(self) -> Iterator[Chain]:
        """The parts of the built policy that have a bound."""

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]  # of the policy class that this one is mixed into
        self._check_built()
        self._projections = [
            (chain.owner, _projection(chain.modules, chain.lipschitz, self.proven_norms))
            for chain in self._chains()
            if chain.lipschitz is not None
        ]
        self._attach()

    def _check_built(self) -> None:
        """Refuses what has no known constant: activations, features extractors."""
        for chain in self._chains():
            check_inputs(self, chain.extractor)
            read_layers(chain.modules)

    def _attach(self) -> None:
        """Hooks what has no hooks yet: another optimiser may have taken the place of one."""
        masks = weight_masks(self)  # before the projections: a step is masked first
        if self._projections:
            masks.after_update = self._after_mask_update
        for owner, projection in self._projections:
            projection.attach(owner.optimizer)

    def _project(self) -> None:
        for _, projection in self._projections:
            projection.project()

    def _after_step(self) -> None:
        for _, projection in self._projections:
            projection.after_step()

    @abstractmethod
    def _after_mask_update(self) -> None:
        """Keeps the bound when weights were pruned."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """SB3's state dict, of exactly projected weights."""
        self._project()
        return super().state_dict(*args, **kwargs)

    def projected(self: SelfPolicy) -> SelfPolicy:
        """This policy as it plays."""
        return self

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "lipschitz": self.lipschitz}

    def __deepcopy__(self: SelfPolicy, memo: dict[int, Any]) -> SelfPolicy:
        # The default would copy tensors without the hooks on them, and the copy's zeros would not stay.
        clone = copy_policy(self)
        for ours, theirs in parts(self, clone):  # an off-policy algorithm has names of its own for them
            memo[id(ours)] = theirs
        return clone

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._attach()  # pickle drops hooks


def _projection(modules: list[nn.Module], lipschitz: float, proven: bool) -> LipschitzProjection:
    weights = [module.weight for module in modules if isinstance(module, nn.Linear)]
    return LipschitzProjection(weights, lipschitz / read_layers(modules).activation_lipschitz, proven)


def check_lipschitz(lipschitz: float | None, name: str = "lipschitz") -> None:
    """
    Refuse a bound that is none.

    :param lipschitz: the bound, or ``None``
    :param name: name of the argument, for the message
    :raises ValueError: if it is neither ``None`` nor a positive finite number
    """
    is_number = isinstance(lipschitz, (int, float, np.integer, np.floating)) and not isinstance(lipschitz, bool)
    if lipschitz is not None and not (is_number and 0 < lipschitz < math.inf):
        raise ValueError(f"{name} must be a positive finite number, or None for no bound; got {lipschitz!r}")


def check_sde(policy: BasePolicy, use_sde: bool) -> None:
    """
    Refuse state-dependent exploration.

    :param policy: the policy it was given to
    :param use_sde: what was given
    :raises ValueError: if it is true
    """
    if use_sde:
        raise ValueError(
            f"use_sde=True given to {type(policy).__name__}: gSDE's std depends on the state, so no bound on it holds"
        )


def check_inputs(policy: BasePolicy, extractor: nn.Module) -> None:
    """
    Refuse whatever a policy does to observations before the first layer, but for flattening them.

    :param policy: the policy
    :param extractor: the features extractor of its actor, critic or Q network
    :raises UnsupportedNetworkError: for other features extractors, and images that the policy rescales
    """
    if type(extractor) is not FlattenExtractor:
        raise UnsupportedNetworkError(
            f"features extractor {type(extractor).__name__} is not covered; use FlattenExtractor (SB3's default for vectors)"
        )
    if policy.normalize_images and is_image_space(policy.observation_space):
        raise UnsupportedNetworkError(
            "image observations are rescaled inside the policy, so the bound would be in other units than the observation; "
            "rescale them in the environment and pass normalize_images=False"
        )
