"""Chains of linear layers and activations as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm
from torch import nn

from sb3_prune_robust.network.activations import TANH, Activation, Array, UnsupportedNetworkError, activation_of


@dataclass(frozen=True)
class Network:
    """
    ``f(s) = W_L phi_{L-1}(... phi_1(W_1 s + b_1) ...) + b_L`` as arrays.

    :param weights: ``L`` matrices of shape ``(n_out, n_in)``
    :param biases: ``L`` vectors of shape ``(n_out,)``
    :param activations: ``L - 1`` activations, one after each layer but the last
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    activations: tuple[Activation, ...]

    def __post_init__(self) -> None:
        if not len(self.weights) == len(self.biases) == len(self.activations) + 1:
            raise ValueError(
                f"{len(self.weights)} weights need as many biases and one activation fewer, "
                f"got {len(self.biases)} and {len(self.activations)}"
            )

    @property
    def n_inputs(self) -> int:
        return int(self.weights[0].shape[1])

    @property
    def n_outputs(self) -> int:
        return int(self.weights[-1].shape[0])

    @property
    def activation_lipschitz(self) -> float:
        """Product of the activations' Lipschitz constants (``l_phi^(L-1)`` when they are all alike)."""
        return float(np.prod([activation.lipschitz for activation in self.activations]))

    def astype(self, dtype: Any) -> Network:
        """A copy in another floating-point type (float32 to float64 is exact)."""
        return Network(*_cast(self, dtype), self.activations)

    def __call__(self, inputs: Array) -> Array:
        """
        The network's output.

        :param inputs: shape ``(n, n_inputs)``
        :return: shape ``(n, n_outputs)``
        """
        hidden = inputs
        for weight, bias, activation in zip(self.weights, self.biases, self.activations, strict=False):
            hidden = activation.function(hidden @ weight.T + bias)
        return hidden @ self.weights[-1].T + self.biases[-1]


@dataclass(frozen=True)
class Box:
    """
    The actions that a tanh-squashed output in ``[-1, 1]`` stands for: ``low + (high - low) (1 + y) / 2``.

    :param low: smallest actions, shape ``(n_outputs,)``
    :param high: largest actions, shape ``(n_outputs,)``
    """

    low: Array
    high: Array

    @property
    def half(self) -> Array:
        """Half the width, the factor of ``y``."""
        return (self.high - self.low) / 2

    def action(self, outputs: Array) -> Array:
        """The action, in the environment's units, that outputs before the tanh give; same shape."""
        return self.low + (1 + np.tanh(outputs)) * self.half


@dataclass(frozen=True)
class ActionNetwork(Network):
    """
    The network from observation to what a policy acts by: means, logits, Q values.

    One of: a Gaussian's means (``std`` given); logits of categoricals (``nvec``); Q values of which the largest acts (``nvec``
    and ``greedy``); an actor's output before the tanh (``box``), or what is clipped to the action space (none of these).

    :param std: standard deviation of each action dimension, shape ``(n_outputs,)``
    :param nvec: number of choices of each categorical, summing to ``n_outputs``; empty for continuous actions
    :param greedy: the policy plays the largest output, and never samples
    :param box: of a tanh-squashed actor
    :param masked: choices may be ruled out by a mask that the environment gives
    :param is_exact: the output is the action, and ``std`` a unit of distance rather than noise
    """

    std: Array | None = None
    nvec: tuple[int, ...] = ()
    greedy: bool = False
    box: Box | None = None
    masked: bool = False
    is_exact: bool = False

    @property
    def is_gaussian(self) -> bool:
        return self.std is not None

    @property
    def has_distribution(self) -> bool:
        """Whether the policy's noise is known: a Gaussian's or categoricals'; not that of greedy and tanh-squashed ones."""
        return not self.is_exact and (self.is_gaussian or (bool(self.nvec) and not self.greedy))

    def astype(self, dtype: Any) -> ActionNetwork:
        weights, biases = _cast(self, dtype)
        std = None if self.std is None else self.std.astype(dtype)
        box = None if self.box is None else Box(self.box.low.astype(dtype), self.box.high.astype(dtype))
        return replace(self, weights=weights, biases=biases, std=std, box=box)

    def in_action_units(self) -> ActionNetwork:
        """
        A deterministic actor up to the action itself: the tanh and the scaling to the box as one more layer.

        It has a ``std`` of 1, so that distances between its outputs are those between actions.
        """
        std = np.ones(self.n_outputs, self.weights[-1].dtype)
        if self.box is None:
            return replace(self, std=std, is_exact=True)
        last, middle = np.diag(self.box.half), (self.box.low + self.box.high) / 2
        weights, biases, activations = (*self.weights, last), (*self.biases, middle), (*self.activations, TANH)
        return replace(self, weights=weights, biases=biases, activations=activations, box=None, std=std, is_exact=True)


def _cast(network: Network, dtype: Any) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    return tuple(w.astype(dtype) for w in network.weights), tuple(b.astype(dtype) for b in network.biases)


def _array(tensor: th.Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def read_layers(modules: Iterable[nn.Module]) -> Network:
    """
    A chain of linear layers and activations as a :class:`Network`.

    :param modules: ``nn.Linear`` and activation modules in the order they are applied, ending with a linear layer; dropout in
        evaluation mode is passed over, batch renormalisation (CrossQ) folded into the linear layer behind it, in float64
    :return: the network, its arrays views of the modules' parameters on the CPU, but where something was folded in
    :raises UnsupportedNetworkError: for any other module, dropout and batch normalisation in training mode, half precision, or
        two linear layers without activation between
    """
    weights: list[Array] = []
    biases: list[Array] = []
    activations: list[Activation] = []
    normaliser: BatchRenorm | None = None
    for module in modules:
        if isinstance(module, (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)):
            _check_inert(module)
        elif isinstance(module, BatchRenorm):
            _check_normaliser(module, follows_linear=len(weights) > len(activations) or normaliser is not None)
            normaliser = module
        elif type(module) is nn.Linear:
            _check_linear(module, n_before=len(weights) - len(activations))
            weight, bias = _affine(module, normaliser)
            weights.append(weight)
            biases.append(bias)
            normaliser = None
        else:
            activations.append(activation_of(module))
        if len(activations) > len(weights):
            raise UnsupportedNetworkError(f"the network applies {module!r} with no linear layer before it")
    if len(weights) != len(activations) + 1:
        raise UnsupportedNetworkError("the network must end with a linear layer")
    return Network(tuple(weights), tuple(biases), tuple(activations))


def _affine(module: nn.Linear, normaliser: BatchRenorm | None) -> tuple[Array, Array]:
    """Weight and bias of a layer, those of the normalisation before it folded in."""
    weight = _array(module.weight)
    bias = np.zeros(module.out_features, np.float32) if module.bias is None else _array(module.bias)
    if normaliser is None:
        return weight, bias
    statistics: Any = normaliser.ra_mean, normaliser.ra_var
    mean, variance = (_array(one).astype(np.float64) for one in statistics)
    factor = 1.0 / np.sqrt(variance + normaliser.eps)
    shift = -mean * factor
    if normaliser.affine:
        scale = _array(normaliser.scale).astype(np.float64)
        factor, shift = factor * scale, shift * scale + _array(normaliser.bias)
    return weight * factor, bias + weight @ shift


def _check_normaliser(module: nn.Module, follows_linear: bool) -> None:
    if module.training:
        _check_inert(module)
    if follows_linear:
        raise UnsupportedNetworkError(f"{module!r} stands behind a linear layer; only one before a linear layer is covered")


def _check_inert(module: nn.Module) -> None:
    """Dropout in evaluation mode passes its input on; everything else here is refused, each with its reason."""
    name = type(module).__name__
    if module.training:
        what = "drops units at random" if "Dropout" in name else "depends on the other observations of a batch"
        raise UnsupportedNetworkError(
            f"{name} is in training mode, where it {what}, so that the policy is no function of one observation; "
            "call policy.set_training_mode(False) first"
        )
    if "Dropout" not in name:
        raise UnsupportedNetworkError(f"{name} is not covered; fold its statistics into the linear layer beside it")


def _check_linear(module: nn.Linear, n_before: int) -> None:
    if n_before:
        raise UnsupportedNetworkError("two linear layers follow each other with no activation between them")
    if "weight" not in module._parameters:
        raise UnsupportedNetworkError(
            f"{module!r} computes its weight by a parametrisation (torch.nn.utils.prune, spectral_norm, ...); "
            "make it permanent first, e.g. torch.nn.utils.prune.remove(layer, 'weight')"
        )
    if module.weight.dtype not in (th.float32, th.float64):
        raise UnsupportedNetworkError(f"{module!r} is in {module.weight.dtype}; float32 or float64 is needed")
