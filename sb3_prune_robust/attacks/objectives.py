"""What the gradient attacks maximise, by name, for each kind of policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from sb3_prune_robust.attacks.engines import (
    AnalyticObjective,
    Array,
    AutogradObjective,
    Evaluating,
    NetworkReader,
    Objective,
    OutputObjective,
    outputs_at,
    to_tensor,
)
from sb3_prune_robust.attacks.losses import (
    LEAST_SLOPE,
    CategoricalKL,
    Direction,
    Loss,
    Margin,
    NegativeValue,
    SquaredDifference,
    SquashedDifference,
    TowardsLowest,
)
from sb3_prune_robust.attacks.observations import as_observation
from sb3_prune_robust.network import (
    ActionNetwork,
    UnsupportedNetworkError,
    box_of,
    choices,
    distributions,
    is_greedy,
    kind_of,
    outputs,
)

#: ``objective(policy, obs, perturbed)``: one value per row, to be maximised, differentiable in ``perturbed``
ObjectiveFunction = Callable[[Any, Any, Any], th.Tensor]

OBJECTIVES = ("mad", "action-difference", "critic")
ENGINES = ("auto", "analytic", "autograd")


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
    kind = kind_of(policy)
    if name == "critic" and kind == "distribution":
        return AnalyticObjective(reader.read(policy, "value"), NegativeValue())
    if name == "critic" and kind in ("squashed", "actor"):
        raise UnsupportedNetworkError("the critic of an actor is a function of actions, which goes through autograd")
    network = reader.read(policy, "action")
    assert isinstance(network, ActionNetwork)
    found = network(clean.astype(network.weights[-1].dtype, copy=False))
    std = None
    if network.is_gaussian:  # not network.std, which is a copy made when the network was read
        std = np.exp(policy.log_std.detach().cpu().numpy())
    return AnalyticObjective(network, _output_loss(policy, found, name, deterministic, std))


def _output_loss(policy: Any, clean: Array, name: str, deterministic: bool, std: Array | None = None) -> Loss:
    """A named objective as a loss of the outputs, given those at the true observations."""
    if name == "critic":
        return _critic_loss(policy, clean)
    if std is not None:
        return SquaredDifference(clean, gaussian_weight(name, deterministic, std))
    nvec, box = choices(policy), box_of(policy)
    if nvec:
        return (Margin if deterministic or is_greedy(policy) else CategoricalKL)(clean, nvec)
    if box is not None:
        return SquashedDifference(clean, box)
    return SquaredDifference(clean, np.ones_like(clean[0]))  # ARS: what is clipped to the action space


def _critic_loss(policy: Any, clean: Array) -> Loss:
    if kind_of(policy) == "linear":
        raise UnsupportedNetworkError(f"{type(policy).__name__} (ARS) has no critic to attack by")
    return TowardsLowest(clean, choices(policy))


def gaussian_weight(name: str, deterministic: bool, std: Any) -> Any:
    """
    Weight of each squared difference of means (halved), for arrays and tensors.

    A victim that samples: ``1 / sigma^2``, the KL divergence. A victim that plays its mean: sigma plays no part, so 1.
    The difference is taken before actions are clipped to their box: clipped, its gradient would vanish just where the mean
    is beyond the box, and the attack would be blind there; unclipped it bounds the clipped one from above.
    The references (SA_PPO, ATLA_robust_RL) divide by ``sigma / mean(sigma)`` in both modes and do not halve.

    :param name: one of ``OBJECTIVES``
    :param deterministic: the victim's mode
    :param std: its standard deviations
    """
    if name == "action-difference":
        return 2.0 * (std.mean(axis=-1, keepdims=True) / std) ** 2
    return std * 0 + 1 if deterministic else std**-2


def autograd_objective(policy: Any, clean: Array, objective: str | ObjectiveFunction, deterministic: bool) -> Objective:
    """
    An objective by the autograd engine.

    :param policy: the victim
    :param clean: true observations, shape ``(n, d)``
    :param objective: one of ``OBJECTIVES``, or a function of (policy, true observations, perturbed observations)
    :param deterministic: the victim's mode
    :raises UnsupportedNetworkError: if the policy's outputs are not known
    """
    kind, true = kind_of(policy), as_observation(policy, to_tensor(policy, clean))
    if callable(objective):
        function = objective
        return AutogradObjective(policy, lambda x: function(policy, true, x), flat_at_center=True)
    if objective == "critic" and kind == "distribution":
        return AutogradObjective(policy, lambda x: -policy.predict_values(x).flatten(), flat_at_center=False)
    if objective == "critic" and kind in ("squashed", "actor"):
        return AutogradObjective(policy, lambda x: -_value_of_actions(policy, true, x), flat_at_center=False)
    if kind == "distribution":
        return _divergence(policy, true, objective, deterministic)
    return OutputObjective(policy, _output_loss(policy, outputs_at(policy, clean), objective, deterministic))


class _Tanh(th.autograd.Function):
    """The tanh, whose slope is taken as at least :data:`~.losses.LEAST_SLOPE`."""

    @staticmethod
    def forward(ctx: Any, outputs: th.Tensor) -> th.Tensor:
        squashed = th.tanh(outputs)
        ctx.save_for_backward(squashed)
        return squashed

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> th.Tensor:
        (squashed,) = ctx.saved_tensors
        return gradients[0] * (1 - squashed**2).clamp_min(LEAST_SLOPE)


def _value_of_actions(policy: Any, true: Any, perturbed: Any) -> th.Tensor:
    """``Q(s, pi(s_hat))``, the mean over critics and quantiles: what the victim's critic says of what it is made to do."""
    values = policy.critic(true, _Tanh.apply(outputs(policy, perturbed)))  # type: ignore[no-untyped-call]
    together = values.flatten(start_dim=1) if isinstance(values, th.Tensor) else th.cat(values, dim=1)
    return together.mean(dim=1)


def _divergence(policy: Any, true: Any, name: str, deterministic: bool) -> Objective:
    """How far an actor-critic policy's distribution moved."""
    with th.no_grad(), Evaluating(policy):
        before = distributions(policy, true)
    measure = _measure(name, deterministic, type(before[0]))

    def change(x: Any) -> th.Tensor:
        terms = [measure(p, q) for p, q in zip(before, distributions(policy, x), strict=True)]
        return th.stack([term.reshape(len(term), -1).sum(dim=1) for term in terms]).sum(dim=0)

    return AutogradObjective(policy, change, flat_at_center=measure is not _margin)


def direction_objective(policy: Any, direction: Array, reader: NetworkReader) -> Objective:
    """
    ``direction . f(s_hat)``, ``f`` the victim's outputs, by the analytic engine where it applies.

    :param policy: the victim
    :param direction: shape ``(n, n_outputs)``
    :param reader: where the policy's networks come from
    :raises UnsupportedNetworkError: if the policy's outputs are not known
    """
    try:
        network = reader.read(policy, "action")
    except UnsupportedNetworkError:
        return OutputObjective(policy, Direction(direction))
    return AnalyticObjective(network, Direction(direction.astype(network.weights[-1].dtype, copy=False)))


def policy_outputs(policy: Any, points: Array, reader: NetworkReader) -> Array:
    """
    The victim's outputs at observations, by the analytic engine where it applies.

    :param policy: the victim
    :param points: observations, shape ``(n, d)``
    :param reader: where the policy's networks come from
    :return: shape ``(n, n_outputs)``
    """
    try:
        network = reader.read(policy, "action")
    except UnsupportedNetworkError:
        return outputs_at(policy, points)
    return network(points.astype(network.weights[-1].dtype, copy=False))


def _measure(name: str, deterministic: bool, kind: type) -> Callable[[Any, Any], th.Tensor]:
    """How far a distribution moved: from the true observation's and the perturbed one's to a tensor to be summed."""
    if issubclass(kind, th.distributions.Normal):
        if name == "mad" and not deterministic:
            return th.distributions.kl_divergence
        return lambda p, q: gaussian_weight(name, deterministic, p.stddev) * (q.mean - p.mean) ** 2 / 2
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
