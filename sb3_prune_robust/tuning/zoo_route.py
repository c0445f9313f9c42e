"""RL Zoo's own ``-optimize``, with this package's hyperparameters among those that are tuned."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

from sb3_prune_robust.tuning.algorithms import register_algorithms
from sb3_prune_robust.tuning.entries import OURS, PRUNING, as_dict, changed_entry, is_ours, with_lipschitz, with_pruning
from sb3_prune_robust.tuning.space import space_of

# policy_kwargs that a sampler of the zoo must not lose, while a trial of ours is set up. A context variable, as the zoo's
# --n-jobs runs trials in threads. None: a run without anything of ours, which goes its usual way.
_kept: ContextVar[dict[str, Any] | None] = ContextVar("kept", default=None)


def register() -> None:
    """
    Make RL Zoo know this package's algorithms (:func:`~.algorithms.register_algorithms`), and its ``-optimize`` tune
    ``lipschitz``, ``final_sparsity``, ``schedule`` and ``distribution`` beside its own hyperparameters, keep the
    ``policy_kwargs`` that it does not sample, and take them up again with ``--trial-id``.

    Only runs whose policy has a bound or whose callbacks prune are changed. May be called again.
    """
    if getattr(ExperimentManager.objective, "__wrapped__", None) is not None:
        return
    register_algorithms()  # whose samplers are wrapped below
    samplers: dict[str, Any] = HYPERPARAMS_SAMPLER
    converters: dict[str, Any] = HYPERPARAMS_CONVERTER
    manager: Any = ExperimentManager
    for algo in samplers:
        samplers[algo] = _keeping(samplers[algo])
        converters[algo] = _without_ours(converters[algo])
    manager.objective = _objective(manager.objective)
    manager.read_hyperparameters = _reading(manager.read_hyperparameters)


def _objective(original: Callable[[Any, Any], float]) -> Callable[[Any, Any], float]:
    """The zoo's objective, on a copy of its manager that has the sampled callback."""

    @functools.wraps(original)
    def objective(self: Any, trial: Any) -> float:
        hyperparams, callbacks = self._hyperparams, self.specified_callbacks
        space = space_of(hyperparams, callbacks)
        if not space.has_pruning and not is_ours(hyperparams["policy"]):
            return original(self, trial)
        values = space.suggest(trial)
        kept = hyperparams.get("policy_kwargs") or {}
        if "lipschitz" in values:
            kept = with_lipschitz(kept, values["lipschitz"])
        manager = copy.copy(self)
        manager.specified_callbacks = with_pruning(callbacks, {name: values[name] for name in PRUNING if name in values})
        with _keep(kept):
            return original(manager, trial)

    return objective


@contextlib.contextmanager
def _keep(policy_kwargs: dict[str, Any]) -> Iterator[None]:
    token = _kept.set(policy_kwargs)
    try:
        yield
    finally:
        _kept.reset(token)


def _keeping(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A sampler of the zoo that adds to policy_kwargs where it would replace them."""

    @functools.wraps(original)
    def sampler(*args: Any, **kwargs: Any) -> dict[str, Any]:
        sampled, kept = original(*args, **kwargs), _kept.get()
        return sampled if kept is None else {**sampled, "policy_kwargs": {**kept, **sampled.get("policy_kwargs", {})}}

    return sampler


def _without_ours(original: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A converter of the zoo that would hand our parameters on to the algorithm: ours are put in place by ``_reading``."""

    @functools.wraps(original)
    def converter(params: dict[str, Any]) -> dict[str, Any]:
        return original({name: value for name, value in params.items() if name not in OURS})

    return converter


def _reading(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The zoo's reading of an entry, which with ``--trial-id`` would lose the entry's policy_kwargs to the trial's."""

    @functools.wraps(original)
    def read_hyperparameters(self: Any) -> Any:
        if not (self.storage and self.study_name and self.trial_id):
            return original(self)
        params = self.load_trial(self.storage, self.study_name, self.trial_id, convert=False)
        plain = copy.copy(self)
        plain.trial_id = None
        with contextlib.redirect_stdout(io.StringIO()):
            entry, _ = original(plain)
        if not is_ours(entry["policy"]) and not any(name in params for name in OURS):
            return original(self)
        hyperparams, saved = original(self)
        for target in (hyperparams, saved):
            target.update(_merged(entry, target, params))
        told = ", ".join(f"{name}={params[name]}" for name in OURS if name in params)
        print(f"Beside these, of the trial: {told}")
        return hyperparams, saved

    return read_hyperparameters


def _merged(entry: Mapping[str, Any], converted: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = as_dict(entry.get("policy_kwargs"))  # the trial's values are no strings
    ours = changed_entry({**entry, "policy_kwargs": kwargs}, {name: params[name] for name in OURS if name in params})
    ours["policy_kwargs"] = {**ours["policy_kwargs"], **converted.get("policy_kwargs", {})}
    return {key: ours[key] for key in ("policy_kwargs", "callback") if key in ours}
