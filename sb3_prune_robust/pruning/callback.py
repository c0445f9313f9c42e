"""The callback that prunes while an SB3 algorithm learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_prune_robust.layers import WeightMasks, weight_masks
from sb3_prune_robust.pruning.distributions import check_distribution
from sb3_prune_robust.pruning.prune import Layers, check_patterns, check_targets, prune_layers, sparsity, target_layers
from sb3_prune_robust.pruning.schedules import Schedule, make_schedule
from sb3_prune_robust.pruning.scores import Score, make_score

Probe = Callable[[Any], Any]


@dataclass(frozen=True)
class PruneEvent:
    """
    One prune.

    :param timestep: ``num_timesteps`` when it happened
    :param sparsity: share of zeros in the pruned layers after it
    :param before: what the probe returned just before, ``None`` without a probe
    :param after: what the probe returned just after
    """

    timestep: int
    sparsity: float
    before: Any
    after: Any


class PruningCallback(BaseCallback):
    """
    Prunes the linear layers of a policy during ``learn()``, ours or any other actor-critic policy (PPO, A2C, TRPO).

    Masks change between rollouts (``schedule="micro"``: after each optimiser step). Pruned weights are exactly zero from then
    on, after every optimiser step, and never return; nothing is stored beside them, so a saved model is a plain SB3 model.
    Micro-pruning here means: the linear ramp followed at every optimiser step, a sliver of weights at a time. What the
    schedule still asks for when training ends is pruned then.

    Logged: ``prune/target`` and ``prune/sparsity`` (of the pruned layers; ``prune/actor``, ``prune/critic`` of each target's),
    ``prune/total_sparsity`` (of all weight matrices),
    ``prune/mask_updates``, and the sparsity of each pruned layer under ``prune/<layer>``.

    :param final_sparsity: share of zeros in the pruned layers at the end, in [0, 1); or one a target,
        e.g. ``{"actor": 0.9, "critic": 0.5}``
    :param schedule: ``"one_shot"``, ``"polynomial"`` (cubic, Zhu & Gupta 2017), ``"linear"``, ``"periodic"``,
        ``"constant"`` or ``"micro"``
    :param scores: ``"magnitude"``, ``"random"``, ``"saliency"`` (``|w g|``), ``"movement"``, or a :class:`Score`. One that
        needs gradients prunes only once it has seen some
    :param distribution: how the sparsity is shared over the layers of a target: ``"uniform"``, ``"erk"`` or ``"global"``
    :param start: progress at which pruning starts, in [0, 1)
    :param end: progress at which it is complete, in (start, 1]
    :param targets: ``"actor"`` and/or ``"critic"``
    :param layers: shell-style patterns of the names of the layers to prune; ``None``: the hidden layers, heads stay dense
    :param probe: called with the policy before and after each prune, for the event log :attr:`events`: a certificate, say
    :param verbose: 1 prints each prune
    :raises ValueError: for a value outside its range or an unknown name
    """

    def __init__(
        self,
        final_sparsity: float | Mapping[str, float],
        schedule: str = "polynomial",
        scores: str | Score = "magnitude",
        distribution: str = "erk",
        start: float = 0.2,
        end: float = 0.8,
        targets: Sequence[str] = ("actor",),
        layers: Sequence[str] | None = None,
        probe: Probe | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_distribution(distribution)
        check_patterns(layers)
        if probe is not None and not callable(probe):
            raise ValueError(f"probe must be a function of the policy, or None; got {probe!r}")
        finals = _final_sparsities(final_sparsity, check_targets(targets))
        self.schedules: dict[str, Schedule] = {
            target: make_schedule(schedule, final, start, end) for target, final in finals.items()
        }
        self.score = make_score(scores)
        self.distribution = distribution
        self.patterns = layers
        self.probe = probe
        self.events: list[PruneEvent] = []
        self.n_mask_updates = 0
        self._handles: list[Any] = []
        self._known_model: Any = None

    def _init_callback(self) -> None:
        self._layers: dict[str, Layers] = {t: target_layers(self.model.policy, t, self.patterns) for t in self.schedules}
        self._masks: WeightMasks = weight_masks(self.model.policy)
        self._masks.rearm()  # a policy that is not ours was pruned before and loaded since
        if self.model is not self._known_model:  # what was seen of another model says nothing of this one
            self._known_model, self._observed, self.n_mask_updates = self.model, False, 0
            self.events.clear()
            self.score.reset(self.model.seed or 0)

    def _on_training_start(self) -> None:
        self._unhook()  # a learn() that ended in an exception left them
        optimizer = self.model.policy.optimizer
        if self.score.needs_gradient:
            self._handles.append(optimizer.register_step_pre_hook(self._observe))
        if self._every_step:
            self._handles.append(optimizer.register_step_post_hook(self._micro_prune))
        self._window = (0.0, 0.0)
        self._reached = self._step = 0.0

    @property
    def _every_step(self) -> bool:
        return any(schedule.every_step for schedule in self.schedules.values())

    def _observe(self, *_: Any) -> None:
        for layers in self._layers.values():
            for name, layer in layers.items():
                self.score.observe(name, layer.weight)
        self._observed = True

    def _progress(self) -> float:
        # SB3's _current_progress_remaining is stale when a run continues.
        return min(self.model.num_timesteps / max(self.model._total_timesteps, 1), 1.0)

    def _on_rollout_start(self) -> None:
        # With micro-pruning, what is left of the last update's slivers: all but nothing, unless it was stopped early.
        self._prune(self._progress())
        self._log()

    def _on_rollout_end(self) -> None:
        self._window = (self._reached, self._progress())
        self._step = 0.0

    def _micro_prune(self, *_: Any) -> None:
        self._step += 1 / self._steps_per_update()
        begin, end = self._window
        self._prune(begin + (end - begin) * min(self._step, 1.0))

    def _steps_per_update(self) -> int:
        """Optimiser steps in one ``train()``: PPO's epochs or TRPO's critic updates over minibatches; one for A2C."""
        model: Any = self.model
        epochs = getattr(model, "n_epochs", getattr(model, "n_critic_updates", 1))
        n_samples = model.n_steps * model.n_envs
        return int(epochs * math.ceil(n_samples / getattr(model, "batch_size", n_samples)))

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        n_before = self.n_mask_updates
        self._prune(self._progress())
        self._unhook()
        if self.n_mask_updates > n_before:  # SB3 logs no more
            self._log()
            self.logger.dump(self.num_timesteps)

    def _unhook(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    @th.no_grad()
    def _prune(self, progress: float) -> None:
        self._reached = progress
        if self.score.needs_gradient and not self._observed:
            return
        if not any(self._is_due(target, progress) for target in self.schedules):
            return
        before = self._look()
        for target, schedule in self.schedules.items():
            prune_layers(self._masks, self._layers[target], schedule(progress), self.score, self.distribution)
        self.n_mask_updates += 1
        self.events.append(PruneEvent(self.model.num_timesteps, self._sparsity(), before, self._look()))
        if self.verbose >= 1:
            print(f"Pruned to a sparsity of {self.events[-1].sparsity:.4f} at {self.model.num_timesteps} timesteps")

    def _is_due(self, target: str, progress: float) -> bool:
        layers = self._layers[target]
        return round(self.schedules[target](progress) * _size(layers)) > self._masks.n_pruned(layers)

    def _look(self) -> Any:
        if self.probe is None:
            return None
        policy = self.model.policy
        was_training = policy.training
        policy.set_training_mode(False)  # as it plays: a Lipschitz policy projects exactly
        result = self.probe(policy)
        policy.set_training_mode(was_training)
        return result

    def _sparsity(self) -> float:
        return sum(map(self._masks.n_pruned, self._layers.values())) / sum(map(_size, self._layers.values()))

    def _target(self) -> float:
        """Share of the pruned layers' weights asked for; what is pruned already stays so, and counts."""
        asked = [max(self.schedules[t](self._reached), self._share(t)) * _size(layers) for t, layers in self._layers.items()]
        return sum(asked) / sum(map(_size, self._layers.values()))

    def _share(self, target: str) -> float:
        return self._masks.n_pruned(self._layers[target]) / _size(self._layers[target])

    def _log(self) -> None:
        shares = sparsity(self.model.policy)
        self.logger.record("prune/target", self._target())
        self.logger.record("prune/sparsity", self._sparsity())
        self.logger.record("prune/total_sparsity", shares["total"])
        for target in self._layers:
            self.logger.record(f"prune/{target}", self._share(target))
        self.logger.record("prune/mask_updates", self.n_mask_updates)
        for layers in self._layers.values():
            for name in layers:  # long names: SB3's table cuts them, and refuses two that are then alike
                self.logger.record(f"prune/{name}", shares["layers"][name], exclude="stdout")


def _size(layers: Layers) -> int:
    return sum(layer.weight.numel() for layer in layers.values())


def _final_sparsities(final_sparsity: float | Mapping[str, float], targets: Sequence[str]) -> dict[str, float]:
    if not isinstance(final_sparsity, Mapping):
        return dict.fromkeys(targets, final_sparsity)
    if set(final_sparsity) != set(targets):
        raise ValueError(f"final_sparsity names {sorted(final_sparsity)}, targets {sorted(targets)}; they must be the same")
    return {target: final_sparsity[target] for target in targets}
