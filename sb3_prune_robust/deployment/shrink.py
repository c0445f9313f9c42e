"""Removing hidden units that pruning left dead: a smaller plain SB3 model with the same outputs."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file, save_to_zip_file
from stable_baselines3.common.torch_layers import get_actor_critic_arch
from torch import nn

from sb3_prune_robust.anatomy import anatomy
from sb3_prune_robust.network import Activation, Array, Network, UnsupportedNetworkError, read_layers

SelfModel = TypeVar("SelfModel", BaseAlgorithm, BasePolicy)
State = dict[str, th.Tensor]

_PLAIN = ("stable_baselines3.", "sb3_contrib.")
_OURS = "sb3_prune_robust."
# Optimisers whose parameters change their shape.
_STALE = ("policy.optimizer", "actor.optimizer")


def shrink(model: SelfModel) -> SelfModel:
    """
    The same policy without the hidden units that pruning left dead.

    A unit whose incoming weights are all zero is constant: it goes, and its output is added to the next layer's bias. A unit
    whose outgoing weights are all zero goes. Either may leave others dead, which go too. A layer keeps at least one unit.

    What comes back is plain SB3: our policies and algorithms become the SB3 classes that they extend (further training then
    keeps no Lipschitz bound and is not robust training), with ``net_arch`` set to what is left; it saves, loads and trains
    without this package. Actors and, in actor-critic policies, value networks are shrunk; the critics of SAC, TD3, DDPG and
    TQC do not act and stay as they are; target networks of what is shrunk start as copies of it. Optimisers of what is shrunk
    start afresh. Weights that are zero but whose units live are not kept at zero in further training, unless a
    ``PruningCallback`` is given.

    :param model: an SB3 or sb3-contrib model, or a policy; it is not changed
    :return: a new model without environment (``set_env`` to train it) and with an empty replay buffer, as loaded from a file;
        for a policy a new policy, in evaluation mode and without a learning rate: for acting only
    :raises UnsupportedNetworkError: where units cannot be removed one by one, or it is not known how: recurrent policies,
        gSDE, batch renormalisation (CrossQ), ARS, features extractors with weights (CNN), policies not SB3's or ours
    :raises TypeError: for anything else than a model or a policy
    """
    policy = model.policy if isinstance(model, BaseAlgorithm) else model
    if not isinstance(policy, BasePolicy):
        raise TypeError(f"model must be an SB3 model or policy, got {type(model).__name__}")
    check_coverage(policy)
    net_arch, state = _shrunk(policy)
    with th.random.fork_rng(devices=[]):  # the initialisation, overwritten at once, draws random numbers
        if isinstance(model, BaseAlgorithm):
            return _rebuild_model(model, net_arch, state)
        return _rebuild_policy(policy, net_arch, state)


def check_coverage(policy: BasePolicy) -> None:
    """
    :param policy: the policy to shrink
    :raises UnsupportedNetworkError: unless it is a chain of linear layers and activations whose units are independent
    """
    name, modules = type(policy).__name__, list(policy.modules())
    reason = None
    if not type(policy).__module__.startswith((*_PLAIN, _OURS)):
        reason = "it is neither SB3's nor ours, so what it computes from its layers is not known"
    elif any(isinstance(module, nn.RNNBase) for module in modules):
        reason = "the units of an LSTM feed back into all of its gates, and no part of them can be removed alone"
    elif any(getattr(module, "use_sde", False) for module in modules):
        reason = "gSDE's exploration noise is made of the last hidden units themselves, those without outgoing weights too"
    elif any("BatchRenorm" in type(module).__name__ for module in modules):
        reason = "batch renormalisation stands between its layers (CrossQ), so a unit without incoming weights is not constant"
    elif "ars" in type(policy).__module__.split("."):
        reason = "ARS keeps its weights as one vector beside the policy"
    elif any(list(extractor.parameters()) for extractor in _extractors(policy)):
        reason = "its features extractor has weights of its own (a CNN), which hold most of the work and are not removed"
    if reason is not None:
        raise UnsupportedNetworkError(f"{name} cannot be shrunk: {reason}")


def _extractors(policy: BasePolicy) -> list[nn.Module]:
    return [module for name, module in policy.named_modules() if name.split(".")[-1].endswith("features_extractor")]


@dataclass(frozen=True)
class Chain:
    """
    Hidden layers that follow each other, and the heads on the last of them.

    :param hidden: names of the hidden layers
    :param heads: names of the heads
    :param sizes: number of outputs of each head
    :param network: all as one network, the heads stacked as its last layer
    """

    hidden: tuple[str, ...]
    heads: tuple[str, ...]
    sizes: tuple[int, ...]
    network: Network

    def shrunk(self) -> tuple[list[int], State]:
        """Sizes of the hidden layers that are left, and the new weights by name."""
        weights, biases = remove_dead(self.network.weights, self.network.biases, self.network.activations)
        ends = list(itertools.accumulate(self.sizes))[:-1]
        weights = [*weights[:-1], *np.split(weights[-1], ends)]
        biases = [*biases[:-1], *np.split(biases[-1], ends)]
        state = {}
        for name, weight, bias in zip((*self.hidden, *self.heads), weights, biases, strict=True):
            state[f"{name}.weight"], state[f"{name}.bias"] = th.as_tensor(weight), th.as_tensor(bias)
        return [len(bias) for bias in biases[: len(self.hidden)]], state


def _read_chain(policy: BasePolicy, target: str) -> Chain:
    body = anatomy(policy)
    hidden = tuple(body.hidden(target))
    heads = tuple(name for name in body.part(target) if name in body.heads)
    modules: list[nn.Module] = []
    if hidden:
        chain, _, last = hidden[-1].rpartition(".")
        modules = list(policy.get_submodule(chain).children())[: int(last) + 2]  # the activation after the last one, too
    layers = [read_layers([*modules, policy.get_submodule(head)]) for head in heads]
    stacked = [np.concatenate(parts) for parts in zip(*((n.weights[-1], n.biases[-1]) for n in layers), strict=True)]
    first = layers[0]
    network = Network((*first.weights[:-1], stacked[0]), (*first.biases[:-1], stacked[1]), first.activations)
    return Chain(hidden, heads, tuple(len(layer.biases[-1]) for layer in layers), network)


def remove_dead(
    weights: Sequence[Array], biases: Sequence[Array], activations: Sequence[Activation]
) -> tuple[list[Array], list[Array]]:
    """
    Remove the dead hidden units of a chain of layers.

    One sweep forward finds all constant units and one backward all that nothing reads: taking constants out empties rows only
    in later layers, taking out what nothing reads empties columns only in earlier ones.

    :param weights: matrices ``(n_out, n_in)``, the last of them the output layer
    :param biases: vectors ``(n_out,)``
    :param activations: the activation after each layer but the last
    :return: new weights and biases, of the types given
    """
    new = [weight.astype(np.float64) for weight in weights]
    shifts = [bias.astype(np.float64) for bias in biases]
    for layer, activation in enumerate(activations):
        constant = ~new[layer].any(axis=1)
        shifts[layer + 1] += new[layer + 1][:, constant] @ activation.function(shifts[layer][constant])
        new[layer + 1][:, constant] = 0.0
    for layer in reversed(range(len(activations))):
        alive: Array = np.any(new[layer + 1], axis=0)  # constants have no outgoing weights left
        new[layer][~alive] = 0.0
        alive[0] |= not alive.any()
        new[layer], shifts[layer], new[layer + 1] = new[layer][alive], shifts[layer][alive], new[layer + 1][:, alive]
    return (
        [weight.astype(old.dtype) for weight, old in zip(new, weights, strict=True)],
        [shift.astype(old.dtype) for shift, old in zip(shifts, biases, strict=True)],
    )


def _shrunk(policy: BasePolicy) -> tuple[Any, State]:
    """``net_arch`` and state dict of the smaller policy."""
    state = dict(policy.state_dict())
    actor, weights = _read_chain(policy, "actor").shrunk()
    net_arch: Any = actor
    if hasattr(policy, "mlp_extractor"):
        critic, of_critic = _read_chain(policy, "critic").shrunk()
        weights |= of_critic
        net_arch = {"pi": actor, "vf": critic}
    elif hasattr(policy, "critic"):
        net_arch = {"pi": actor, "qf": list(get_actor_critic_arch(policy.net_arch)[1])}  # type: ignore[arg-type]
    for name, weight in weights.items():
        first, _, rest = name.partition(".")
        state[name] = weight
        if f"{first}_target.{rest}" in state:
            state[f"{first}_target.{rest}"] = weight.clone()
    return net_arch, state


def _plain_class(thing: BasePolicy | BaseAlgorithm) -> type[Any]:
    """What a class of ours extends; an algorithm of somebody else's is left as it is."""
    return next(cls for cls in type(thing).__mro__ if not cls.__module__.startswith(_OURS))


def _plain_arguments(policy: BasePolicy, arguments: dict[str, Any], net_arch: Any) -> dict[str, Any]:
    """Without what our classes take and SB3's do not (``lipschitz``)."""
    accepted = inspect.signature(_plain_class(policy).__init__).parameters
    return {name: value for name, value in arguments.items() if name in accepted} | {"net_arch": net_arch}


def _rebuild_policy(policy: BasePolicy, net_arch: Any, state: State) -> BasePolicy:
    arguments = _plain_arguments(policy, policy._get_constructor_parameters(), net_arch)
    smaller: BasePolicy = _plain_class(policy)(**copy.deepcopy(arguments))
    smaller.to(policy.device)
    smaller.load_state_dict(state)
    smaller.set_training_mode(False)
    return smaller


def _read(file: io.BytesIO, device: th.device) -> tuple[dict[str, Any], dict[str, Any], Any]:
    data, parameters, variables = load_from_zip_file(file, device=device)
    assert data is not None and parameters is not None  # it has just been saved
    return data, dict(parameters), variables


def _rebuild_model(model: BaseAlgorithm, net_arch: Any, state: State) -> BaseAlgorithm:
    """The model as its own file would give it back, had the file the smaller policy in it."""
    saved = io.BytesIO()
    model.save(saved)
    data, parameters, variables = _read(saved, model.device)
    data["policy_class"] = _plain_class(model.policy)
    data["policy_kwargs"] = _plain_arguments(model.policy, data["policy_kwargs"], net_arch)
    seed, data["seed"] = data["seed"], None  # loading would seed the global random number generators
    algorithm = _plain_class(model)
    kept, _ = algorithm._get_torch_save_params(model)  # not the networks that robust training adds
    parameters = {name: parameters[name] for name in kept} | {"policy": state}
    for name in set(parameters) & set(_STALE):
        parameters[name]["state"] = {}
    rewritten = io.BytesIO()
    save_to_zip_file(rewritten, data=data, params=parameters, pytorch_variables=variables)
    rewritten.seek(0)
    smaller: BaseAlgorithm = algorithm.load(rewritten, device=model.device)
    smaller.seed = seed
    return smaller
