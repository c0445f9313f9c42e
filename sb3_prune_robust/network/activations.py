"""Elementwise activations with what bounds and attacks need to know of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erf, expit
from torch import nn

Array = npt.NDArray[Any]


class UnsupportedNetworkError(ValueError):
    """The network or policy is outside what the plain-layer view (bounds, certificates, fast attacks) covers."""


@dataclass(frozen=True)
class Activation:
    """
    An elementwise activation with what a bound needs to know of it.

    Every function here is quasi-convex: it falls up to ``argmin`` and rises after it (``argmin = -inf``: it only rises),
    so that its range over an interval is ``[f(clip(argmin, l, u)), max(f(l), f(u))]``.

    :param name: the torch class it stands for, e.g. ``"Tanh"``
    :param lipschitz: its Lipschitz constant, rounded up
    :param function: the function, elementwise on arrays
    :param derivative: its derivative, elementwise, given the input and the output of ``function``
    :param argmin: where it is smallest (any point of the set, ``-inf`` if it only rises)
    :param curvature: bound on ``|f''|`` away from the kinks
    :param kinks: where the derivative jumps, ascending
    """

    name: str
    lipschitz: float
    function: Callable[[Array], Array]
    derivative: Callable[[Array, Array], Array]
    argmin: float = -np.inf
    curvature: float = 0.0
    kinks: tuple[float, ...] = ()


def _relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, x.dtype.type(0))


def _normal_cdf(x: Array) -> Array:
    return (0.5 * (1.0 + erf(x / np.sqrt(2.0)))).astype(x.dtype)


def _gelu_slope(x: Array, y: Array) -> Array:
    return (_normal_cdf(x) + x * np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi)).astype(x.dtype)


def _silu_slope(x: Array, y: Array) -> Array:
    gate = expit(x)
    return gate * (1.0 + x * (1.0 - gate))


def _mish_slope(x: Array, y: Array) -> Array:
    squashed = np.tanh(_softplus(x))
    return squashed + x * (1.0 - squashed**2) * expit(x)


def _hardswish_slope(x: Array, y: Array) -> Array:
    return np.where(np.abs(x) >= 3.0, (x > 0).astype(x.dtype), (2.0 * x + 3.0) / 6.0)


def _selu(x: Array) -> Array:
    return 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0.0)))


def _selu_slope(x: Array, y: Array) -> Array:
    return 1.0507009873554805 * np.where(x > 0, x.dtype.type(1), 1.6732632423543772 * np.exp(np.minimum(x, 0.0)))


# The constants below are the maxima of |f'| and |f''|, rounded up in the last digit shown.
TANH = Activation("Tanh", 1.0, np.tanh, lambda x, y: 1.0 - y * y, curvature=0.7699)
RELU = Activation("ReLU", 1.0, _relu, lambda x, y: (x > 0).astype(x.dtype), kinks=(0.0,))

_FIXED: dict[type[nn.Module], Activation] = {
    nn.Tanh: TANH,
    nn.ReLU: RELU,
    nn.Sigmoid: Activation("Sigmoid", 0.25, expit, lambda x, y: y * (1.0 - y), curvature=0.0963),
    nn.SELU: Activation("SELU", 1.7581, _selu, _selu_slope, curvature=1.7581, kinks=(0.0,)),
    nn.SiLU: Activation("SiLU", 1.0999, lambda x: x * expit(x), _silu_slope, argmin=-1.278464542761074, curvature=0.5),
    nn.Mish: Activation(
        "Mish", 1.0886, lambda x: x * np.tanh(_softplus(x)), _mish_slope, argmin=-1.1924312145154952, curvature=0.6443
    ),
    nn.Hardswish: Activation(
        "Hardswish",
        1.5,
        lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
        _hardswish_slope,
        argmin=-1.5,
        curvature=0.3334,
        kinks=(-3.0, 3.0),
    ),
}


def _elu(alpha: float) -> Activation:
    def function(x: Array) -> Array:
        return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))

    def derivative(x: Array, y: Array) -> Array:
        return np.where(x > 0, x.dtype.type(1), alpha * np.exp(np.minimum(x, 0.0)))

    return Activation("ELU", 1.0, function, derivative, curvature=alpha, kinks=(0.0,))


def _leaky_relu(slope: float) -> Activation:
    def function(x: Array) -> Array:
        return np.where(x > 0, x, slope * x)

    def derivative(x: Array, y: Array) -> Array:
        return np.where(x > 0, x.dtype.type(1), x.dtype.type(slope))

    argmin = 0.0 if slope < 0 else -np.inf
    return Activation("LeakyReLU", max(1.0, abs(slope)), function, derivative, argmin, kinks=(0.0,))


def activation_of(module: nn.Module) -> Activation:
    """
    The :class:`Activation` that a torch module stands for.

    :param module: an activation module, e.g. ``nn.Tanh()``
    :return: its description
    :raises UnsupportedNetworkError: if no Lipschitz constant is known for it
    """
    if type(module) in _FIXED:
        return _FIXED[type(module)]
    if type(module) is nn.LeakyReLU:
        return _leaky_relu(float(module.negative_slope))
    if type(module) is nn.ELU and 0 <= module.alpha <= 1:
        return _elu(float(module.alpha))
    if type(module) is nn.Softplus and module.beta == 1 and module.threshold >= 20:
        return Activation("Softplus", 1.0, _softplus, lambda x, y: expit(x), curvature=0.25)
    if type(module) is nn.GELU and module.approximate == "none":
        argmin = -0.7517915246935644
        return Activation("GELU", 1.1290, lambda x: x * _normal_cdf(x), _gelu_slope, argmin=argmin, curvature=0.7979)
    raise UnsupportedNetworkError(
        f"activation {module!r} has no known Lipschitz constant here; known: Tanh, ReLU, Sigmoid, Softplus (beta=1), "
        "ELU (0 <= alpha <= 1), LeakyReLU, SELU, GELU (exact), SiLU, Mish, Hardswish"
    )
