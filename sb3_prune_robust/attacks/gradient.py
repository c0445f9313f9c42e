"""Attacks that follow the gradient of an objective: FGSM, PGD, MAD (strong and as in the references), critic."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.attacks.balls import Ball
from sb3_prune_robust.attacks.base import Array, Attack
from sb3_prune_robust.attacks.engines import NetworkReader, Objective
from sb3_prune_robust.attacks.objectives import (
    ENGINES,
    OBJECTIVES,
    ObjectiveFunction,
    analytic_objective,
    autograd_objective,
)
from sb3_prune_robust.network import UnsupportedNetworkError


class GradientAttack(Attack):
    """
    An attack on a differentiable objective.

    :param objective: what to maximise: ``"mad"``, the divergence of the policy's actions (KL for a victim that samples; for
        one that does not, squared difference of means, or margin of the most likely choice); ``"action-difference"``, the
        same as the reference implementations scale it; ``"critic"``, minus the value of the perturbed observation; or a
        function of (policy, true observations, perturbed observations) giving one value per row, in torch
    :param engine: ``"analytic"`` for plain MLPs, ``"autograd"`` for any policy that attacks cover, or ``"auto"``: the
        first that applies
    """

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        *,
        objective: str | ObjectiveFunction = "mad",
        engine: str = "auto",
    ) -> None:
        super().__init__(eps, norm, mask, seed, deterministic)
        if not callable(objective) and objective not in OBJECTIVES:
            raise ValueError(f"objective={objective!r} is not known; choose one of {list(OBJECTIVES)} or give a function")
        if engine not in ENGINES:
            raise ValueError(f"engine={engine!r} is not known; choose one of {list(ENGINES)}")
        if callable(objective) and engine == "analytic":
            raise ValueError("engine='analytic' knows named objectives only; use engine='auto' with a function")
        self.objective = objective
        self.engine = engine
        self._reader = NetworkReader()

    def objective_on(self, policy: Any, clean: Array) -> Objective:
        """
        The objective for a batch of true observations.

        :param policy: the victim's policy
        :param clean: true observations, flattened to ``(n, d)``
        :raises UnsupportedNetworkError: if the engine does not cover the policy
        """
        if callable(self.objective) or self.engine == "autograd":
            return autograd_objective(policy, clean, self.objective, self.deterministic)
        try:
            return analytic_objective(policy, clean, self.objective, self.deterministic, self._reader)
        except UnsupportedNetworkError:
            if self.engine == "analytic":
                raise
            return autograd_objective(policy, clean, self.objective, self.deterministic)


class PGD(GradientAttack):
    """
    Projected gradient ascent (Madry et al. 2018) with restarts, the best point of all kept for each observation.

    The first search starts at the true observation, unless the objective is flat there; the others at random points of the
    ball. Restarts run side by side in one batch. Other arguments as in :class:`GradientAttack`.

    :param steps: gradient steps of each search
    :param restarts: number of searches
    :param step_size: length of the first step as a fraction of ``eps``; the others fall in a line towards 0, so that a search
        that jumps to and fro across a maximum settles
    """

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        *,
        objective: str | ObjectiveFunction = "mad",
        steps: int = 10,
        restarts: int = 10,
        step_size: float = 0.5,
        engine: str = "auto",
    ) -> None:
        super().__init__(eps, norm, mask, seed, deterministic, objective=objective, engine=engine)
        self.steps = check_count("steps", steps)
        self.restarts = check_count("restarts", restarts)
        if not 0 < step_size < np.inf:
            raise ValueError(f"step_size={step_size!r} must be positive and finite, a fraction of eps")
        self.step_size = step_size

    def perturb(self, policy: Any, ball: Ball) -> Array:
        balls = ball.repeat(self.restarts)
        objective = self.objective_on(policy, balls.center)
        points = balls.random(self._rng)
        if not objective.flat_at_center:
            points[: len(ball.center)] = ball.center
        visited, values = [], []
        for i in range(self.steps):
            value, gradient = objective.value_and_gradient(points)
            visited.append(points)
            values.append(value)
            points = balls.step(points, gradient, self.step_size * (1 - i / self.steps))
        visited.append(points)
        values.append(objective.value(points))
        return _best(visited, values, len(ball.center))


def _best(visited: list[Array], values: list[Array], n: int) -> Array:
    """
    The point of the highest value for each of ``n`` observations, over all steps and restarts.

    Of values that differ by rounding alone (1e-5 of what the search gained) the latest counts, so that the choice does not
    hang on the last bit of a search that has converged.
    """
    table = np.array(values).reshape(-1, n)
    highest = table.max(axis=0)
    if not np.isfinite(highest).all():
        raise ValueError("the attack's objective is NaN or infinite; are the policy's weights finite?")
    close = table >= highest - 1e-5 * (highest - table.min(axis=0))
    best = len(table) - 1 - close[::-1].argmax(axis=0)
    return np.array(visited).reshape(-1, n, visited[0].shape[1])[best, np.arange(n)]


class MAD(PGD):
    """
    Maximal action difference (Zhang et al. 2020, section 3.5) in its strong form: PGD with restarts, the best point kept.

    For a Gaussian victim that samples, ``KL = sum(((mu(s_hat) - mu(s)) / sigma)^2) / 2``; for one that plays its mean, the
    squared difference of means in action units, before clipping (clipped, the gradient would vanish where the mean is beyond
    the action box). Categorical: KL, or the margin of the most likely choice; MultiDiscrete: their sum. Arguments as in
    :class:`PGD`.
    """

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        *,
        steps: int = 10,
        restarts: int = 10,
        step_size: float = 0.5,
        engine: str = "auto",
    ) -> None:
        settings: dict[str, Any] = dict(steps=steps, restarts=restarts, step_size=step_size, engine=engine)
        super().__init__(eps, norm, mask, seed, deterministic, objective="mad", **settings)


class CriticAttack(PGD):
    """
    The observation that the policy's own value function likes least (Pattanaik et al. 2018), by :class:`PGD`.

    The value function takes no part in acting, so this can be far weaker than :class:`MAD`. Arguments as in :class:`PGD`.
    """

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        *,
        steps: int = 10,
        restarts: int = 10,
        step_size: float = 0.5,
        engine: str = "auto",
    ) -> None:
        settings: dict[str, Any] = dict(steps=steps, restarts=restarts, step_size=step_size, engine=engine)
        super().__init__(eps, norm, mask, seed, deterministic, objective="critic", **settings)


class FGSM(GradientAttack):
    """
    One full step from the true observation (Goodfellow et al. 2015).

    The gradient is taken at the true observation, or at a random point of the ball where the objective is flat there, as
    every divergence is. Arguments as in :class:`GradientAttack`.
    """

    def perturb(self, policy: Any, ball: Ball) -> Array:
        objective = self.objective_on(policy, ball.center)
        start = ball.random(self._rng) if objective.flat_at_center else ball.center
        _, gradient = objective.value_and_gradient(start)
        return ball.step(ball.center, gradient, 1.0)


class SGLDMAD(GradientAttack):
    """
    MAD as the reference implementations run it (SA_PPO, ATLA_robust_RL): no restarts, the last point taken.

    Starts a step away in a random direction, then ``steps`` steps of ``eps / steps`` along ``g + xi sqrt(2 eps / steps) /
    (i + 2)``, ``xi`` standard normal, ``g`` the gradient of ``sum(((mu(s_hat) - mu(s)) mean(sigma) / sigma)^2)``; in l_inf
    a step is the sign, in l_2 it is normalised (not in the references). Where gradients are small the noise swamps them:
    use :class:`MAD` for the strongest form. Other arguments as in :class:`Attack`.

    :param steps: number of steps
    :param engine: as in :class:`GradientAttack`
    """

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        *,
        steps: int = 10,
        engine: str = "auto",
    ) -> None:
        super().__init__(eps, norm, mask, seed, deterministic, objective="action-difference", engine=engine)
        self.steps = check_count("steps", steps)

    def perturb(self, policy: Any, ball: Ball) -> Array:
        objective = self.objective_on(policy, ball.center)
        scale = np.sqrt(2.0 * ball.eps / self.steps)
        points = ball.step(ball.center, self._rng.standard_normal(ball.center.shape), 1.0 / self.steps)
        for i in range(self.steps):
            _, gradient = objective.value_and_gradient(points)
            noise = scale / (i + 2) * self._rng.standard_normal(ball.center.shape)
            points = ball.step(points, gradient + noise, 1.0 / self.steps)
        return points


def check_count(name: str, value: int) -> int:
    """The value, if it is a whole number of at least 1; else ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    return int(value)
