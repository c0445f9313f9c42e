"""The network of a learned adversary as plain arrays: fast to run, safe to share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from sb3_prune_robust.network import Network, UnsupportedNetworkError, action_network, activation_of, read_layers

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Director:
    """
    From what an adversary observes to its mean action.

    :param network: the network of the mean
    :param bound: actions lie in ``[-bound, bound]``
    :param squash: by ``bound * tanh`` (SAC, TD3) rather than by clipping (PPO)
    """

    network: Network
    bound: float
    squash: bool

    def __call__(self, observations: Array) -> Array:
        """
        Mean actions.

        :param observations: shape ``(n, d)``
        :return: shape ``(n, k)``
        """
        outputs = self.network(observations)
        return self.bound * np.tanh(outputs) if self.squash else np.clip(outputs, -self.bound, self.bound)

    @classmethod
    def still(cls, n_inputs: int, n_actions: int) -> Director:
        """The director whose action is always 0."""
        network = Network((np.zeros((n_actions, n_inputs), np.float32),), (np.zeros(n_actions, np.float32),), ())
        return cls(network, 1.0, squash=False)

    @classmethod
    def read(cls, policy: Any) -> Director:
        """
        A copy of the actor of an SB3 policy.

        :param policy: of PPO, A2C, TRPO, SAC, TQC or TD3, with a plain MLP as actor
        :raises UnsupportedNetworkError: for any other
        """
        bound = float(policy.action_space.high.flat[0])
        actor = getattr(policy, "actor", None)
        if actor is None:
            return cls(_copied(action_network(policy)), bound, squash=False)
        if hasattr(actor, "latent_pi"):
            return cls(_copied(read_layers([*actor.latent_pi, actor.mu])), bound, squash=True)
        layers = list(actor.mu)
        if not isinstance(layers[-1], nn.Tanh):
            raise UnsupportedNetworkError(
                f"actor {type(actor).__name__} does not end in tanh; only plain MLP actors are covered"
            )
        return cls(_copied(read_layers(layers[:-1])), bound, squash=True)

    def arrays(self) -> dict[str, Array]:
        """The director as arrays by name, for files."""
        named: dict[str, Array] = {"bound": np.array(self.bound), "squash": np.array(self.squash)}
        named["activations"] = np.array([activation.name for activation in self.network.activations], dtype="U16")
        for i, (weight, bias) in enumerate(zip(self.network.weights, self.network.biases, strict=True)):
            named |= {f"W{i}": weight, f"b{i}": bias}
        return named

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Director:
        """
        The director that :meth:`arrays` gave.

        :param arrays: by name
        :raises ValueError: if something is missing or not known
        """
        try:
            names = [str(name) for name in arrays["activations"]]
            activations = tuple(activation_of(getattr(nn, name)()) for name in names)
            layers = range(len(names) + 1)
            network = Network(tuple(arrays[f"W{i}"] for i in layers), tuple(arrays[f"b{i}"] for i in layers), activations)
            return cls(network, float(arrays["bound"]), bool(arrays["squash"]))
        except (KeyError, AttributeError, UnsupportedNetworkError) as error:
            raise ValueError(f"these arrays are no adversary's network: {error}") from error


def _copied(network: Network) -> Network:
    """Apart from the policy, which goes on learning."""
    return Network(tuple(w.copy() for w in network.weights), tuple(b.copy() for b in network.biases), network.activations)
