"""Two ways to the gradient of an objective with respect to the observation, behind one interface.

The analytic one runs plain networks in numpy, forward and backward by hand: about ten times faster than autograd on the
small networks of control tasks. The autograd one goes through the policy's own modules and takes any policy whose outputs are
known (:mod:`sb3_prune_robust.network`). What the named objectives are is in :mod:`~sb3_prune_robust.attacks.objectives`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm
from torch import nn

from sb3_prune_robust.attacks.losses import Loss
from sb3_prune_robust.attacks.observations import as_observation
from sb3_prune_robust.network import Network, action_modules, action_network, outputs, value_network

Array = npt.NDArray[Any]


class Objective(ABC):
    """
    What an attack maximises, for one batch of true observations.

    :ivar flat_at_center: its gradient is zero at the true observations (or may be), so a search starts elsewhere
    """

    flat_at_center: bool

    @abstractmethod
    def value(self, points: Array) -> Array:
        """Values at perturbed observations ``(n, d)``, shape ``(n,)``."""

    @abstractmethod
    def value_and_gradient(self, points: Array) -> tuple[Array, Array]:
        """Values ``(n,)`` and gradients ``(n, d)`` at perturbed observations ``(n, d)``."""


class AnalyticObjective(Objective):
    """
    A loss of a plain network's output.

    :param network: the network
    :param loss: the loss of its output
    """

    def __init__(self, network: Network, loss: Loss) -> None:
        self.loss = loss
        self.flat_at_center = loss.flat_at_center
        self._hidden = [
            (w.T, b, a.function) for w, b, a in zip(network.weights, network.biases, network.activations, strict=False)
        ]
        self._head, self._bias = network.weights[-1], network.biases[-1]
        backward = zip(network.weights, network.activations, strict=False)
        self._backward = [(weight, activation.derivative) for weight, activation in backward][::-1]

    def value(self, points: Array) -> Array:
        return self.loss(self._forward(points)[0])[0]

    def value_and_gradient(self, points: Array) -> tuple[Array, Array]:
        outputs, trace = self._forward(points)
        values, gradient = self.loss(outputs)
        gradient = gradient.dot(self._head)
        for weight, derivative in self._backward:
            gradient = (gradient * derivative(*trace.pop())).dot(weight)
        return values, gradient

    def _forward(self, points: Array) -> tuple[Array, list[tuple[Array, Array]]]:
        """The outputs, and each hidden layer before and after its activation."""
        # The policy, too, converts float64 observations to the type of its weights.
        after, trace = points.astype(self._head.dtype, copy=False), []
        for weight, bias, function in self._hidden:
            before = after.dot(weight)  # as @, with half the overhead on small batches
            before += bias
            after = function(before)
            trace.append((before, after))
        return after.dot(self._head.T) + self._bias, trace


class AutogradObjective(Objective):
    """
    An objective through the policy's own modules.

    :param policy: the victim
    :param function: perturbed observations, as the policy's modules take them, to values ``(n,)``
    :param flat_at_center: see :class:`Objective`
    """

    def __init__(self, policy: Any, function: Callable[[Any], th.Tensor], flat_at_center: bool) -> None:
        self.policy, self.function, self.flat_at_center = policy, function, flat_at_center

    def value(self, points: Array) -> Array:
        with th.no_grad(), Evaluating(self.policy):
            result: Array = self._values(to_tensor(self.policy, points)).cpu().numpy()
            return result

    def value_and_gradient(self, points: Array) -> tuple[Array, Array]:
        with th.enable_grad(), Evaluating(self.policy):
            inputs = to_tensor(self.policy, points).requires_grad_()
            values = self._values(inputs)
            if not values.requires_grad:
                raise ValueError("objective must be differentiable in the perturbed observations")
            # With respect to the inputs only: the gradients of the parameters are none of the attack's business.
            (gradient,) = th.autograd.grad(values.sum(), inputs)
        return values.detach().cpu().numpy(), gradient.cpu().numpy()

    def _values(self, inputs: th.Tensor) -> th.Tensor:
        values = self.function(as_observation(self.policy, inputs))
        if values.shape != (len(inputs),):
            raise ValueError(f"objective must give one value per row, shape ({len(inputs)},), got {tuple(values.shape)}")
        return values


class OutputObjective(Objective):
    """
    A loss of the policy's outputs, through its own modules.

    :param policy: the victim
    :param loss: of its outputs
    """

    def __init__(self, policy: Any, loss: Loss) -> None:
        self.policy, self.loss, self.flat_at_center = policy, loss, loss.flat_at_center

    def value(self, points: Array) -> Array:
        return self.loss(outputs_at(self.policy, points))[0]

    def value_and_gradient(self, points: Array) -> tuple[Array, Array]:
        with th.enable_grad(), Evaluating(self.policy):
            inputs = to_tensor(self.policy, points).requires_grad_()
            found = outputs(self.policy, as_observation(self.policy, inputs))
            values, derivative = self.loss(found.detach().cpu().numpy())
            (gradient,) = th.autograd.grad(found, inputs, th.as_tensor(derivative, dtype=found.dtype, device=found.device))
        return values, gradient.cpu().numpy()


def outputs_at(policy: Any, points: Array) -> Array:
    """
    The policy's outputs through its own modules.

    :param policy: the victim
    :param points: observations, flat, shape ``(n, d)``
    :return: shape ``(n, n_outputs)``
    """
    with th.no_grad(), Evaluating(policy):
        result: Array = outputs(policy, as_observation(policy, to_tensor(policy, points))).cpu().numpy()
    return result


class Evaluating:
    """The policy in evaluation mode (dropout, batch norm) and back, by ``train``: ``set_training_mode`` may change weights."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy, self.was_training = policy, policy.training

    def __enter__(self) -> None:
        if self.was_training:
            self.policy.train(False)

    def __exit__(self, *exception: object) -> None:
        if self.was_training:
            self.policy.train(True)


def to_tensor(policy: Any, points: Array) -> th.Tensor:
    """Flat observations ``(n, d)`` as a tensor on the policy's device."""
    return th.as_tensor(points, device=policy.device)


class NetworkReader:
    """
    A policy's plain networks, read once and read again when a layer or its storage was replaced.

    The arrays are views, so optimiser steps and ``load_state_dict`` show through; reading takes longer than a third of an
    attack on a single observation, which is why it is not done every time.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, Any, Network]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Views turn into stale copies when pickled or deep-copied.
        return {"_known": {}}

    def read(self, policy: Any, which: str) -> Network:
        """The network ``"action"`` or ``"value"`` of a policy, its ``std`` as of now; errors as :func:`action_network`."""
        key = _fingerprint(policy, which)
        known = self._known.get(which)
        if known is None or key is None or known[0] is not policy or known[1] != key:
            network = action_network(policy) if which == "action" else value_network(policy)
            if key is None:  # copies, some in float64
                network = network.astype(np.float32)
            self._known[which] = known = (policy, key, network)
        return known[2]


def _fingerprint(policy: Any, which: str) -> tuple[Any, ...] | None:
    """The layers of a network and where their parameters lie; ``None`` where that cannot be told, or they are no CPU views."""
    modules = getattr(policy, "_modules", {})
    if "mlp_extractor" in modules and "action_net" in modules:
        layers = _actor_critic_layers(modules, which)
    else:
        layers = tuple(action_modules(policy))
    if layers is None or any(isinstance(layer, BatchRenorm) for layer in layers) or hasattr(policy, "quantile_net"):
        return None  # something is folded into copies, which go stale
    parameters = [(name, p) for layer in layers if layer is not None for name, p in layer._parameters.items() if p is not None]
    if any(p.device.type != "cpu" for _, p in parameters):
        return None
    return layers, [(name, p.data_ptr()) for name, p in parameters]


def _actor_critic_layers(modules: Any, which: str) -> tuple[Any, ...] | None:
    """Straight from the modules' dictionaries: torch's attribute access takes ten times as long."""
    body, head, extractor = (
        ("policy_net", "action_net", "pi_features_extractor")
        if which == "action"
        else ("value_net", "value_net", "vf_features_extractor")
    )
    if head not in modules or body not in modules["mlp_extractor"]._modules:
        return None
    return (*modules["mlp_extractor"]._modules[body]._modules.values(), modules[head], modules.get(extractor))
