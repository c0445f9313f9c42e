"""Two ways to the gradient of an objective with respect to the observation, behind one interface.

The analytic one runs plain networks in numpy, forward and backward by hand: about ten times faster than autograd on the
small networks of control tasks. The autograd one goes through the policy's own modules and takes any ``ActorCriticPolicy``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_prune_robust.attacks.losses import CategoricalKL, Direction, Loss, Margin, NegativeValue, SquaredDifference
from sb3_prune_robust.network import ActionNetwork, Network, UnsupportedNetworkError, action_network, value_network

Array = npt.NDArray[Any]
#: ``objective(policy, obs, perturbed)``: one value per row, to be maximised, differentiable in ``perturbed``
ObjectiveFunction = Callable[[Any, th.Tensor, th.Tensor], th.Tensor]

OBJECTIVES = ("mad", "action-difference", "critic")
ENGINES = ("auto", "analytic", "autograd")


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
    :param function: perturbed observations as a tensor ``(n, *shape)`` to values ``(n,)``
    :param flat_at_center: see :class:`Objective`
    """

    def __init__(self, policy: ActorCriticPolicy, function: Callable[[th.Tensor], th.Tensor], flat_at_center: bool) -> None:
        self.policy, self.function, self.flat_at_center = policy, function, flat_at_center

    def value(self, points: Array) -> Array:
        with th.no_grad(), _Evaluating(self.policy):
            result: Array = self._values(to_tensor(self.policy, points)).cpu().numpy()
            return result

    def value_and_gradient(self, points: Array) -> tuple[Array, Array]:
        with th.enable_grad(), _Evaluating(self.policy):
            inputs = to_tensor(self.policy, points).requires_grad_()
            values = self._values(inputs)
            if not values.requires_grad:
                raise ValueError("objective must be differentiable in the perturbed observations")
            # With respect to the inputs only: the gradients of the parameters are none of the attack's business.
            (gradient,) = th.autograd.grad(values.sum(), inputs)
        return values.detach().cpu().numpy(), gradient.reshape(points.shape).cpu().numpy()

    def _values(self, inputs: th.Tensor) -> th.Tensor:
        values = self.function(inputs)
        if values.shape != (len(inputs),):
            raise ValueError(f"objective must give one value per row, shape ({len(inputs)},), got {tuple(values.shape)}")
        return values


class _Evaluating:
    """The policy in evaluation mode (dropout, batch norm) and back, by ``train``: ``set_training_mode`` may change weights."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy, self.was_training = policy, policy.training

    def __enter__(self) -> None:
        if self.was_training:
            self.policy.train(False)

    def __exit__(self, *exception: object) -> None:
        if self.was_training:
            self.policy.train(True)


def to_tensor(policy: ActorCriticPolicy, points: Array) -> th.Tensor:
    """Flat observations ``(n, d)`` as a tensor in the observation's shape, on the policy's device."""
    return th.as_tensor(points, device=policy.device).reshape(-1, *(policy.observation_space.shape or ()))


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
            self._known[which] = known = (policy, key, network)
        return known[2]


def _fingerprint(policy: Any, which: str) -> tuple[Any, ...] | None:
    """The layers of a network and where their parameters lie; ``None`` where that cannot be told, or they are no CPU views."""
    body, head, extractor = (
        ("policy_net", "action_net", "pi_features_extractor")
        if which == "action"
        else ("value_net", "value_net", "vf_features_extractor")
    )
    modules = getattr(policy, "_modules", {})
    if not {"mlp_extractor", head} <= modules.keys() or body not in modules["mlp_extractor"]._modules:
        return None
    layers = (*modules["mlp_extractor"]._modules[body]._modules.values(), modules[head], modules.get(extractor))
    parameters = [(name, p) for layer in layers if layer is not None for name, p in layer._parameters.items() if p is not None]
    if any(p.device.type != "cpu" for _, p in parameters):
        return None
    return layers, [(name, p.data_ptr()) for name, p in parameters]


def analytic_objective(policy: Any, clean: Array, name: str, deterministic: bool, reader: NetworkReader) -> Objective:
    """
    A named objective by the analytic engine.

    :param policy: the victim
    :param clean: true observations, shape ``(n, d)``
    :param name: one of ``OBJECTIVES``
    :param deterministic: the victim's mode
    :param reader: where the policy's networks come from
    :raises UnsupportedNetworkError: if the policy is not a plain network
    """
    if name == "critic":
        return AnalyticObjective(reader.read(policy, "value"), NegativeValue())
    network = reader.read(policy, "action")
    assert isinstance(network, ActionNetwork)
    outputs = network(clean.astype(network.weights[-1].dtype, copy=False))
    if not network.is_gaussian:
        return AnalyticObjective(network, (Margin if deterministic else CategoricalKL)(outputs, network.nvec))
    std = np.exp(policy.log_std.detach().cpu().numpy())  # not network.std, which is a copy made when the network was read
    return AnalyticObjective(network, SquaredDifference(outputs, _gaussian_weight(name, deterministic, std)))


def _gaussian_weight(name: str, deterministic: bool, std: Any) -> Any:
    """
    Weight of each squared difference of means (halved), for arrays and tensors.

    A victim that samples: ``1 / sigma^2``, the KL divergence. A victim that plays its mean: sigma plays no part, so 1.
    The difference is taken before actions are clipped to their box: clipped, its gradient would vanish just where the mean
    is beyond the box, and the attack would be blind there; unclipped it bounds the clipped one from above.
    The references (SA_PPO, ATLA_robust_RL) divide by ``sigma / mean(sigma)`` in both modes and do not halve.
    """
    if name == "action-difference":
        return 2.0 * (std.mean(axis=-1, keepdims=True) / std) ** 2
    return std * 0 + 1 if deterministic else std**-2


def autograd_objective(policy: Any, clean: Array, objective: str | ObjectiveFunction, deterministic: bool) -> Objective:
    """
    An objective by the autograd engine.

    :param policy: the victim, an ``ActorCriticPolicy``
    :param clean: true observations, shape ``(n, d)``
    :param objective: one of ``OBJECTIVES``, or a function of (policy, true observations, perturbed observations)
    :param deterministic: the victim's mode
    :raises UnsupportedNetworkError: if the policy is recurrent or no ``ActorCriticPolicy``
    """
    _check_differentiable(policy)
    true = to_tensor(policy, clean)
    if callable(objective):
        function = objective
        return AutogradObjective(policy, lambda x: function(policy, true, x), flat_at_center=True)
    if objective == "critic":
        return AutogradObjective(policy, lambda x: -policy.predict_values(x).flatten(), flat_at_center=False)
    with th.no_grad(), _Evaluating(policy):
        before = _distributions(policy, true)
    measure = _measure(objective, deterministic, type(before[0]))
    flat = measure is not _margin

    def change(x: th.Tensor) -> th.Tensor:
        pairs = zip(before, _distributions(policy, x), strict=True)
        return th.stack([measure(p, q).reshape(len(x), -1).sum(dim=1) for p, q in pairs]).sum(dim=0)

    return AutogradObjective(policy, change, flat_at_center=flat)


def direction_objective(policy: Any, direction: Array, reader: NetworkReader) -> Objective:
    """
    ``direction . f(s_hat)``, ``f`` the victim's means or logits, by the analytic engine where it applies.

    :param policy: the victim
    :param direction: shape ``(n, n_outputs)``
    :param reader: where the policy's networks come from
    :raises UnsupportedNetworkError: if the policy is recurrent or no ``ActorCriticPolicy``
    """
    try:
        network = reader.read(policy, "action")
    except UnsupportedNetworkError:
        _check_differentiable(policy)
        weights = th.as_tensor(direction, device=policy.device)
        return AutogradObjective(policy, lambda x: (weights * _outputs(policy, x)).sum(dim=1), flat_at_center=False)
    return AnalyticObjective(network, Direction(direction.astype(network.weights[-1].dtype, copy=False)))


def policy_outputs(policy: Any, points: Array, reader: NetworkReader) -> Array:
    """
    Means or logits at observations, by the analytic engine where it applies.

    :param policy: an ``ActorCriticPolicy``
    :param points: observations, shape ``(n, d)``
    :param reader: where the policy's networks come from
    :return: shape ``(n, n_outputs)``
    """
    try:
        network = reader.read(policy, "action")
    except UnsupportedNetworkError:
        _check_differentiable(policy)
        with th.no_grad(), _Evaluating(policy):
            result: Array = _outputs(policy, to_tensor(policy, points)).cpu().numpy()
        return result
    return network(points.astype(network.weights[-1].dtype, copy=False))


def n_outputs(policy: Any) -> int:
    """Number of means or logits of an ``ActorCriticPolicy``."""
    _check_differentiable(policy)
    return int(policy.action_net.out_features)


def _outputs(policy: Any, obs: th.Tensor) -> th.Tensor:
    """Means or logits, shape ``(n, n_outputs)``."""
    parts: list[th.Tensor] = [getattr(one, "logits", one.mean) for one in _distributions(policy, obs)]
    return th.cat(parts, dim=1)


def _check_differentiable(policy: Any) -> None:
    if not isinstance(policy, ActorCriticPolicy) or hasattr(policy, "lstm_actor"):
        raise UnsupportedNetworkError(
            f"{type(policy).__name__} is not covered by gradient attacks; they need an ActorCriticPolicy without memory "
            "(PPO, A2C, TRPO)"
        )


def _distributions(policy: Any, obs: th.Tensor) -> list[th.distributions.Distribution]:
    """The policy's distribution, one per categorical for MultiDiscrete actions."""
    found = policy.get_distribution(obs).distribution
    return found if isinstance(found, list) else [found]


def _measure(name: str, deterministic: bool, kind: type) -> Callable[[Any, Any], th.Tensor]:
    """How far a distribution moved: from the true observation's and the perturbed one's to a tensor to be summed."""
    if issubclass(kind, th.distributions.Normal):
        if name == "mad" and not deterministic:
            return th.distributions.kl_divergence
        return lambda p, q: _gaussian_weight(name, deterministic, p.stddev) * (q.mean - p.mean) ** 2 / 2
    if not deterministic:
        return th.distributions.kl_divergence
    if issubclass(kind, th.distributions.Categorical):
        return _margin
    raise UnsupportedNetworkError(f"deterministic=True has no objective for action distribution {kind.__name__}")


def _margin(before: th.distributions.Categorical, after: th.distributions.Categorical) -> th.Tensor:
    if after.logits.shape[1] == 1:
        return after.logits[:, 0] * 0
    chosen = before.logits.argmax(dim=1, keepdim=True)
    rival = after.logits.scatter(1, chosen, -th.inf).max(dim=1).values
    return rival - after.logits.gather(1, chosen)[:, 0]
