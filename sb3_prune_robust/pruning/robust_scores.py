"""Robust scores: what pruning a weight costs the clean policy, against what it takes from a bound on the attacked one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional

from sb3_prune_robust.network import ActionNetwork, UnsupportedNetworkError, action_modules, action_network
from sb3_prune_robust.pruning.scores import Score

MAX_STATES = 512  # more states hardly change a mean over states, but cost time at every prune


class DivergenceScore(Score):
    """
    The damage alone: what removing a weight adds to the divergence between the policy before pruning and after it.

    With ``y`` the whitened outputs (means divided by their standard deviations: ``|dy|^2 / 2`` is then the KL divergence;
    logits less their mean), ``y0`` those before pruning, ``L = E|y - y0|^2`` over states and ``h_j``, ``z_i`` what the weight
    ``w_ij`` reads and adds to,

        curvature = w_ij^2 E[h_j^2 |dy/dz_i|^2],    damage = max(curvature - w_ij dL/dw_ij, curvature / 2)

    the second-order expansion of ``L`` (LeCun et al. 1989; its Gauss-Newton curvature) around the weights as they are. The
    slope ``dL/dw`` is 0 until something is pruned; then it says which weights undo the damage done so far. The floor is there
    because many weights are pruned at a time, and expansions that promise a gain each do not add up.

    :meth:`prune_policy` prunes in :attr:`rounds`, and looks anew at each. In training each prune counts its damage from the
    policy as it is then: what was done before, training has mended.

    It covers the action network of a policy with ordinary linear layers, as :func:`~sb3_prune_robust.certificates.certify`
    does; outputs whose noise is not known (tanh-squashed actors, Q values) count in their own units.
    """

    needs_states = True
    rounds = 100

    def prepare(self, policy: Any, observations: Any) -> None:
        states = _states(policy, observations)
        self._policy, self._states = policy, states[:: -(-len(states) // MAX_STATES)]
        with th.enable_grad():
            self._before = _Expansion(policy, self._states).outputs.detach()

    @th.enable_grad()
    def look(self) -> None:
        expansion = _Expansion(self._policy, self._states)
        self._values = dict(zip(expansion.names, self._rank(expansion), strict=True))

    def check(self, policy: Any, names: Any) -> None:
        known = _named_layers(policy, type(self).__name__)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"scores: {type(self).__name__} ranks the layers that a policy acts by ({', '.join(known)}), not "
                f"{unknown[0]}; take targets=('actor',) alone, or another score"
            )

    def _rank(self, expansion: _Expansion) -> list[th.Tensor]:
        return expansion.damage(self._before)

    def __call__(self, name: str, weight: th.Tensor) -> th.Tensor:
        return self._values[name].to(weight.device)


class PathScore(DivergenceScore):
    """
    Damage against the part in bound A: ``damage / sqrt(contribution)``, the damage as in :class:`DivergenceScore`.

    Bound A is ``|W_L| ... |W_1| 1`` (l_inf; THEORY 3), here the whitened one: the Euclidean norm of what it gives over the
    outputs' standard deviations. In it a weight contributes, to first order and with all others as they are,

        contribution = up_i |w_ij| down_j,    down = |W_{l-1}| ... |W_1| 1,    up = |W_{l+1}|^T ... |W_L|^T v

    with ``v`` the gradient of the norm. What contributes nothing lies on no path from input to output, and goes first.
    """

    def _rank(self, expansion: _Expansion) -> list[th.Tensor]:
        pairs = zip(expansion.damage(self._before), expansion.contributions(), strict=True)
        return [th.where(path > 0, damage / path.sqrt(), 0.0) for damage, path in pairs]


class RadiusScore(DivergenceScore):
    """
    Damage less the gain in the local radius: ``max(curvature - w dL/dw - eps^2 w dR/dw, curvature / 2)``.

    ``R = E sum_k (sum_i |dy_k/ds_i|)^2`` over states: to first order ``eps^2 R`` bounds the mean square of the shift ``d`` of
    the whitened outputs in an l_inf ball of radius ``eps`` (THEORY 5), and ``-w dR/dw`` is what it changes by when ``w`` is
    removed. Damage and gain are in one unit, twice the KL divergence of a Gaussian policy: clean and attacked divergence are
    weighed one to one.

    :param eps: radius of the ball, in the units of the observation as the policy receives it; 0: no gain counts
    :raises ValueError: for a negative one
    """

    def __init__(self, eps: float = 0.005) -> None:
        if not eps >= 0:
            raise ValueError(f"eps must be at least 0, got {eps!r}")
        self.eps = eps

    def _rank(self, expansion: _Expansion) -> list[th.Tensor]:
        gains = [self.eps**2 * gain for gain in expansion.gains()]
        return expansion.damage(self._before, gains)


def _states(policy: Any, observations: Any) -> th.Tensor:
    if observations is None:
        raise ValueError(
            "observations: this score needs states; prune_policy(model, ..., observations=...), as the policy gets them"
        )
    shape = policy.observation_space.shape
    states = np.asarray(observations, dtype=np.float64)
    if not len(states) or states.shape[1:] != shape or not np.isfinite(states).all():
        raise ValueError(f"observations must be finite, of shape (n, *{shape}) with n >= 1; got shape {states.shape}")
    return th.as_tensor(states).flatten(start_dim=1)


def _named_layers(policy: Any, score: str) -> dict[str, nn.Linear]:
    """
    The layers of a policy's action network, by their names in the policy.

    :raises UnsupportedNetworkError: if it is more than a chain of linear layers and activations
    """
    names = {id(module): name for name, module in policy.named_modules()}
    layers = {names[id(module)]: module for module in action_modules(policy) if isinstance(module, nn.Linear)}
    shapes = [weight.shape for weight in action_network(policy).weights]
    if shapes != [tuple(layer.weight.shape) for layer in layers.values()] or _normalises(policy):
        raise UnsupportedNetworkError(
            f"scores: {score} does not cover a {type(policy).__name__}: its network normalises, drops out or takes a mean "
            "beside its linear layers and activations"
        )
    return layers


def _normalises(policy: Any) -> bool:
    """Dropout and normalisation count as no layers of their own in an action network."""
    others = [module for module in action_modules(policy) if not isinstance(module, nn.Linear)]
    return any("Drop" in type(module).__name__ or any(True for _ in module.parameters()) for module in others)


def _whitening(network: ActionNetwork) -> th.Tensor:
    """From outputs to whitened ones, as a matrix: means over their standard deviations, logits less their mean."""
    if network.is_gaussian:
        return th.diag(1.0 / th.as_tensor(network.std, dtype=th.float64))
    sizes = network.nvec or (1,) * network.n_outputs
    return th.block_diag(*(th.eye(n, dtype=th.float64) - (1.0 / n if network.nvec else 0.0) for n in sizes))


class _Expansion:
    """
    A policy's whitened outputs and their Jacobian at states, with what the scores differentiate.

    The Jacobian goes forward with the states, layer by layer, so that it can be differentiated with respect to the weights.
    All is in float64, on the CPU and on copies of the weights: nothing touches a ``.grad`` of the policy.
    """

    def __init__(self, policy: Any, states: th.Tensor) -> None:
        layers = _named_layers(policy, "Score")
        self.names = list(layers)
        self.whitening = _whitening(action_network(policy))
        self.weights = [layer.weight.detach().to("cpu", th.float64).requires_grad_() for layer in layers.values()]
        self._forward(action_modules(policy), states)

    def _forward(self, modules: list[nn.Module], hidden: th.Tensor) -> None:
        weights = iter(self.weights)
        self.inputs: list[th.Tensor] = []  # h, of each layer
        self.sums: list[th.Tensor] = []  # z, of each layer
        jacobian = th.eye(hidden.shape[1], dtype=th.float64)
        for module in modules:
            if isinstance(module, nn.Linear):
                weight = next(weights)
                bias = None if module.bias is None else module.bias.detach().to("cpu", th.float64)
                self.inputs.append(hidden)
                hidden, jacobian = functional.linear(hidden, weight, bias), weight @ jacobian
                self.sums.append(hidden)
            else:
                before, hidden = hidden, module(hidden)
                (slope,) = th.autograd.grad(hidden.sum(), before, create_graph=True)
                jacobian = slope[:, :, None] * jacobian
        self.outputs, self.jacobian = hidden @ self.whitening.T, self.whitening @ jacobian

    def damage(self, reference: th.Tensor, gains: list[th.Tensor] | None = None) -> list[th.Tensor]:
        """
        ``max(curvature - w dL/dw - gain, curvature / 2)`` of each weight, see :class:`DivergenceScore`.

        :param reference: whitened outputs before pruning, shape ``(n, n_outputs)``
        :param gains: subtracted before the floor is put in; ``None``: none
        """
        slopes = self._times_gradient((self.outputs - reference).square().sum(dim=1).mean())
        curvatures = self._curvatures()
        gains = gains or [th.zeros_like(slope) for slope in slopes]
        parts = zip(curvatures, slopes, gains, strict=True)
        return [th.maximum(curvature - slope - gain, curvature / 2) for curvature, slope, gain in parts]

    def _times_gradient(self, loss: th.Tensor) -> list[th.Tensor]:
        gradients = th.autograd.grad(loss, self.weights, retain_graph=True, materialize_grads=True)
        return [weight.detach() * gradient for weight, gradient in zip(self.weights, gradients, strict=True)]

    def _curvatures(self) -> list[th.Tensor]:
        """``w_ij^2 E[h_j^2 |dy/dz_i|^2]`` of each layer."""
        squares = [th.zeros_like(one) for one in self.sums]
        for output in self.outputs.T:
            gradients = th.autograd.grad(output.sum(), self.sums, retain_graph=True, materialize_grads=True)
            squares = [square + gradient.square() for square, gradient in zip(squares, gradients, strict=True)]
        means = [s.T @ h.detach().square() / len(h) for s, h in zip(squares, self.inputs, strict=True)]
        return [weight.detach().square() * mean for weight, mean in zip(self.weights, means, strict=True)]

    def gains(self) -> list[th.Tensor]:
        """``w dR/dw`` of each weight, see :class:`RadiusScore`."""
        return self._times_gradient(self.jacobian.abs().sum(dim=2).square().sum(dim=1).mean())

    def contributions(self) -> list[th.Tensor]:
        """``up_i |w_ij| down_j`` of each weight, see :class:`PathScore`: the weight times the bound's gradient."""
        bound = th.ones(self.weights[0].shape[1], dtype=th.float64)
        for weight in self.weights:
            bound = weight.abs() @ bound
        return self._times_gradient((self.whitening.abs() @ bound).norm())
