"""Policies and observations as the certificates take them: checked before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_prune_robust.bounds.interval import output_interval
from sb3_prune_robust.network import ActionNetwork, Array, UnsupportedNetworkError, action_network, distributions, outputs

_N_CHECKED = 16
_FLOAT32_ROUNDOFF = 2.0**-24
_FOLDED_ROUNDOFF = (
    2.0**-20
)  # the policy takes more steps than the plain layers do: batch renormalisation, a mean over quantiles


def policy_of(policy: Any) -> Any:
    """
    The policy of an SB3 algorithm, or the policy itself, as it plays.

    A Lipschitz policy in the midst of training may exceed its bound by a percent until it predicts: then it is an exactly
    projected copy that is certified, the one that will play; the policy given is not changed.

    :param policy: a policy or an algorithm
    :return: the policy
    :raises TypeError: if it is neither
    """
    policy = getattr(policy, "policy", policy)
    if not isinstance(policy, th.nn.Module) or not hasattr(policy, "observation_space"):
        raise TypeError(f"policy must be a Stable-Baselines3 policy or algorithm, got {type(policy).__name__}")
    projected: Any = getattr(policy, "projected", None)
    return policy if projected is None else projected()


def check_observations(observations: npt.ArrayLike, shape: tuple[int, ...]) -> Array:
    """
    Observations as rows of float64.

    :param observations: as the policy receives them, shape ``(n, *shape)``
    :param shape: shape of one observation
    :return: shape ``(n, n_inputs)``
    :raises ValueError: for another shape, none at all, or values that are not finite
    """
    try:
        array = np.asarray(observations, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"observations must be an array of numbers, got {type(observations).__name__}") from None
    if array.shape[1:] != shape or array.ndim != len(shape) + 1:
        raise ValueError(f"observations must have shape (n, {', '.join(map(str, shape))}), got {array.shape}")
    if len(array) == 0:
        raise ValueError("observations must hold at least one observation, got none")
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if bad.any():
        raise ValueError(
            f"observations must be finite; {bad.sum()} of {len(array)} hold NaN or infinity, the first at row "
            f"{int(np.argmax(bad))}"
        )
    return array.reshape(len(array), -1)


def read_network(policy: Any) -> ActionNetwork:
    """
    A copy of a policy's action network in float64.

    :param policy: an SB3 policy
    :return: the network
    :raises UnsupportedNetworkError: if the policy is not covered
    :raises ValueError: if a weight is not finite, or a standard deviation zero or not finite
    """
    network = action_network(policy).astype(np.float64)
    if not all(np.all(np.isfinite(array)) for array in (*network.weights, *network.biases)):
        raise ValueError("policy has weights that are not finite: no bound on its network holds")
    if network.std is not None and not np.all((network.std > 0) & np.isfinite(network.std)):
        raise ValueError(f"policy's standard deviation must be positive and finite, got {network.std}")
    return network


def read_noise(policy: Any) -> ActionNetwork:
    """
    As :func:`read_network`, for what rests on the noise of the policy's own actions.

    :param policy: an SB3 policy
    :return: the network of a Gaussian or categorical policy
    :raises UnsupportedNetworkError: as :func:`read_network`; for policies without noise, with noise that depends on the state,
        or with choices that the environment masks
    """
    network = read_network(policy)
    if not network.has_distribution:
        raise UnsupportedNetworkError(
            f"{type(policy).__name__} plays without noise of its own, or with noise that depends on the state (SAC, TQC, "
            "CrossQ), while certified returns rest on noise of a known spread; certify bounds how far its actions move"
        )
    if network.masked:
        raise UnsupportedNetworkError(
            f"{type(policy).__name__}: the environment masks choices, so the noise that was drawn is not that of its logits; "
            "certify bounds its distribution whatever the mask"
        )
    return network


def check_forward(policy: Any, network: ActionNetwork, observations: Array) -> None:
    """
    Compare the network with what the policy itself computes, on a few observations, up to float32 rounding.

    Neither the weights nor the training flag change: only its forward pass is called.

    :param policy: an SB3 policy in evaluation mode
    :param network: its network, from :func:`read_network`
    :param observations: from :func:`check_observations`
    :raises UnsupportedNetworkError: if the two differ: a certificate would be for another network
    """
    few = np.linspace(0, len(observations) - 1, min(_N_CHECKED, len(observations))).astype(int)
    observations = observations[few].astype(np.float32)
    batch = th.as_tensor(observations.reshape(-1, *policy.observation_space.shape), device=policy.device)
    rounding = _FLOAT32_ROUNDOFF if network.has_distribution else _FOLDED_ROUNDOFF
    lower, upper = output_interval(network, observations.astype(np.float64), unit_roundoff=rounding)
    with th.no_grad():
        if not network.has_distribution:
            return _check(policy, _within(outputs(policy, batch), lower, upper))
        found: list[Any] = distributions(policy, batch)
    if network.std is not None:
        (one,) = found
        agree = _within(one.mean, lower, upper) and np.allclose(_numpy(one.stddev), network.std, rtol=1e-6)
    else:
        agree = _logits_agree(found, network, lower, upper)
    _check(policy, agree)


def _check(policy: Any, agree: bool) -> None:
    if not agree:
        raise UnsupportedNetworkError(
            f"{type(policy).__name__} does not compute what its layers say (a forward hook, or a forward pass not SB3's own): "
            "a certificate would be for another network"
        )


def _numpy(tensor: th.Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)


def _within(tensor: th.Tensor, lower: Array, upper: Array) -> bool:
    values = _numpy(tensor)
    return bool(np.all((lower <= values) & (values <= upper)))


def _logits_agree(categoricals: list[Any], network: ActionNetwork, lower: Array, upper: Array) -> bool:
    # torch keeps logits minus their log-sum-exp: undo it with the middle of our interval, up to its width and rounding.
    end = 0
    for size, categorical in zip(network.nvec, categoricals, strict=True):
        start, end = end, end + size
        theirs, low, high = _numpy(categorical.logits), lower[:, start:end], upper[:, start:end]
        shift = np.mean(0.5 * (low + high) - theirs, axis=1, keepdims=True)
        slack = np.max(high - low, axis=1, keepdims=True) + 64 * _FLOAT32_ROUNDOFF * (1.0 + np.abs(theirs))
        if not np.all((low - slack <= theirs + shift) & (theirs + shift <= high + slack)):
            return False
    return True
