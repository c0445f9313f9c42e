"""A policy's networks: as plain layers, which the bounds and the fast attacks read, and through its own modules.

Nothing here changes a weight. On the CPU the arrays are views of the policy's own parameters, so a network read before an
optimiser step shows the weights after it. Whoever needs a snapshot calls :meth:`Network.astype` with a copy.
"""

from sb3_prune_robust.network.activations import RELU, TANH, Activation, Array, UnsupportedNetworkError, activation_of
from sb3_prune_robust.network.outputs import (
    box_of,
    choices,
    distributions,
    is_greedy,
    kind_of,
    n_outputs,
    outputs,
    samples,
)
from sb3_prune_robust.network.plain import ActionNetwork, Box, Network, read_layers
from sb3_prune_robust.network.reading import action_modules, action_network, spread_network, value_network

__all__ = [
    "RELU",
    "TANH",
    "ActionNetwork",
    "Activation",
    "Array",
    "Box",
    "Network",
    "UnsupportedNetworkError",
    "action_modules",
    "action_network",
    "activation_of",
    "box_of",
    "choices",
    "distributions",
    "is_greedy",
    "kind_of",
    "n_outputs",
    "outputs",
    "read_layers",
    "samples",
    "spread_network",
    "value_network",
]
