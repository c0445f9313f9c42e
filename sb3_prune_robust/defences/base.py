"""What all robust training has in common: the ball, how its radius grows, and what is logged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.base_class import BaseAlgorithm

SCHEDULES = ("constant", "linear")


class RobustTraining(BaseAlgorithm):
    """
    Mixed into an SB3 algorithm, before it in the list of bases: arguments that it does not know go on to that algorithm.

    :param eps: radius of the ball in units of the observation that the policy receives (after ``VecNormalize``, where there is
        one): a float, or an array with one radius per observation dimension, 0 where it cannot be attacked
    :param norm: ``"linf"`` or ``"l2"``
    :param eps_schedule: ``"linear"``: from 0 at the start of training to ``eps`` at ``eps_end``; or ``"constant"``
    :param eps_end: share of training that is done when a linear schedule reaches ``eps``, in (0, 1]
    :raises ValueError: for a value outside its range
    """

    def __init__(
        self,
        *args: Any,
        eps: float | npt.ArrayLike = 0.05,
        norm: str = "linf",
        eps_schedule: str = "linear",
        eps_end: float = 0.75,
        **kwargs: Any,
    ) -> None:
        self.eps, self.norm, self.eps_schedule, self.eps_end = eps, norm, eps_schedule, eps_end
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        self._check_arguments()
        super()._setup_model()  # type: ignore[safe-super]  # of the algorithm that this is mixed into

    def _check_arguments(self) -> None:
        """Not in the constructor: ``load`` sets arguments, its own keyword arguments too, past it."""
        check_eps(self.eps)
        check_choice("norm", self.norm, ("linf", "l2"))
        check_choice("eps_schedule", self.eps_schedule, SCHEDULES)
        check_number("eps_end", self.eps_end, lambda value: 0 < value <= 1, "in (0, 1], a share of training")

    if TYPE_CHECKING:  # of the algorithm that this is mixed into

        def train(self, *args: Any, **kwargs: Any) -> None: ...

    @property
    def eps_now(self) -> Any:
        """The radius that is due: ``eps``, or a part of it while a linear schedule rises."""
        share = 1.0 if self.eps_schedule == "constant" else self.share_due
        return self.eps if share == 1.0 else share * np.asarray(self.eps, dtype=np.float64)

    @property
    def share_due(self) -> float:
        """
        The ramp of linear schedules: from 0 at the start of training to 1 at ``eps_end``.

        Training is all that ``learn`` was asked for so far: a second ``learn(n, reset_num_timesteps=False)`` makes it longer,
        so that the share falls back to where it then is, and rises again; one that resets starts at 0.
        """
        return min(1.0, self.num_timesteps / max(self._total_timesteps, 1) / self.eps_end)

    @property
    def is_due(self) -> bool:
        """Whether there is anything to defend against now: a radius above 0 in some dimension."""
        return bool(np.any(np.asarray(self.eps_now) > 0))

    def _log_defence(self, **values: float) -> None:
        """What each defence logs, under ``defence/``, with the radius of the moment."""
        self.logger.record("defence/eps", float(np.max(self.eps_now)))
        for name, value in values.items():
            self.logger.record(f"defence/{name}", value)


def check_eps(eps: Any) -> None:
    """:raises ValueError: unless ``eps`` is a number or an array of numbers, finite and not negative"""
    try:
        array = np.asarray(eps, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if isinstance(eps, str) or array.size == 0 or not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(f"eps must be a number or an array of numbers, finite and >= 0; got {eps!r}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """:raises ValueError: unless ``value`` is one of ``choices``"""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_number(name: str, value: Any, accepts: Callable[[float], bool], accepted: str) -> None:
    """:raises ValueError: unless ``value`` is a finite number that ``accepts``; ``accepted`` says in words which do"""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not accepts(float(value)):
        raise ValueError(f"{name} must be {accepted}; got {value!r}")
