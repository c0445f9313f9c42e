"""What a policy acts by, through its own modules: differentiable, for any SB3 or sb3-contrib policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_prune_robust.network.activations import UnsupportedNetworkError
from sb3_prune_robust.network.plain import Box

KINDS = "PPO, A2C, TRPO, MaskablePPO, SAC, TQC, CrossQ, TD3, DDPG, DQN, QRDQN, ARS"


def kind_of(policy: Any) -> str:
    """
    What a policy's outputs are.

    :param policy: an SB3 policy
    :return: ``"distribution"`` (PPO, A2C, TRPO, MaskablePPO, RecurrentPPO with its memory), ``"squashed"`` (SAC, TQC, CrossQ),
        ``"actor"`` (TD3, DDPG), ``"q"`` (DQN), ``"quantiles"`` (QRDQN) or ``"linear"`` (ARS)
    :raises UnsupportedNetworkError: for another policy, or a recurrent one without its memory
    """
    parts = getattr(policy, "_modules", {})  # torch's attribute access, and its failure above all, takes ten times as long
    if "lstm_actor" in parts and not hasattr(policy, "memory"):
        raise UnsupportedNetworkError(
            f"{type(policy).__name__} has a memory, so what it does is no function of one observation; it is attacked with "
            "the memory of each episode by evaluation.rollout, worst_case and audit"
        )
    if "mlp_extractor" in parts and "action_net" in parts:
        return "distribution"
    if "actor" in parts:
        return "squashed" if "latent_pi" in parts["actor"]._modules else "actor"
    found = {"q_net": "q", "quantile_net": "quantiles", "action_net": "linear"}
    for part, kind in found.items():
        if part in parts:
            return kind
    raise UnsupportedNetworkError(f"{type(policy).__name__} is not a policy whose outputs are known: of {KINDS}")


def outputs(policy: Any, obs: Any) -> th.Tensor:
    """
    Means, logits, Q values, or an actor's output before its tanh.

    :param policy: an SB3 policy, in evaluation mode
    :param obs: as the policy receives them, a tensor ``(n, *shape)`` or a dict of tensors
    :return: shape ``(n, n_outputs)``, differentiable in ``obs``
    :raises UnsupportedNetworkError: as :func:`kind_of`
    """
    kind = kind_of(policy)
    if kind == "distribution":
        return th.cat([_parameters(one) for one in distributions(policy, obs)], dim=1)
    if kind == "squashed":
        mean: th.Tensor = policy.actor.get_action_dist_params(obs)[0]
        return mean
    if kind == "q":
        values: th.Tensor = policy.q_net(obs)
        return values
    if kind == "quantiles":
        quantiles: th.Tensor = policy.quantile_net(obs)
        return quantiles.mean(dim=1)
    return _chain(policy, obs)


def _parameters(distribution: Any) -> th.Tensor:
    """Logits of a categorical or of coins, else means."""
    found: th.Tensor = distribution.logits if hasattr(distribution, "logits") else distribution.mean
    return found


def _chain(policy: Any, obs: Any) -> th.Tensor:
    """TD3 and ARS: the layers one after the other, but for a tanh at the end."""
    body = policy.actor if hasattr(policy, "actor") else policy
    hidden = body.extract_features(obs, body.features_extractor)
    for layer in unsquashed(body.mu if hasattr(body, "mu") else body.action_net):
        hidden = layer(hidden)
    result: th.Tensor = hidden
    return result


def unsquashed(chain: nn.Sequential) -> list[nn.Module]:
    """The layers of a chain but for a tanh at its end."""
    layers = list(chain)
    return layers[:-1] if isinstance(layers[-1], nn.Tanh) else layers


def distributions(policy: Any, obs: Any) -> list[th.distributions.Distribution]:
    """An actor-critic policy's distribution, one for each categorical of MultiDiscrete actions."""
    whole = policy.get_distribution(obs)
    found = getattr(whole, "distributions", None) or whole.distribution  # sb3-contrib's name for several with masks
    return found if isinstance(found, list) else [found]


def n_outputs(policy: Any) -> int:
    """
    Number of outputs.

    :param policy: an SB3 policy
    :raises UnsupportedNetworkError: as :func:`kind_of`
    """
    if kind_of(policy) == "distribution":
        return int(policy.action_net.out_features)
    space = policy.action_space
    return int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape))


def choices(policy: Any) -> tuple[int, ...]:
    """Number of choices of each categorical among a policy's outputs; empty for continuous actions."""
    space = policy.action_space
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    return () if isinstance(space, spaces.Box) else tuple(int(n) for n in np.ravel(getattr(space, "nvec", [])))


def is_greedy(policy: Any) -> bool:
    """Whether a policy plays the choice of largest output, and never samples (DQN, QRDQN, ARS)."""
    return bool(choices(policy)) and kind_of(policy) != "distribution"


def box_of(policy: Any) -> Box | None:
    """The actions of a tanh-squashed actor; ``None`` for any other policy."""
    if kind_of(policy) not in ("squashed", "actor", "linear") or not getattr(policy, "squash_output", False):
        return None
    return Box(policy.action_space.low.ravel(), policy.action_space.high.ravel())


def samples(policy: Any) -> bool:
    """Whether a policy has noise of its own: what it plays depends on ``deterministic`` (not so for TD3, DQN, ARS)."""
    return hasattr(policy, "lstm_actor") or kind_of(policy) in ("distribution", "squashed")
