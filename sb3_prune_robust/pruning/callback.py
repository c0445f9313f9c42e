"""The callback that prunes while an SB3 algorithm learns."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_prune_robust.anatomy import optimizers_of
from sb3_prune_robust.layers import WeightMasks, weight_masks
from sb3_prune_robust.pruning.best import BestModels
from sb3_prune_robust.pruning.distributions import check_distribution
from sb3_prune_robust.pruning.prune import (
    Layers,
    check_leaves_weights,
    check_patterns,
    check_targets,
    prune_layers,
    sparsity,
    target_layers,
)
from sb3_prune_robust.pruning.registry import make_score
from sb3_prune_robust.pruning.schedules import OneShotSchedule, Schedule, make_schedule
from sb3_prune_robust.pruning.scores import Score

Probe = Callable[[Any], Any]

# Off-policy algorithms start a rollout as often as every step of the environment: pruned is what makes this share of the
# final sparsity, or the rest of it when the schedule has ended.
SMALLEST_PRUNE = 0.005

# Scores that look at states are given at least so many of the latest, if there have been as many.
LATEST_STATES = 2048


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
    Prunes a policy during ``learn()``, ours or any other of PPO, A2C, TRPO, RecurrentPPO, MaskablePPO, SAC, TD3, DDPG, DQN,
    TQC, QRDQN or CrossQ: its linear layers and convolutions, and on request (``layers=["lstm_*"]``) the weights of LSTMs.

    Masks change between rollouts (``schedule="micro"``: after each step of the optimiser that steps the weights). Pruned
    weights are exactly zero from then on, after every optimiser step and in target networks, and never return; nothing is
    stored beside them, so a saved model is a plain SB3 model. Micro-pruning here means: the linear ramp followed at every
    optimiser step, a sliver of weights at a time. What the schedule still asks for when training ends is pruned then.

    Progress is ``num_timesteps`` over all timesteps: with ``reset_num_timesteps=False`` those trained before count, and a ramp
    that lies behind is pruned at once, with a warning.

    After ``load`` or ``copy.deepcopy`` SB3's own policies know nothing of their zeros: give ``learn()`` a callback again,
    which takes them up (one with ``final_sparsity=0`` keeps them and prunes no more). Policies of this package keep them.

    Off-policy algorithms start a rollout every ``train_freq`` steps. There, a prune waits until it is 0.5 % of the final
    sparsity or the schedule has ended. Progress counts from the first step, not from ``learning_starts``.

    An ``EvalCallback`` that runs beside it forgets its best mean reward when the final sparsity is reached, and evaluates once
    more than it would: its ``best_model.zip`` is then never less pruned than the final model.

    Logged: ``prune/target`` and ``prune/sparsity`` (of the pruned layers; ``prune/actor``, ``prune/critic`` of each target's),
    ``prune/total_sparsity`` (of all weight matrices),
    ``prune/mask_updates``, and the sparsity of each pruned layer under ``prune/<layer>``.

    :param final_sparsity: share of zeros in the pruned layers at the end, in [0, 1); or one a target,
        e.g. ``{"actor": 0.9, "critic": 0.5}``
    :param schedule: ``"one_shot"``, ``"polynomial"`` (cubic, Zhu & Gupta 2017), ``"linear"``, ``"periodic"``,
        ``"constant"`` or ``"micro"``
    :param scores: ``"magnitude"``, ``"random"``, ``"saliency"`` (``|w g|``), ``"movement"``, ``"unit"`` (whole units, for
        networks that are made smaller afterwards), ``"divergence"``, ``"path"``, ``"radius"`` (by what a weight does for the
        policy at the latest states, against what it adds to a bound on attacks:
        :mod:`~sb3_prune_robust.pruning.robust_scores`), or a :class:`Score`. One that needs gradients or states prunes only
        once it has seen some
    :param distribution: how the sparsity is shared over the layers of a target: ``"uniform"``, ``"erk"`` or ``"global"``
    :param start: progress at which pruning starts, in [0, 1)
    :param end: progress at which it is complete, in (start, 1]
    :param targets: ``"actor"`` and/or ``"critic"``; the network of DQN and QRDQN, which acts, is the actor. A features
        extractor that both use is the actor's
    :param layers: shell-style patterns of the names of the layers to prune; ``None``: the hidden layers: heads and
        LSTMs stay dense
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
        self._is_learning = False

    evaluates_at_end = True  # other callbacks must not take apart what an EvalCallback needs before this one's end

    def _check_place(self) -> None:
        if self.parent is not None:
            raise ValueError(
                f"PruningCallback was given to {type(self.parent).__name__}, which does not tell it when rollouts start; "
                "give it to learn() itself, in a list with the other"
            )

    def _init_callback(self) -> None:
        self._is_learning = False
        self._check_place()
        policy = self.model.policy
        if not optimizers_of(policy):
            raise TypeError(
                f"PruningCallback cannot prune the {type(policy).__name__} while it learns: it has no optimiser; ARS perturbs "
                "all weights at every step, so zeros would not stay. Use prune_policy(model, ...) after training"
            )
        self._layers: dict[str, Layers] = {t: target_layers(policy, t, self.patterns) for t in self.schedules}
        for target, layers in self._layers.items():
            check_leaves_weights(layers, self.schedules[target].final_sparsity, "final_sparsity")
        self._sizes = {target: sum(weight.numel() for weight in layers.values()) for target, layers in self._layers.items()}
        self.score.check(policy, [name for layers in self._layers.values() for name in layers])
        self._masks: WeightMasks = weight_masks(policy)
        self._masks.rearm()  # a policy that is not ours was pruned before and loaded since
        self._logged = -1
        if self.model is not self._known_model:  # what was seen of another model says nothing of this one
            self._known_model, self.n_mask_updates = self.model, 0
            self._observed: set[str] = set()
            self._states: deque[Any] = deque(maxlen=-(-LATEST_STATES // self.model.n_envs))
            self.events.clear()
            self.score.reset(self.model.seed or 0)

    def _on_training_start(self) -> None:
        self._check_place()  # once more: a list tells its members late
        self._unhook()  # a learn() that ended in an exception left them
        for optimizer, targets in self._optimizers():
            if self.score.needs_gradient:
                self._handles.append(optimizer.register_step_pre_hook(partial(self._observe, targets)))
            if self._every_step:
                self._handles.append(optimizer.register_step_post_hook(partial(self._micro_prune, targets)))
        self._best_models = BestModels(self.locals.get("callback"))
        self._off_policy = isinstance(self.model, OffPolicyAlgorithm)
        self._window = (0.0, 0.0)
        self._reached = 0.0
        self._steps = dict.fromkeys(self.schedules, 0.0)
        self._warn_if_late()
        self._is_learning = True

    def _optimizers(self) -> list[tuple[th.optim.Optimizer, list[str]]]:
        """Each optimiser, with the targets whose weights it steps."""
        optimizers = optimizers_of(self.model.policy)
        distinct = {id(optimizers[target]): optimizers[target] for target in self.schedules}
        return [(one, [t for t in self.schedules if optimizers[t] is one]) for one in distinct.values()]

    @property
    def _every_step(self) -> bool:
        return any(schedule.every_step for schedule in self.schedules.values())

    def _observe(self, targets: Sequence[str], *_: Any) -> None:
        # At the step of their own optimiser only: SAC's actor loss, say, leaves a gradient in the critic's weights as well.
        for target in targets:
            for name, weight in self._layers[target].items():
                self.score.observe(name, weight)
        self._observed.update(targets)

    def _progress(self) -> float:
        # SB3's _current_progress_remaining is stale when a run continues.
        return min(self.model.num_timesteps / max(self.model._total_timesteps, 1), 1.0)

    def _on_rollout_start(self) -> None:
        # With micro-pruning, what is left of the last update's slivers: all but nothing, unless it was stopped early.
        self._start = self.model.num_timesteps
        self._prune(self._progress(), self.schedules, SMALLEST_PRUNE if self._off_policy else 0.0)
        self._log()

    def _on_rollout_end(self) -> None:
        self._window = (self._reached, self._progress())
        self._steps = dict.fromkeys(self.schedules, 0.0)

    def _micro_prune(self, targets: Sequence[str], *_: Any) -> None:
        begin, end = self._window
        for target in targets:
            self._steps[target] += 1 / self._steps_per_update(target)
        self._prune(begin + (end - begin) * min(self._steps[targets[0]], 1.0), targets)

    def _steps_per_update(self, target: str) -> float:
        """
        Steps of a target's optimiser in one ``train()``: PPO's epochs or TRPO's critic updates over minibatches; one for A2C.

        Off-policy the gradient steps, of an actor that is stepped less often its share of them.
        """
        model: Any = self.model
        if self._off_policy:
            steps = model.gradient_steps if model.gradient_steps >= 0 else model.num_timesteps - self._start
            return max(steps / (getattr(model, "policy_delay", 1) if target == "actor" else 1), 1.0)
        epochs = getattr(model, "n_epochs", getattr(model, "n_critic_updates", 1))
        n_samples = model.n_steps * model.n_envs
        return float(epochs * math.ceil(n_samples / getattr(model, "batch_size", n_samples)))

    def _on_step(self) -> bool:
        if self.score.needs_states:
            self._states.append(np.array(self.model._last_obs))  # as the policy received it
        return self._best_models.evaluate(self.model)

    def _on_training_end(self) -> None:
        # The zoo says so once more, and also of a training that an error kept from starting, which would hide that error.
        if not self._is_learning:
            return
        self._is_learning = False
        n_before = self.n_mask_updates
        self._prune(self._progress(), self.schedules)
        self._warn_if_incomplete()
        self._unhook()
        if self.n_mask_updates > n_before:  # SB3 logs no more
            self._log()
            self.logger.dump(self.num_timesteps)
        self._best_models.evaluate(self.model)

    def _warn_if_late(self) -> None:
        """Training that goes on (``reset_num_timesteps=False``) past most of a ramp that it has not followed."""
        progress = self._progress()
        for target, schedule in self.schedules.items():
            jump = schedule(progress) - max(schedule(0.0), self._share(target))
            if jump > schedule.final_sparsity / 2 and not isinstance(schedule, OneShotSchedule):
                warnings.warn(
                    f"PruningCallback: training starts at {progress:.2f} of all timesteps (reset_num_timesteps=False), where "
                    f"the schedule prunes the {target} from {self._share(target):.4f} to {schedule(progress):.4f} at once; "
                    "start and end are shares of all timesteps, those before included",
                    stacklevel=2,
                )

    def _warn_if_incomplete(self) -> None:
        """A score that needs gradients, in a training that took no step: the model is not what was asked for."""
        progress = self._progress()
        missed = [t for t, schedule in self.schedules.items() if progress >= schedule.end and not self._is_complete(t)]
        if missed:
            warnings.warn(
                f"PruningCallback: the {missed[0]} was pruned to {self._share(missed[0]):.4f} only, not to "
                f"{self.schedules[missed[0]].final_sparsity}: scores need gradients, and its optimiser took no step in time",
                stacklevel=2,
            )

    def _unhook(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    @th.no_grad()
    def _prune(self, progress: float, targets: Iterable[str], smallest: float = 0.0) -> None:
        self._reached = progress
        due = [target for target in targets if self._is_due(target, progress, smallest)]
        if not due:
            return
        before = self._look()
        self.score.prepare(self.model.policy, np.concatenate(self._states) if self._states else None)
        for target in due:
            prune_layers(self._masks, self._layers[target], self.schedules[target](progress), self.score, self.distribution)
        self.n_mask_updates += 1
        self.events.append(PruneEvent(self.model.num_timesteps, self._sparsity(), before, self._look()))
        if self.verbose >= 1:
            print(f"Pruned to a sparsity of {self.events[-1].sparsity:.4f} at {self.model.num_timesteps} timesteps")
        if all(map(self._is_complete, self.schedules)):
            self._best_models.forget()

    def _is_due(self, target: str, progress: float, smallest: float = 0.0) -> bool:
        if (self.score.needs_gradient and target not in self._observed) or (self.score.needs_states and not self._states):
            return False
        schedule, size = self.schedules[target], self._sizes[target]
        asked, pruned = schedule(progress) * size, self._masks.n_pruned(self._layers[target])
        is_enough = progress >= schedule.end or asked - pruned >= smallest * schedule.final_sparsity * size
        return round(asked) > pruned and is_enough

    def _is_complete(self, target: str) -> bool:
        return self._masks.n_pruned(self._layers[target]) >= round(self.schedules[target](1.0) * self._sizes[target])

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
        return sum(map(self._masks.n_pruned, self._layers.values())) / sum(self._sizes.values())

    def _target(self) -> float:
        """Share of the pruned layers' weights asked for; what is pruned already stays so, and counts."""
        asked = [max(self.schedules[t](self._reached), self._share(t)) * size for t, size in self._sizes.items()]
        return sum(asked) / sum(self._sizes.values())

    def _share(self, target: str) -> float:
        return self._masks.n_pruned(self._layers[target]) / self._sizes[target]

    def _log(self) -> None:
        self.logger.record("prune/target", self._target())
        # Counting zeros takes long beside a step of an environment: once a line of the log, and when a mask has changed.
        if "prune/sparsity" in self.logger.name_to_value and self._logged == self._masks.n_changes:
            return
        self._logged = self._masks.n_changes
        shares = sparsity(self.model.policy)
        self.logger.record("prune/sparsity", self._sparsity())
        self.logger.record("prune/total_sparsity", shares["total"])
        for target in self._layers:
            self.logger.record(f"prune/{target}", self._share(target))
        self.logger.record("prune/mask_updates", self.n_mask_updates)
        for layers in self._layers.values():
            for name in layers:  # long names: SB3's table cuts them, and refuses two that are then alike
                self.logger.record(f"prune/{name}", shares["layers"][name], exclude="stdout")


def _final_sparsities(final_sparsity: float | Mapping[str, float], targets: Sequence[str]) -> dict[str, float]:
    if not isinstance(final_sparsity, Mapping):
        return dict.fromkeys(targets, final_sparsity)
    if set(final_sparsity) != set(targets):
        raise ValueError(f"final_sparsity names {sorted(final_sparsity)}, targets {sorted(targets)}; they must be the same")
    return {target: final_sparsity[target] for target in targets}
