"""A policy's action network as plain layers: what the bounds and the fast attacks read.

Nothing here copies or changes a weight: on the CPU the arrays are views of the policy's own parameters, so a network read
before an optimiser step shows the weights after it. Whoever needs a snapshot calls :meth:`Network.astype` with a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from scipy.special import erf, expit
from torch import nn

Array = npt.NDArray[Any]

# SB3 and its sister package: methods defined there do what `action_network` takes for granted.
_TRUSTED_MODULES = ("stable_baselines3.", "sb3_prune_robust.", "torch.")


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
class ActionNetwork(Network):
    """
    The network from observation to the mean of a Gaussian policy, or to the logits of a categorical one.

    :param std: standard deviation of each action dimension, shape ``(n_outputs,)``; ``None`` for categorical policies
    :param nvec: number of choices of each categorical, summing to ``n_outputs``; empty for Gaussian policies
    """

    std: Array | None = None
    nvec: tuple[int, ...] = ()

    @property
    def is_gaussian(self) -> bool:
        return self.std is not None

    def astype(self, dtype: Any) -> ActionNetwork:
        weights, biases = _cast(self, dtype)
        std = None if self.std is None else self.std.astype(dtype)
        return ActionNetwork(weights, biases, self.activations, std, self.nvec)


def _cast(network: Network, dtype: Any) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    return tuple(w.astype(dtype) for w in network.weights), tuple(b.astype(dtype) for b in network.biases)


def _array(tensor: th.Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def read_layers(modules: Iterable[nn.Module]) -> Network:
    """
    A chain of linear layers and activations as a :class:`Network`.

    :param modules: ``nn.Linear`` and activation modules in the order they are applied, ending with a linear layer; dropout in
        evaluation mode is passed over
    :return: the network, its arrays views of the modules' parameters on the CPU
    :raises UnsupportedNetworkError: for any other module, dropout and batch normalisation in training mode, half precision, or
        two linear layers without activation between
    """
    weights: list[Array] = []
    biases: list[Array] = []
    activations: list[Activation] = []
    for module in modules:
        if isinstance(module, (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)):
            _check_inert(module)
        elif type(module) is nn.Linear:
            _check_linear(module, n_before=len(weights) - len(activations))
            weights.append(_array(module.weight))
            biases.append(np.zeros(module.out_features, np.float32) if module.bias is None else _array(module.bias))
        else:
            activations.append(activation_of(module))
        if len(activations) > len(weights):
            raise UnsupportedNetworkError(f"the network applies {module!r} with no linear layer before it")
    if len(weights) != len(activations) + 1:
        raise UnsupportedNetworkError("the network must end with a linear layer")
    return Network(tuple(weights), tuple(biases), tuple(activations))


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


def _check_inputs(policy: Any) -> None:
    extractor = policy.pi_features_extractor
    if any(type(m) is not nn.Flatten for m in extractor.children()) or not any(True for _ in extractor.children()):
        raise UnsupportedNetworkError(
            f"features extractor {type(extractor).__name__} is not covered; use FlattenExtractor (SB3's default for vectors)"
        )
    _check_standard(extractor, "forward")
    space = policy.observation_space
    if getattr(space, "dtype", None) == np.uint8 and len(space.shape or ()) == 3 and policy.normalize_images:
        raise UnsupportedNetworkError(
            "image observations are rescaled inside the policy, so eps would be in other units than the observation; "
            "rescale them in the environment and pass normalize_images=False"
        )
    if not hasattr(space, "low"):
        raise UnsupportedNetworkError(f"observation space {space} is not a Box; only Box observations are covered")


def _check_actor_critic(policy: Any) -> None:
    if not hasattr(policy, "mlp_extractor") or not hasattr(policy, "action_net"):
        raise UnsupportedNetworkError(
            f"{type(policy).__name__} is not an actor-critic policy with a state-independent action distribution "
            "(PPO, A2C, TRPO); SAC's covariance, for one, depends on the state"
        )
    _check_standard(policy, "extract_features", "_get_action_dist_from_latent")
    _check_standard(policy.mlp_extractor, "forward_actor", "forward_critic")
    _check_inputs(policy)


def action_network(policy: Any) -> ActionNetwork:
    """
    The action network of an SB3 actor-critic policy: observation (flattened) to mean or logits.

    :param policy: an ``ActorCriticPolicy`` of PPO, A2C or TRPO
    :return: the network, its arrays views of the policy's parameters on the CPU
    :raises UnsupportedNetworkError: for anything that the formulas of the certificates do not cover: gSDE, SAC,
        recurrent or maskable policies, other features extractors, unknown layers and activations
    """
    _check_actor_critic(policy)
    _check_standard(policy, "get_distribution")
    distribution = type(policy.action_dist).__name__
    layers = read_layers([*policy.mlp_extractor.policy_net, policy.action_net])
    if distribution == "DiagGaussianDistribution":
        return ActionNetwork(layers.weights, layers.biases, layers.activations, std=np.exp(_array(policy.log_std)))
    if distribution == "CategoricalDistribution":
        return ActionNetwork(layers.weights, layers.biases, layers.activations, nvec=(int(policy.action_space.n),))
    if distribution == "MultiCategoricalDistribution":
        nvec = tuple(int(n) for n in np.ravel(policy.action_space.nvec))
        return ActionNetwork(layers.weights, layers.biases, layers.activations, nvec=nvec)
    reason = "gSDE's covariance depends on the state" if "StateDependent" in distribution else "it has no formula here"
    raise UnsupportedNetworkError(f"action distribution {distribution} is not covered: {reason}")


def value_network(policy: Any) -> Network:
    """
    The value network of an SB3 actor-critic policy: observation (flattened) to one value.

    :param policy: an ``ActorCriticPolicy`` of PPO, A2C or TRPO
    :return: the network, its arrays views of the policy's parameters on the CPU
    :raises UnsupportedNetworkError: as :func:`action_network`
    """
    _check_actor_critic(policy)
    _check_standard(policy, "predict_values")
    return read_layers([*policy.mlp_extractor.value_net, policy.value_net])
