"""
Bounds on the change of a policy's outputs over the ball that training can differentiate: interval and linear relaxation.

The bounds of :mod:`sb3_prune_robust.bounds` are for certificates: in float64, rounding covered, lines as tight as they come.
These are for a loss: in torch, differentiable in the weights, cheap, sound up to rounding. The relaxation encloses an
activation between two PARALLEL lines over its interval, so that one matrix goes backward through the network in place of
CROWN's two: Fast-Lin for ReLU (Weng et al. 2018), the DeepZ lines for tanh and sigmoid (Singh et al. 2018), whose slope is the
smaller of those at the ends. Intervals inside the network are interval bounds, as in CROWN-IBP (Zhang et al. 2019).

In float32 the bounds stay sound to rounding; below a radius of 1e-6 their gradients are off by some percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch as th
from torch import nn

from sb3_prune_robust.network import UnsupportedNetworkError, activation_of, read_layers


@dataclass(frozen=True)
class _Enclosure:
    """
    ``|phi(x) - phi(z) - slope (x - z) - middle| <= half`` over a layer's interval, ``z`` its clean input; each ``(n, width)``.
    """

    slope: th.Tensor
    middle: th.Tensor
    half: th.Tensor


class Chain:
    """
    Linear layers and activations as the modules they are.

    :param modules: in the order they are applied, a linear layer last
    :raises UnsupportedNetworkError: for other modules, or an activation without a known Lipschitz constant
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        read_layers(modules)  # refuses what it does not know
        self.layers = [module for module in modules if isinstance(module, nn.Linear)]
        self.activations = [module for module in modules if not isinstance(module, nn.Linear | nn.Dropout)]
        if len(self.activations) != len(self.layers) - 1:
            raise UnsupportedNetworkError("differentiable bounds cover linear layers and activations only")
        self._argmin = [activation_of(activation).argmin for activation in self.activations]

    def outputs(self, observations: th.Tensor) -> th.Tensor:
        """
        The network's outputs.

        :param observations: flattened, shape ``(n, d)``
        :return: shape ``(n, n_outputs)``
        """
        hidden = observations
        for layer, activation in zip(self.layers, self.activations, strict=False):
            hidden = activation(layer(hidden))
        result: th.Tensor = self.layers[-1](hidden)
        return result

    def interval(self, observations: th.Tensor, eps: th.Tensor, norm: str) -> tuple[th.Tensor, th.Tensor]:
        """
        Interval bounds of the outputs (Gowal et al. 2018).

        :param observations: flattened, shape ``(n, d)``
        :param eps: radius, shape ``(d,)``
        :param norm: ``"linf"`` or ``"l2"`` (then the ellipsoid ``sum (d_i / eps_i)^2 <= 1``)
        :return: lower and upper bounds, each of shape ``(n, n_outputs)``
        """
        inner = self._enclosures(observations, eps, norm)
        middle, half = self._last_interval(inner, eps, norm, self.layers[-1].weight)
        outputs = self.outputs(observations)
        return outputs + middle - half, outputs + middle + half

    def radius(
        self, observations: th.Tensor, eps: th.Tensor, norm: str, linear: float = 1.0, rows: th.Tensor | None = None
    ) -> th.Tensor:
        """
        Bound on the change of each output, or of linear combinations of outputs, over the ball.

        :param observations: flattened, shape ``(n, d)``
        :param eps: radius, shape ``(d,)``
        :param norm: ``"linf"`` or ``"l2"``
        :param linear: share of the linear relaxation in the bound, in [0, 1]; the rest is the interval bound's
        :param rows: the combinations, shape ``(k, n_outputs)``; ``None``: each output
        :return: shape ``(n, k)``, differentiable
        """
        head = self.layers[-1].weight if rows is None else rows @ self.layers[-1].weight
        inner = self._enclosures(observations, eps, norm)
        parts = []
        if linear < 1.0:
            middle, half = self._last_interval(inner, eps, norm, head)
            parts.append((1.0 - linear) * (middle.abs() + half))
        if linear > 0.0:
            parts.append(linear * self._relaxed(inner, eps, norm, head, len(observations)))
        return sum(parts[1:], parts[0])

    def _enclosures(self, observations: th.Tensor, eps: th.Tensor, norm: str) -> list[tuple[_Enclosure, _Enclosure]]:
        """Of each hidden layer: the box around its outputs' change (slope 0), and the parallel lines."""
        found: list[tuple[_Enclosure, _Enclosure]] = []
        clean, shift, radius = observations, None, _row_norms(self.layers[0].weight * eps, norm)
        for i, (layer, activation) in enumerate(zip(self.layers, self.activations, strict=False)):
            if found:
                box = found[-1][0]
                shift, radius = box.middle @ layer.weight.T, box.half @ layer.weight.abs().T
            before = layer(clean)
            clean = activation(before)
            found.append(
                _enclose(activation, self._argmin[i], before, clean, before if shift is None else before + shift, radius)
            )
        return found

    @staticmethod
    def _last_interval(
        inner: list[tuple[_Enclosure, _Enclosure]], eps: th.Tensor, norm: str, head: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        if not inner:
            half = _row_norms(head * eps, norm)[None]
            return th.zeros_like(half), half
        box = inner[-1][0]
        return box.middle @ head.T, box.half @ head.abs().T

    def _relaxed(
        self, inner: list[tuple[_Enclosure, _Enclosure]], eps: th.Tensor, norm: str, head: th.Tensor, n: int
    ) -> th.Tensor:
        if not inner:
            return _row_norms(head * eps, norm).expand(n, -1)
        lines = inner[-1][1]
        middle, half = lines.middle @ head.T, lines.half @ head.abs().T
        # Row by row: of (n, k, width) at once every temporary would be too large for the allocator's cache.
        slopes = [(lines.slope * row) @ self.layers[-2].weight for row in head]
        rest = [self._relaxed_row(inner[:-1], eps, norm, slope) for slope in slopes]
        middle = middle + th.stack([one[0] for one in rest], dim=1)
        return middle.abs() + half + th.stack([one[1] for one in rest], dim=1)

    def _relaxed_row(
        self, inner: list[tuple[_Enclosure, _Enclosure]], eps: th.Tensor, norm: str, slope: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """From the slope of a combination of outputs in a layer's input, ``(n, width)``, back to the observation."""
        middle = half = slope.new_zeros(len(slope))
        for layer, (_, lines) in zip(reversed(self.layers[: len(inner)]), reversed(inner), strict=True):
            middle = middle + (slope * lines.middle).sum(dim=-1)
            half = half + (slope.abs() * lines.half).sum(dim=-1)
            slope = (slope * lines.slope) @ layer.weight
        return middle, half + _row_norms(slope * eps, norm)


def _row_norms(rows: th.Tensor, norm: str) -> th.Tensor:
    """The largest change of ``rows @ x`` over the unit ball, the dual norm of each row."""
    return rows.abs().sum(dim=-1) if norm == "linf" else th.linalg.vector_norm(rows, dim=-1)


def _enclose(
    activation: nn.Module, argmin: float, before: th.Tensor, clean: th.Tensor, centre: th.Tensor, radius: th.Tensor
) -> tuple[_Enclosure, _Enclosure]:
    """The box and the parallel lines; activations without lines of their own get the box for both."""
    lower, upper = centre - radius, centre + radius
    at_lower, at_upper = activation(lower), activation(upper)
    low, high = at_lower, at_upper
    if argmin > float("-inf"):  # falls before it rises
        low, high = activation(lower.clamp(min=argmin).minimum(upper)), th.maximum(low, high)
    box = _Enclosure(th.zeros_like(low), 0.5 * (high + low) - clean, 0.5 * (high - low))
    if type(activation) in (nn.Tanh, nn.Sigmoid):
        # An S is least steep at an end of the interval: what is left beside a line of that slope rises from end to end.
        outer = th.where(centre > 0, at_upper, at_lower)
        slope = 1.0 - outer * outer if type(activation) is nn.Tanh else outer * (1.0 - outer)
        return box, _Enclosure(slope, box.middle - slope * (centre - before), box.half - slope * radius)
    if type(activation) is nn.ReLU:
        slope = (at_upper - at_lower) / (2.0 * radius).clamp(min=1e-12)  # what is left is convex, alike at both ends
        kink = th.zeros_like(lower).maximum(lower).minimum(upper)
        low, high = activation(kink) - slope * (kink - before), at_lower - slope * (lower - before)
        return box, _Enclosure(slope, 0.5 * (high + low) - clean, 0.5 * (high - low))
    return box, box
