"""Best models that are as sparse as the final one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    EventCallback,
    StopTrainingOnNoModelImprovement,
)


class BestModels:
    """
    Sees to it that the ``best_model.zip`` of each ``EvalCallback`` is no less pruned than the final model.

    A dense policy often scores higher than the pruned one that it becomes, and would stay the best model for ever. When
    pruning is complete the best mean reward is forgotten, and the pruned model evaluated once, so that it takes the place.

    :param callback: what ``learn()`` was given: an ``EvalCallback`` (or an heir of it) is found in lists and in the callbacks
        of events; those that never evaluate (``eval_freq`` of 0 or less) or keep no best model are left alone
    """

    def __init__(self, callback: BaseCallback | None) -> None:
        self._callbacks = {id(found): found for found in _eval_callbacks(callback) if _keeps_best(found)}
        self._pending: list[EvalCallback] = []

    def forget(self) -> None:
        """Pruning is complete: no mean reward of before counts."""
        self._pending = list(self._callbacks.values())
        for callback in self._pending:
            callback.best_mean_reward = -math.inf
            if isinstance(callback.callback, StopTrainingOnNoModelImprovement):
                callback.callback.last_best_mean_reward = -math.inf  # the pruned model is no failure to improve

    def evaluate(self, model: Any) -> bool:
        """
        Evaluate where it is due since :meth:`forget`, and has not happened by itself.

        :param model: the algorithm that learns
        :return: whether training goes on
        """
        goes_on = True
        while self._pending:
            callback = self._pending.pop()
            if callback.best_mean_reward == -math.inf:
                goes_on = _evaluate(callback, model) and goes_on
        return goes_on


def _keeps_best(callback: EvalCallback) -> bool:
    """Not those of Optuna's trials, whose reports would be one more than asked for."""
    keeps = callback.best_model_save_path is not None or callback.callback is not None
    return callback.eval_freq > 0 and keeps and not hasattr(callback, "trial")


def _eval_callbacks(callback: BaseCallback | None) -> Iterator[EvalCallback]:
    if isinstance(callback, EvalCallback):
        yield callback
    if isinstance(callback, CallbackList):
        for one in callback.callbacks:
            yield from _eval_callbacks(one)
    elif isinstance(callback, EventCallback):
        yield from _eval_callbacks(callback.callback)


def _evaluate(callback: EvalCallback, model: Any) -> bool:
    frequency, callback.eval_freq = callback.eval_freq, 1  # due whatever the number of calls, which stays as it is
    callback.num_timesteps = model.num_timesteps  # one step behind if its turn comes after ours
    try:
        return callback._on_step()
    finally:
        callback.eval_freq = frequency
