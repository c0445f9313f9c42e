"""Schedules: the sparsity to reach as a function of training progress."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

# Numbers as users give them, numpy's included.
REAL = (int, float, np.integer, np.floating)


@dataclass(frozen=True)
class Schedule(ABC):
    """
    The target sparsity at a share of training: 0 before ``start``, ``final_sparsity`` from ``end`` on, a ramp between.

    :param final_sparsity: share of the weights pruned at the end, in [0, 1)
    :param start: progress (``num_timesteps / total_timesteps``) at which pruning begins, in [0, 1)
    :param end: progress at which it is complete, in (start, 1]
    :raises ValueError: for a sparsity outside [0, 1) or ``start >= end``
    """

    final_sparsity: float
    start: float = 0.2
    end: float = 0.8

    every_step = False  # True: prune at each optimiser step, not only between rollouts

    def __post_init__(self) -> None:
        check_sparsity(self.final_sparsity, "final_sparsity")
        if not all(isinstance(value, REAL) for value in (self.start, self.end)) or not 0 <= self.start < self.end <= 1:
            raise ValueError(f"start and end must satisfy 0 <= start < end <= 1, got start={self.start!r}, end={self.end!r}")

    def __call__(self, progress: float) -> float:
        """
        :param progress: share of training done, in [0, 1]
        :return: the target sparsity
        """
        if progress < self.start:
            return 0.0
        return self.final_sparsity * self.ramp(min((progress - self.start) / (self.end - self.start), 1.0))

    @abstractmethod
    def ramp(self, share: float) -> float:
        """:param share: share of the way from ``start`` to ``end``; :return: share of the final sparsity"""


class OneShotSchedule(Schedule):
    """All at once at ``start``."""

    def ramp(self, share: float) -> float:
        return 1.0


class PolynomialSchedule(Schedule):
    """Cubic: ``1 - (1 - share)^3`` (Zhu & Gupta 2017, equation 1, from an initial sparsity of 0)."""

    def ramp(self, share: float) -> float:
        return 1.0 - (1.0 - share) ** 3


class LinearSchedule(Schedule):
    """In proportion to the share of the way."""

    def ramp(self, share: float) -> float:
        return share


class PeriodicSchedule(Schedule):
    """Ten equal prunes, at constant intervals, the last at ``end``."""

    def ramp(self, share: float) -> float:
        return math.floor(10 * share + 1e-9) / 10


class ConstantSchedule(OneShotSchedule):
    """The final sparsity from the first step to the last, whatever ``start`` and ``end``: sparse from birth."""

    def __call__(self, progress: float) -> float:
        return self.final_sparsity


class MicroSchedule(LinearSchedule):
    """
    Micro-pruning: the linear ramp followed at every optimiser step, so that thousands of prunes remove a sliver each.

    Progress is interpolated within ``train()``, where SB3's ``num_timesteps`` stands still.
    """

    every_step = True


SCHEDULES: dict[str, type[Schedule]] = {
    "one_shot": OneShotSchedule,
    "polynomial": PolynomialSchedule,
    "linear": LinearSchedule,
    "periodic": PeriodicSchedule,
    "constant": ConstantSchedule,
    "micro": MicroSchedule,
}


def check_sparsity(sparsity: object, argument: str = "sparsity") -> None:
    """:raises ValueError: unless it is a number in [0, 1)"""
    if isinstance(sparsity, bool) or not isinstance(sparsity, REAL) or not 0 <= sparsity < 1:
        raise ValueError(f"{argument} must be a number in [0, 1), got {sparsity!r}")


def make_schedule(schedule: str, final_sparsity: float, start: float, end: float) -> Schedule:
    """
    :param schedule: a name of :data:`SCHEDULES`
    :param final_sparsity: as :class:`Schedule`
    :param start: as :class:`Schedule`
    :param end: as :class:`Schedule`
    :return: the schedule
    :raises ValueError: for an unknown name, or as :class:`Schedule`
    """
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is unknown; known: {', '.join(SCHEDULES)}")
    return SCHEDULES[schedule](final_sparsity, start, end)
