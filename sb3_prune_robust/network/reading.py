"""Reading an SB3 policy's networks as plain layers, or refusing what the formulas do not cover."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from torch import nn

from sb3_prune_robust.network.activations import UnsupportedNetworkError
from sb3_prune_robust.network.outputs import box_of, choices, is_greedy, kind_of, unsquashed
from sb3_prune_robust.network.plain import ActionNetwork, Network, read_layers

# SB3 and its sister package: methods defined there do what `action_network` takes for granted.
_TRUSTED_MODULES = ("stable_baselines3.", "sb3_contrib.", "sb3_prune_robust.", "torch.")


def action_network(policy: Any) -> ActionNetwork:
    """
    What an SB3 policy acts by as plain layers: from the observation (flattened) to means, logits, Q values, or an actor's
    output before its tanh.

    Batch renormalisation (CrossQ) is folded into the linear layer behind it, the mean over quantiles (QRDQN) into the last.

    :param policy: of PPO, A2C, TRPO, MaskablePPO, SAC, TQC, CrossQ, TD3, DDPG, DQN, QRDQN or ARS
    :return: the network, its arrays views of the policy's parameters on the CPU (copies where something was folded in)
    :raises UnsupportedNetworkError: for anything that the formulas of the certificates do not cover: gSDE, recurrent policies,
        other features extractors (CNN, Dict), unknown layers and activations
    """
    if kind_of(policy) == "distribution":
        return _of_distribution(policy)
    layers = read_layers(action_modules(policy))
    if kind_of(policy) == "quantiles":
        layers = _mean_over_quantiles(layers, policy.quantile_net.n_quantiles)
    arrays = layers.weights, layers.biases, layers.activations
    return ActionNetwork(*arrays, nvec=choices(policy), greedy=is_greedy(policy), box=box_of(policy))


def _of_distribution(policy: Any) -> ActionNetwork:
    layers = read_layers(action_modules(policy))
    arrays = layers.weights, layers.biases, layers.activations
    distribution = type(policy.action_dist).__name__
    if distribution == "DiagGaussianDistribution":
        return ActionNetwork(*arrays, std=np.exp(policy.log_std.detach().cpu().numpy()))
    masked = distribution.startswith("Maskable")
    if distribution.removeprefix("Maskable") in ("CategoricalDistribution", "MultiCategoricalDistribution"):
        return ActionNetwork(*arrays, nvec=choices(policy), masked=masked)
    reason = "gSDE's covariance depends on the state" if "StateDependent" in distribution else "it has no formula here"
    raise UnsupportedNetworkError(f"action distribution {distribution} is not covered: {reason}")


def action_modules(policy: Any) -> list[nn.Module]:
    """
    The layers of :func:`action_network` as modules, in order.

    :param policy: an SB3 policy
    :raises UnsupportedNetworkError: for a policy that does not apply them one after the other
    """
    kind = kind_of(policy)
    if kind == "distribution":
        _check_actor_critic(policy)
        _check_standard(policy, "get_distribution", "_predict", "predict")
        return [*policy.mlp_extractor.policy_net, policy.action_net]
    _check_standard(policy, "_predict", "forward", "predict")
    body = policy if kind == "linear" else getattr(policy, {"q": "q_net", "quantiles": "quantile_net"}.get(kind, "actor"))
    _check_inputs(policy, body.features_extractor)
    _check_standard(body, "forward", "extract_features", *(["get_action_dist_params"] if kind == "squashed" else []))
    if kind == "squashed":
        if policy.actor.use_sde:
            raise UnsupportedNetworkError("gSDE's actor clips its mean, and its covariance depends on the state: not covered")
        return [*body.latent_pi, body.mu]
    return unsquashed(getattr(body, {"actor": "mu", "linear": "action_net", "q": "q_net", "quantiles": "quantile_net"}[kind]))


def spread_network(policy: Any) -> Network:
    """
    From the observation to the logarithm of the standard deviation of a tanh-squashed actor (SAC, TQC, CrossQ), unclipped.

    :param policy: a policy of one of these
    :raises UnsupportedNetworkError: as :func:`action_network`
    """
    action_modules(policy)
    return read_layers([*policy.actor.latent_pi, policy.actor.log_std])


def value_network(policy: Any) -> Network:
    """
    The value network of an SB3 actor-critic policy: observation (flattened) to one value.

    :param policy: an ``ActorCriticPolicy`` of PPO, A2C, TRPO or MaskablePPO
    :return: the network, its arrays views of the policy's parameters on the CPU
    :raises UnsupportedNetworkError: as :func:`action_network`
    """
    _check_actor_critic(policy)
    _check_standard(policy, "predict_values")
    return read_layers([*policy.mlp_extractor.value_net, policy.value_net])


def _mean_over_quantiles(network: Network, n_quantiles: int) -> Network:
    """The last layer gives ``(n_quantiles, n_actions)``; the policy acts by their mean, which is linear."""
    weight, bias = network.weights[-1].astype(np.float64), network.biases[-1].astype(np.float64)
    weight = weight.reshape(n_quantiles, -1, weight.shape[1]).mean(axis=0)
    bias = bias.reshape(n_quantiles, -1).mean(axis=0)
    return Network((*network.weights[:-1], weight), (*network.biases[:-1], bias), network.activations)


def _check_actor_critic(policy: Any) -> None:
    if not hasattr(policy, "mlp_extractor") or not hasattr(policy, "action_net"):
        raise UnsupportedNetworkError(
            f"{type(policy).__name__} is not an actor-critic policy with a value network of the observation alone (PPO, A2C, "
            "TRPO, MaskablePPO)"
        )
    if hasattr(policy, "lstm_actor"):
        raise UnsupportedNetworkError(f"{type(policy).__name__} has a memory: its outputs are no function of an observation")
    _check_standard(policy, "extract_features", "_get_action_dist_from_latent")
    _check_standard(policy.mlp_extractor, "forward_actor", "forward_critic")
    _check_inputs(policy, policy.pi_features_extractor)


def _check_inputs(policy: Any, extractor: Any) -> None:
    if not isinstance(policy.observation_space, spaces.Box):
        raise UnsupportedNetworkError(
            f"observation space {policy.observation_space} is not a Box; only Box observations are covered"
        )
    if any(type(m) is not nn.Flatten for m in extractor.children()) or not any(True for _ in extractor.children()):
        raise UnsupportedNetworkError(
            f"features extractor {type(extractor).__name__} is not covered: neither bounds nor the analytic engine go through "
            "convolutions or what else is not FlattenExtractor (SB3's default for vectors)"
        )
    _check_standard(extractor, "forward")
    space = policy.observation_space
    if space.dtype == np.uint8 and len(space.shape) == 3 and policy.normalize_images:
        raise UnsupportedNetworkError(
            "image observations are rescaled inside the policy, so eps would be in other units than the observation; "
            "rescale them in the environment and pass normalize_images=False"
        )


def _owner(obj: object, method: str) -> str:
    """The module of the class whose ``method`` an object really uses."""
    return next((c.__module__ for c in type(obj).__mro__ if method in vars(c)), "nowhere")


def _check_standard(obj: object, *methods: str) -> None:
    for method in methods:
        if not (_owner(obj, method) + ".").startswith(_TRUSTED_MODULES):
            raise UnsupportedNetworkError(
                f"{type(obj).__name__}.{method} is not Stable-Baselines3's own, so what the policy computes from its layers "
                "is not known; only policies with SB3's forward pass are covered"
            )
