"""Which weights of an SB3 policy are its actor's and its critic's, what steps them, and which target networks follow them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn

#: kinds of layers that have a weight to prune; an LSTM has several
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Modules of a policy that belong to the actor and to the critic, in the order in which an observation passes them.
_ACTOR_CRITIC = (
    ("features_extractor", "pi_features_extractor", "lstm_actor", "mlp_extractor", "action_net"),
    ("vf_features_extractor", "lstm_critic", "critic", "mlp_extractor.value_net", "value_net"),
)
_ACTOR_AND_CRITIC = (("actor",), ("critic",))
_Q_NETWORK = (("q_net",), ())
_QUANTILES = (("quantile_net",), ())
_ACTOR_ALONE = (("features_extractor", "action_net"), ())


@dataclass(frozen=True)
class Anatomy:
    """
    The weights of a policy.

    Names are those of the layers, ``"mlp_extractor.policy_net.0"`` or ``"actor.latent_pi.2"``; an LSTM's weights are
    ``"lstm_actor.weight_ih_l0"`` and so on.

    :param actor: weights of the actor, by name, in order; of a Q network that acts by itself (DQN, QRDQN) all
    :param critic: weights of the critic that are not the actor's too; none where there is no critic
    :param heads: names of the layers that give an output: means, logits, values
    :param recurrent: names of the weights of LSTMs
    :param followers: by name of a weight, those of target networks that follow it
    :param optimizers: by target (``"actor"``, ``"critic"``) what steps its weights; none for ARS, which has no gradients
    :param is_value_network: whether the actor is one network whose values decide (DQN, QRDQN), its own critic
    """

    actor: dict[str, th.Tensor]
    critic: dict[str, th.Tensor]
    heads: frozenset[str]
    recurrent: frozenset[str]
    followers: dict[str, tuple[th.Tensor, ...]]
    optimizers: dict[str, th.optim.Optimizer]
    is_value_network: bool

    @property
    def weights(self) -> dict[str, th.Tensor]:
        """All of them."""
        return {**self.actor, **self.critic}

    def part(self, target: str) -> dict[str, th.Tensor]:
        """Those of the ``"actor"`` or the ``"critic"``."""
        return self.actor if target == "actor" else self.critic

    def hidden(self, target: str) -> dict[str, th.Tensor]:
        """Those of a target that are pruned unless others are named: no heads, no LSTM."""
        return {n: w for n, w in self.part(target).items() if n not in self.heads and n not in self.recurrent}


def anatomy(policy: Any) -> Anatomy:
    """
    The weights of an SB3 or sb3-contrib policy.

    A features extractor that actor and critic share is the actor's.

    :param policy: a policy of PPO, A2C, TRPO, RecurrentPPO, MaskablePPO, SAC, TD3, DDPG, DQN, TQC, QRDQN, CrossQ or ARS
    :return: its weights
    :raises TypeError: for a policy of another kind
    """
    of_actor, of_critic = _parts(policy)
    critic = dict(_weights(policy, of_critic))
    actor = {name: weight for name, weight in _weights(policy, of_actor) if name not in critic}
    weights = {**actor, **critic}
    recurrent = frozenset(name for name in weights if ".weight_" in name)
    return Anatomy(
        actor=actor,
        critic=critic,
        heads=frozenset(_heads(weights)),
        recurrent=recurrent,
        followers=_followers(policy, weights),
        optimizers=optimizers_of(policy),
        is_value_network=of_actor in (("q_net",), ("quantile_net",)),
    )


def optimizers_of(policy: Any) -> dict[str, th.optim.Optimizer]:
    """
    What steps a policy's weights.

    :param policy: as :func:`anatomy`
    :return: by target (``"actor"``, ``"critic"``) the optimiser, one and the same for both where the policy has one; empty
        for ARS
    """
    whole = getattr(policy, "optimizer", None)
    if whole is not None:
        return {"actor": whole, "critic": whole}
    found = {target: getattr(getattr(policy, target, None), "optimizer", None) for target in ("actor", "critic")}
    return {target: optimizer for target, optimizer in found.items() if optimizer is not None}


def _parts(policy: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    children: Mapping[str, nn.Module] = dict(policy.named_children()) if isinstance(policy, nn.Module) else {}
    if "mlp_extractor" in children and "action_net" in children:
        return _ACTOR_CRITIC
    if "actor" in children and "critic" in children:
        return _ACTOR_AND_CRITIC
    if "q_net" in children:
        return _Q_NETWORK
    if "quantile_net" in children:
        return _QUANTILES
    if "action_net" in children:
        return _ACTOR_ALONE
    raise TypeError(
        f"policy of class {type(policy).__name__} is not one whose layers are known: of PPO, A2C, TRPO, RecurrentPPO, "
        "MaskablePPO, SAC, TD3, DDPG, DQN, TQC, QRDQN, CrossQ or ARS"
    )


def _weights(policy: nn.Module, prefixes: Iterable[str]) -> Iterator[tuple[str, th.Tensor]]:
    modules = dict(policy.named_modules())
    for prefix in prefixes:
        for name, module in modules.items():
            if name == prefix or name.startswith(f"{prefix}."):
                yield from _of_module(name, module)


def _of_module(name: str, module: nn.Module) -> Iterator[tuple[str, th.Tensor]]:
    if isinstance(module, LAYERS):
        yield name, module.weight
    elif isinstance(module, nn.RNNBase):
        yield from ((f"{name}.{one}", p) for one, p in module.named_parameters(recurse=False) if one.startswith("weight_"))


def _heads(weights: Iterable[str]) -> Iterator[str]:
    """The last layer of each network: where it is not named as a head, the last of its chain."""
    chains: dict[str, str] = {}
    for name in weights:
        chain, _, last = name.rpartition(".")
        if name in ("action_net", "value_net") or last in ("mu", "log_std"):
            yield name
        elif last.isdecimal() and _is_output(chain):
            chains[chain] = name
    yield from chains.values()


def _is_output(chain: str) -> bool:
    """Whether the end of a chain of layers is an output, rather than a latent that other layers take up."""
    last = chain.rpartition(".")[2]
    in_extractor = "features_extractor" in chain
    names = ("mu", "q_net", "quantile_net", "action_net")
    return not in_extractor and (last in names or last.startswith("qf") or chain == "value_net")


def _followers(policy: nn.Module, weights: Mapping[str, th.Tensor]) -> dict[str, tuple[th.Tensor, ...]]:
    """Paired as SB3's polyak update pairs them: a features extractor that actor and critic share has a follower in each."""
    names = {id(weight): name for name, weight in weights.items()}
    found: dict[str, tuple[th.Tensor, ...]] = {}
    for name, target in policy.named_children():
        online = getattr(policy, name.removesuffix("_target"))
        if online is not target:
            for weight, follower in zip(online.parameters(), target.parameters(), strict=True):
                if id(weight) in names:
                    found[names[id(weight)]] = (*found.get(names[id(weight)], ()), follower)
    return found
