"""Pruning the layers of a policy to a given sparsity, to the single weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch as th

from sb3_prune_robust.anatomy import Anatomy, anatomy
from sb3_prune_robust.layers import WeightMasks, weight_masks
from sb3_prune_robust.pruning.distributions import DISTRIBUTIONS, check_distribution, share
from sb3_prune_robust.pruning.registry import make_score
from sb3_prune_robust.pruning.schedules import check_sparsity
from sb3_prune_robust.pruning.scores import Score

TARGETS = ("actor", "critic")

#: weights to prune, by the name of their layer
Layers = dict[str, th.Tensor]


def policy_of(model: Any) -> Any:
    """The policy of an SB3 algorithm, or the policy itself."""
    return getattr(model, "policy", model)


def target_layers(policy: Any, target: str, patterns: Sequence[str] | None = None) -> Layers:
    """
    The layers of the actor or the critic that are pruned.

    :param policy: a policy of an algorithm of SB3 or sb3-contrib
    :param target: ``"actor"`` (of DQN and QRDQN the network of the values, which acts) or ``"critic"``
    :param patterns: shell-style patterns of layer names, e.g. ``["mlp_extractor.policy_net.*", "action_net"]``;
        ``None``: the hidden layers: heads and LSTMs stay dense
    :return: their weights by name
    :raises ValueError: for an unknown target, one that the policy does not have, or when no layer is left
    :raises TypeError: for a policy whose layers are not known
    """
    if target not in TARGETS:
        raise ValueError(f"targets: {target!r} is unknown; known: {', '.join(TARGETS)}")
    check_patterns(patterns)
    parts = anatomy(policy)
    layers = parts.part(target)
    _check_has(policy, parts, target)
    kept = parts.hidden(target) if patterns is None else {name: w for name, w in layers.items() if _matches(name, patterns)}
    if not kept:
        argument = "targets" if patterns is None else "layers"
        what = "hidden layer" if patterns is None else f"layer that matches {list(patterns)!r}"
        raise ValueError(f"{argument}: the {target} has no {what}; its layers: {', '.join(layers)}")
    return kept


def _check_has(policy: Any, parts: Anatomy, target: str) -> None:
    if not parts.part(target):
        why = "its one network acts by the values it gives" if parts.is_value_network else "it has no gradients"
        raise ValueError(f"targets: a {type(policy).__name__} has no critic beside its actor: {why}; use targets=('actor',)")


def check_patterns(patterns: Sequence[str] | None) -> None:
    """:raises ValueError: for a string in place of a list of patterns, which would match letter by letter"""
    if isinstance(patterns, str) or not (patterns is None or all(isinstance(pattern, str) for pattern in patterns)):
        raise ValueError(f"layers must be a list of patterns such as ['*policy_net*'], or None; got {patterns!r}")


def _matches(name: str, patterns: Sequence[str]) -> bool:
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
    sizes = {name: weight.numel() for name, weight in layers.items()}
    n_pruned = round(sparsity * sum(sizes.values()))
    if n_pruned <= masks.n_pruned(layers):
        return
    check_leaves_weights(layers, sparsity)
    score.look()
    scores = {name: _scores(masks, name, weight, score) for name, weight in layers.items()}
    if DISTRIBUTIONS[distribution] is None:
        masks.prune(_lowest_together(scores, n_pruned - masks.n_pruned(layers)))
    else:
        shapes = {name: tuple(weight.shape) for name, weight in layers.items()}
        alive = {name: size - masks.n_pruned([name]) for name, size in sizes.items()}
        keep = share(distribution, shapes, alive, sum(sizes.values()) - n_pruned)
        masks.prune({name: _lowest(scores[name], alive[name] - keep[name]) for name in layers if alive[name] > keep[name]})


def check_leaves_weights(layers: Layers, sparsity: float, argument: str = "sparsity") -> None:
    """:raises ValueError: for a sparsity at which not every layer can have a weight left"""
    n_weights = sum(weight.numel() for weight in layers.values())
    if n_weights - round(sparsity * n_weights) < len(layers):
        raise ValueError(
            f"{argument}={sparsity} leaves {len(layers)} layers of {n_weights} weights fewer than one weight each"
        )


def _scores(masks: WeightMasks, name: str, weight: th.Tensor, score: Score) -> th.Tensor:
    values = score(name, weight).to(th.float64)
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
    observations: Any = None,
) -> None:
    """
    Prune a policy in place, once: what an audit does to copies of an agent trained without this package.

    The zeros stay while the policy learns on, except for ARS: further training of it starts from the weights that it keeps
    beside its policy. Once it was loaded from a file or copied, a policy of SB3's own needs :class:`PruningCallback` for that.

    :param model: an algorithm of SB3 or sb3-contrib, or its policy
    :param sparsity: share of zeros in the pruned layers of each target, in [0, 1); what is pruned already stays so
    :param scores: as :class:`PruningCallback`; a score that needs gradients is refused, there are none
    :param distribution: as :class:`PruningCallback`
    :param targets: as :class:`PruningCallback`
    :param layers: as :class:`PruningCallback`
    :param observations: states that the policy visits, as it receives them, shape ``(n, *obs_shape)``; for scores that look at
        states, which then prune in :attr:`~Score.rounds`
    :raises ValueError: for a sparsity outside [0, 1), an unknown name, or a score that lacks states or does
        not cover the layers
    :raises TypeError: for a policy whose layers are not known
    """
    check_sparsity(sparsity)
    check_distribution(distribution)
    policy = policy_of(model)
    score = make_score(scores)
    chosen_layers = [target_layers(policy, target, layers) for target in check_targets(targets)]
    masks = weight_masks(policy)
    score.check(policy, [name for chosen in chosen_layers for name in chosen])
    score.prepare(policy, observations)
    for chosen in chosen_layers:
        present = masks.n_pruned(chosen) / sum(weight.numel() for weight in chosen.values())
        for done in range(1, score.rounds + 1):
            goal = sparsity if done == score.rounds else present + (sparsity - present) * done / score.rounds
            prune_layers(masks, chosen, goal, score, distribution)


def check_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """:raises ValueError: unless it is a sequence of ``"actor"`` and ``"critic"``, each at most once, not empty"""
    is_sequence = isinstance(targets, Sequence) and not isinstance(targets, str)
    if not is_sequence or not targets or len(set(targets)) != len(targets) or set(targets) - set(TARGETS):
        raise ValueError(f"targets must name {' and/or '.join(map(repr, TARGETS))}, as in ('actor',); got {targets!r}")
    return tuple(targets)


def sparsity(model: Any) -> dict[str, Any]:
    """
    The share of weights that are exactly zero.

    :param model: an algorithm of SB3 or sb3-contrib, or its policy
    :return: ``"actor"`` and ``"critic"``: of their hidden layers (DQN, QRDQN: the one network's, for both; ARS, without a
        critic: 0.0 for it); ``"total"``: of all weight matrices, of convolutions and LSTMs too, target networks aside;
        ``"layers"``: of each layer, by name
    :raises TypeError: for a policy whose layers are not known
    """
    policy = policy_of(model)
    parts = anatomy(policy)
    hidden = {target: list(parts.hidden("actor" if parts.is_value_network else target).values()) for target in TARGETS}
    layers = {name: _share([weight]) for name, weight in parts.weights.items()}
    return {
        **{target: _share(weights) for target, weights in hidden.items()},
        "total": _share(_matrices(policy)),
        "layers": layers,
    }


def _matrices(policy: Any) -> list[th.Tensor]:
    """Of the whole policy, those of modules of other people's too: not gSDE's log_std, no target network."""
    return [
        parameter
        for name, parameter in policy.named_parameters()
        if parameter.ndim >= 2
        and name.rpartition(".")[2].startswith("weight")
        and not name.partition(".")[0].endswith("_target")
    ]


def _share(weights: Sequence[th.Tensor]) -> float:
    n_weights = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / n_weights if n_weights else 0.0
