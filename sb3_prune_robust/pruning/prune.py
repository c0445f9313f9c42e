"""Pruning the linear layers of a policy to a given sparsity, to the single weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch as th
from torch import nn

from sb3_prune_robust.layers import WeightMasks, weight_masks
from sb3_prune_robust.pruning.distributions import DISTRIBUTIONS, check_distribution, share
from sb3_prune_robust.pruning.schedules import check_sparsity
from sb3_prune_robust.pruning.scores import Score, make_score

TARGETS = ("actor", "critic")

Layers = dict[str, nn.Linear]


def policy_of(model: Any) -> Any:
    """The policy of an SB3 algorithm, or the policy itself."""
    return getattr(model, "policy", model)


def _all_layers(policy: Any) -> dict[str, Layers]:
    extractor = getattr(policy, "mlp_extractor", None)
    if not (hasattr(extractor, "policy_net") and hasattr(policy, "action_net")):
        raise TypeError(f"{type(policy).__name__} is not an actor-critic policy (PPO, A2C, TRPO); no other can be pruned yet")
    named = {name: module for name, module in policy.named_modules() if isinstance(module, nn.Linear)}
    parts = {"actor": ("mlp_extractor.policy_net", "action_net"), "critic": ("mlp_extractor.value_net", "value_net")}
    return {
        target: {name: module for name, module in named.items() if name.startswith(prefixes)}
        for target, prefixes in parts.items()
    }


def target_layers(policy: Any, target: str, patterns: Sequence[str] | None = None) -> Layers:
    """
    The layers of the actor or the critic that are pruned.

    :param policy: an actor-critic policy
    :param target: ``"actor"`` or ``"critic"``
    :param patterns: shell-style patterns of layer names, e.g. ``["mlp_extractor.policy_net.*", "action_net"]``;
        ``None``: the hidden layers, heads stay dense
    :return: the layers by name
    :raises ValueError: for an unknown target, or when no layer is left
    """
    if target not in TARGETS:
        raise ValueError(f"targets: {target!r} is unknown; known: {', '.join(TARGETS)}")
    check_patterns(patterns)
    layers = _all_layers(policy)[target]
    kept = {name: layer for name, layer in layers.items() if _matches(name, patterns)}
    if not kept:
        argument = "targets" if patterns is None else "layers"
        what = "hidden layer" if patterns is None else f"layer that matches {list(patterns)!r}"
        raise ValueError(f"{argument}: the {target} has no {what}; its linear layers: {', '.join(layers)}")
    return kept


def check_patterns(patterns: Sequence[str] | None) -> None:
    """:raises ValueError: for a string in place of a list of patterns, which would match letter by letter"""
    if isinstance(patterns, str) or not (patterns is None or all(isinstance(pattern, str) for pattern in patterns)):
        raise ValueError(f"layers must be a list of patterns such as ['*policy_net*'], or None; got {patterns!r}")


def _matches(name: str, patterns: Sequence[str] | None) -> bool:
    if patterns is None:
        return name.startswith("mlp_extractor.")
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def prune_layers(masks: WeightMasks, layers: Layers, sparsity: float, score: Score, distribution: str) -> None:
    """
    Prune layers, taken together, to a sparsity: ``round(sparsity * n)`` of their ``n`` weights are zero afterwards.

    What is pruned stays pruned: a sparsity below the present one changes nothing. Ties are broken.

    :param masks: the policy's masks
    :param layers: the layers by name
    :param sparsity: share of the layers' weights that are zero afterwards
    :param score: ranks the weights
    :param distribution: ``"uniform"``, ``"erk"`` or ``"global"``
    """
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    n_pruned = round(sparsity * sum(sizes.values()))
    if n_pruned <= masks.n_pruned(layers):
        return
    if sum(sizes.values()) - n_pruned < len(layers):
        raise ValueError(
            f"sparsity={sparsity} leaves {len(layers)} layers of {sum(sizes.values())} weights fewer than one weight each"
        )
    scores = {name: _scores(masks, name, layer, score) for name, layer in layers.items()}
    if DISTRIBUTIONS[distribution] is None:
        masks.prune(_lowest_together(scores, n_pruned - masks.n_pruned(layers)))
    else:
        shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
        alive = {name: size - masks.n_pruned([name]) for name, size in sizes.items()}
        keep = share(distribution, shapes, alive, sum(sizes.values()) - n_pruned)
        masks.prune({name: _lowest(scores[name], alive[name] - keep[name]) for name in layers if alive[name] > keep[name]})


def _scores(masks: WeightMasks, name: str, layer: nn.Linear, score: Score) -> th.Tensor:
    values = score(name, layer.weight).to(th.float64)
    if bool(values.isnan().any()):
        raise ValueError(f"scores: the score of {name} is NaN: training has diverged")
    return values.masked_fill(masks.pruned[name], th.inf) if name in masks.pruned else values  # not to be chosen again


def _lowest(scores: th.Tensor, count: int) -> th.Tensor:
    lowest = th.zeros(scores.numel(), dtype=th.bool, device=scores.device)
    lowest[th.topk(scores.flatten(), count, largest=False, sorted=False).indices] = True
    return lowest.view(scores.shape)


def _lowest_together(scores: Mapping[str, th.Tensor], count: int) -> dict[str, th.Tensor]:
    kept = {name: _spare_best(values) for name, values in scores.items()}
    flat = _lowest(th.cat([values.flatten() for values in kept.values()]), count)
    parts = flat.split([values.numel() for values in scores.values()])
    return {name: part.view(values.shape) for (name, values), part in zip(scores.items(), parts, strict=True)}


def _spare_best(scores: th.Tensor) -> th.Tensor:
    """The best weight of a layer is never pruned: a layer with none would cut the network in two."""
    spared = scores.flatten().clone()
    spared[spared.masked_fill(spared == th.inf, -th.inf).argmax()] = th.inf
    return spared.view(scores.shape)


def prune_policy(
    model: Any,
    sparsity: float,
    scores: str | Score = "magnitude",
    distribution: str = "erk",
    targets: Sequence[str] = ("actor",),
    layers: Sequence[str] | None = None,
) -> None:
    """
    Prune a policy in place, once: what an audit does to copies of an agent trained without this package.

    :param model: an SB3 algorithm (PPO, A2C, TRPO) or its policy
    :param sparsity: share of zeros in the pruned layers of each target, in [0, 1); what is pruned already stays so
    :param scores: as :class:`PruningCallback`; a score that needs gradients is refused, there are none
    :param distribution: as :class:`PruningCallback`
    :param targets: as :class:`PruningCallback`
    :param layers: as :class:`PruningCallback`
    :raises ValueError: for a sparsity outside [0, 1) or an unknown name
    """
    check_sparsity(sparsity)
    check_distribution(distribution)
    policy = policy_of(model)
    score = make_score(scores)
    chosen_layers = [target_layers(policy, target, layers) for target in check_targets(targets)]
    masks = weight_masks(policy)
    for chosen in chosen_layers:
        prune_layers(masks, chosen, sparsity, score, distribution)


def check_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """:raises ValueError: unless it is a sequence of ``"actor"`` and ``"critic"``, each at most once, not empty"""
    is_sequence = isinstance(targets, Sequence) and not isinstance(targets, str)
    if not is_sequence or not targets or len(set(targets)) != len(targets) or set(targets) - set(TARGETS):
        raise ValueError(f"targets must name {' and/or '.join(map(repr, TARGETS))}, as in ('actor',); got {targets!r}")
    return tuple(targets)


def sparsity(model: Any) -> dict[str, Any]:
    """
    The share of weights that are exactly zero.

    :param model: an SB3 algorithm (PPO, A2C, TRPO) or its policy
    :return: ``"actor"`` and ``"critic"``: of their hidden layers; ``"total"``: of all weight matrices; ``"layers"``: of each
        linear layer, by name
    """
    policy = policy_of(model)
    targets = {target: _hidden(layers) for target, layers in _all_layers(policy).items()}
    matrices = [p for name, p in policy.named_parameters() if p.ndim >= 2 and name.endswith("weight")]  # not gSDE's log_std
    layers = {name: _share([module.weight]) for name, module in policy.named_modules() if isinstance(module, nn.Linear)}
    return {**{target: _share(weights) for target, weights in targets.items()}, "total": _share(matrices), "layers": layers}


def _hidden(layers: Layers) -> list[th.Tensor]:
    return [layer.weight for name, layer in layers.items() if name.startswith("mlp_extractor.")]


def _share(weights: Sequence[th.Tensor]) -> float:
    n_weights = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / n_weights if n_weights else 0.0
