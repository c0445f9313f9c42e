"""Lipschitz policies for SAC, TD3, DDPG and DQN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_prune_robust.policies.base import DEFAULT_ACTOR_LIPSCHITZ, Chain, LipschitzPolicy, check_lipschitz, check_sde


class _OffPolicy(LipschitzPolicy):
    """
    What the off-policy policies share. See :class:`LipschitzSACPolicy`.

    No exact projection in ``set_training_mode(False)``, as in the on-policy policies: off-policy algorithms come by there at
    every step of the environment, where the SVD of a 256 x 256 layer (3 ms) would cost a third of the training. What plays is
    the weights as the last step left them, and it is those that certificates read.
    """

    #: the networks that a target network follows
    followed: tuple[str, ...]
    proven_norms = True

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self._project()  # nothing would, before the first optimiser step
        for name in self.followed:
            getattr(self, f"{name}_target").load_state_dict(getattr(self, name).state_dict())
        self.register_load_state_dict_post_hook(_project_loaded)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def _after_mask_update(self) -> None:
        self._after_step()

    def set_training_mode(self, mode: bool) -> None:
        """As SB3; an optimiser that took the place of another is watched too."""
        super().set_training_mode(mode)
        if mode:
            self._attach()


def _project_loaded(policy: _OffPolicy, incompatible_keys: Any) -> None:
    for _, projection in policy._projections:
        projection.admit()


class LipschitzSACPolicy(_OffPolicy, SACPolicy):
    """
    SB3's ``MlpPolicy`` of SAC with a bound on the Lipschitz constant of the network of the mean, before the tanh.

    From the start and after each step of the actor's optimiser the layers of that network (``latent_pi``, ``mu``) are scaled
    by one factor <= 1 so that the product of their spectral norms and of the activations' Lipschitz constants is at most
    ``lipschitz * (1 + 1e-2)``; after ``state_dict()``, and so in every file, at most ``lipschitz * (1 + 1e-5)``. Weights that
    are loaded are projected if they are beyond. Weights changed by hand play as they are until the next step. The network of
    the standard deviation has no bound: deterministic actions and means are what is bounded, and not the spread.

    Target networks begin as the networks that they follow; afterwards nothing is promised of them where they are averages
    (a product of norms of averaged layers may exceed the bound). They never act.

    The files are SB3's: zeros are plain zeros and stay zero in further training, and where this package is not installed
    ``SAC.load(path, custom_objects={"policy_class": SACPolicy, "policy_kwargs": {...}})`` loads them, with the
    ``policy_kwargs`` of the training but for ``lipschitz`` (and ``critic_lipschitz``); without any such, ``policy_class`` is
    enough. The same holds for the policies of the other algorithms.

    :param observation_space: a Box, flat or not
    :param action_space: a Box
    :param lr_schedule: learning rate schedule
    :param lipschitz: l_2 bound on the network from observation to the mean before the tanh; ``None`` for no bound
    :param args: as ``SACPolicy``
    :param kwargs: as ``SACPolicy``; ``activation_fn`` needs a known Lipschitz constant, ``use_sde`` is refused
    :raises ValueError: for other spaces, a bound that is not positive and finite, other features extractors or activations
    """

    action_spaces = (spaces.Box,)
    sibling = "LipschitzDQNPolicy (DQN; Discrete)"
    followed = ("critic",)

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: Any,
        lr_schedule: Schedule,
        *args: Any,
        lipschitz: float | None = DEFAULT_ACTOR_LIPSCHITZ,
        **kwargs: Any,
    ) -> None:
        self._check_spaces(observation_space, action_space)
        check_lipschitz(lipschitz)
        check_sde(self, kwargs.get("use_sde", False))
        self.lipschitz = lipschitz
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _chains(self) -> Iterator[Chain]:
        check_sde(self, self.actor.use_sde)
        yield Chain(self.actor, self.actor.features_extractor, [*self.actor.latent_pi, self.actor.mu], self.lipschitz)


class LipschitzTD3Policy(_OffPolicy, TD3Policy):
    """
    SB3's ``MlpPolicy`` of TD3 and DDPG with a bound on the Lipschitz constant of the actor, and of the critics if asked for.

    As :class:`LipschitzSACPolicy`; the actor's bound is on its action, in units of SB3's normalised actions, after the tanh
    that ends it (whose constant is 1). A critic's bound holds after each step of the critics' optimiser.

    :param observation_space: a Box, flat or not
    :param action_space: a Box
    :param lr_schedule: learning rate schedule
    :param lipschitz: l_2 bound on the network from observation to action (in [-1, 1]); ``None`` for no bound
    :param critic_lipschitz: l_2 bound on each critic network, from observation and action (concatenated) to the value, in
        units of the return per unit of either; ``None`` for no bound: values are as steep as the rewards are large
    :param args: as ``TD3Policy``
    :param kwargs: as ``TD3Policy``
    :raises ValueError: as :class:`LipschitzSACPolicy`
    """

    action_spaces = (spaces.Box,)
    sibling = "LipschitzDQNPolicy (DQN; Discrete)"
    followed = ("actor", "critic")

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: Any,
        lr_schedule: Schedule,
        *args: Any,
        lipschitz: float | None = DEFAULT_ACTOR_LIPSCHITZ,
        critic_lipschitz: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._check_spaces(observation_space, action_space)
        check_lipschitz(lipschitz)
        check_lipschitz(critic_lipschitz, "critic_lipschitz")
        self.lipschitz, self.critic_lipschitz = lipschitz, critic_lipschitz
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _chains(self) -> Iterator[Chain]:
        yield Chain(self.actor, self.actor.features_extractor, _without_tanh(self.actor.mu), self.lipschitz)
        for network in self.critic.q_networks:
            yield Chain(self.critic, self.critic.features_extractor, list(network.children()), self.critic_lipschitz)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "critic_lipschitz": self.critic_lipschitz}


class LipschitzDQNPolicy(_OffPolicy, DQNPolicy):
    """
    SB3's ``MlpPolicy`` of DQN with a bound on the Lipschitz constant of the Q network.

    As :class:`LipschitzSACPolicy`. There is no bound by default: it is in units of the return per unit of the observation, and
    so depends on the rewards.

    :param observation_space: a Box, flat or not
    :param action_space: Discrete
    :param lr_schedule: learning rate schedule
    :param lipschitz: l_2 bound on the network from observation to all Q values together; ``None`` for no bound
    :param args: as ``DQNPolicy``
    :param kwargs: as ``DQNPolicy``
    :raises ValueError: as :class:`LipschitzSACPolicy`
    """

    action_spaces = (spaces.Discrete,)
    sibling = "LipschitzSACPolicy (SAC), LipschitzTD3Policy (TD3, DDPG); Box"
    followed = ("q_net",)

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: Any,
        lr_schedule: Schedule,
        *args: Any,
        lipschitz: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._check_spaces(observation_space, action_space)
        check_lipschitz(lipschitz)
        self.lipschitz = lipschitz
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _chains(self) -> Iterator[Chain]:
        yield Chain(self, self.q_net.features_extractor, [*self.q_net.q_net], self.lipschitz)


def _without_tanh(mu: nn.Sequential) -> list[nn.Module]:
    """The layers of TD3's actor but for the tanh that ends it, whose constant is 1."""
    return [*mu][:-1]
