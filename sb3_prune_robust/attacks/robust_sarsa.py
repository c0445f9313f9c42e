"""Robust Sarsa (Zhang et al. 2020): show the victim what makes it do what a learned Q likes least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv

from sb3_prune_robust.attacks.balls import Ball
from sb3_prune_robust.attacks.base import Array, Attack
from sb3_prune_robust.attacks.fitting import Budget, Fit, FittedAttack, Meter, attacked_returns
from sb3_prune_robust.attacks.gradient import MAD, PGD, check_count
from sb3_prune_robust.attacks.q_descent import QDescent
from sb3_prune_robust.attacks.robust_q import QFunction, QLearning, Recipe
from sb3_prune_robust.attacks.transitions import Transitions, choices, collect

_PLAY_SHARE = 0.3  # of the budget, at most, for the victim's own play
_LEARN_SHARE = 0.85  # of the budget, at most, until the last Q is learned; what is left tries the ratios
_REPORT_EVERY = 100  # updates
OnProgress = Callable[[float], object]


@dataclass(frozen=True)
class Candidate:
    """
    A Q that was learned, and how much it hurts.

    :param q: what was learned
    :param recipe: how
    :param mean_return: the victim's on episodes of fitting
    """

    q: QFunction
    recipe: Recipe
    mean_return: float


class RobustSarsa(FittedAttack):
    """
    Robust Sarsa (Zhang et al. 2020): minimise ``Q(s, mu(s_hat))``, ``Q`` the victim's own, learned to be smooth in the action.

    Rounds: the victim plays, unattacked at first, later under the best attack so far; from that, for each entry of ``grid``, a
    Q is learned (one-step Sarsa with the true successors, those at a time limit, too, a target network, and the bound on
    ``|Q(s, a') - Q(s, a)|`` in a ball of actions as a penalty) and played. The Q under which the victim returns least is kept,
    then the best of the ratios with it. Where every step pays the same and the victim never fails, there is nothing to learn,
    and the first round is played under :class:`MAD`; if it does not fail there, either, that raises
    ``NothingToLearnError``. Other arguments as in :class:`Attack`.

    :param grid: pairs of ``(eps, reg)`` to try, in this order, as many as the budget lets: the ball's radius (in standard
        deviations of the victim's actions; for categoricals the probability of another choice) and the penalty's weight
    :param ratios: shares of :class:`MAD`'s objective to try, in [0, 1): ``ratio * MAD + (1 - ratio) * RS``, Q in units of the
        spread of the returns
    :param gamma: discount
    :param rounds: of playing and learning, as many as the budget lets; 1: the published attack, on unattacked play only
    :param transitions: steps of the victim in each round, if the budget lets it play as many
    :param updates: gradient steps for each Q
    :param legacy: the reference's form (successors from a shuffled batch), to reproduce it
    :param steps: as in :class:`PGD`
    :param restarts: as in :class:`PGD`
    :param step_size: as in :class:`PGD`
    :param engine: as in :class:`PGD`
    :ivar tried: after ``fit``: ``(round, eps, reg, ratio, mean return)`` of all that was tried, on episodes of fitting; the
        further ratios come last, with ``rounds`` as their round
    """

    default_budget = Budget(seconds=90.0)

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        *,
        grid: Sequence[Sequence[float]] = ((0.1, 0.3), (0.1, 3.0), (0.2, 1.0)),
        ratios: Sequence[float] = (0.0, 0.01, 0.1),
        gamma: float = 0.99,
        rounds: int = 3,
        transitions: int = 40_000,
        updates: int = 4000,
        legacy: bool = False,
        steps: int = 10,
        restarts: int = 2,
        step_size: float = 0.25,
        engine: str = "auto",
    ) -> None:
        super().__init__(eps, norm, mask, seed, deterministic)
        self.grid, self.ratios = _check_grid(grid), _check_ratios(ratios)
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma={gamma!r} must lie in [0, 1)")
        self.gamma, self.legacy = float(gamma), bool(legacy)
        self.transitions, self.updates = check_count("transitions", transitions), check_count("updates", updates)
        self._search: dict[str, Any] = dict(steps=steps, restarts=restarts, step_size=step_size, engine=engine)
        PGD(eps, norm, mask, seed, deterministic, **self._search)  # refuses wrong arguments
        self.rounds = check_count("rounds", rounds)
        self._descent: QDescent | None = None
        self._slowest, self._seeds = 0.0, list[int]()
        self.tried: list[tuple[float, ...]] = []

    def perturb(self, policy: Any, ball: Ball) -> Array:
        self._check_fitted()
        assert self._descent is not None
        return self._descent.perturb(policy, ball)

    def _check_policy(self, policy: Any) -> None:
        choices(policy.action_space)

    def _fit(self, policy: Any, env: VecEnv, meter: Meter, checkpoint: Path | None, on_progress: OnProgress) -> None:
        fit = Fit(meter, checkpoint, self._identity(policy, env), on_progress)
        self.tried, self._slowest = [], 0.0
        self._seeds = self._fit_seeds(1 + self.rounds * (1 + len(self.grid)))
        best: Candidate | None = None
        for number in range(self.rounds):
            start = meter.progress
            if best is not None and start + self._slowest > _LEARN_SHARE:
                break
            best = self._round(number, best, policy, env, fit)
        assert best is not None
        self._choose_ratio(best, policy, env, fit)

    def _round(self, number: int, best: Candidate | None, policy: Any, env: VecEnv, fit: Fit) -> Candidate:
        """Play under the best attack so far and learn each Q of the grid from that; gives the best of all so far."""
        data = self._collect(number, best, policy, env, fit)
        for i, (q_eps, reg) in enumerate(self.grid):
            start = fit.meter.progress
            if best is not None and start + self._slowest > _LEARN_SHARE:
                break
            recipe = Recipe(q_eps, reg, self.gamma, self.updates, self.legacy)
            candidate = self._candidate(f"q{number}_{i}", recipe, data, policy, env, fit)
            self.tried.append((number, q_eps, reg, self.ratios[0], candidate.mean_return))
            self._slowest = max(self._slowest, fit.meter.progress - start)
            if best is None or candidate.mean_return < best.mean_return:
                best = candidate
        assert best is not None
        return best

    def _collect(self, number: int, best: Candidate | None, policy: Any, env: VecEnv, fit: Fit) -> Transitions:
        saved = fit.load(f"transitions{number}")
        if saved is not None:
            return Transitions(**saved[1])
        attack = None if best is None else self._descend(best.q, self.ratios[0])
        data = self._watch(number, attack, policy, env, fit)
        if attack is None and not data.informative(self.gamma):
            mad = MAD(self._eps, self.norm, self._mask, self.seed, self.deterministic, **self._search)
            data = self._watch(number, mad, policy, env, fit)
        fit.save(f"transitions{number}", {}, data.arrays())
        return data

    def _watch(self, number: int, attack: Attack | None, policy: Any, env: VecEnv, fit: Fit) -> Transitions:
        limit = fit.meter.progress + _PLAY_SHARE / self.rounds

        def may_go_on(count: int) -> bool:
            if count:
                fit.meter.add(env.num_envs)
            return count < self.transitions and fit.meter.progress < limit

        return collect(policy, env, attack, self.deterministic, self._seeds[1 + number], may_go_on)

    def _candidate(self, name: str, recipe: Recipe, data: Transitions, policy: Any, env: VecEnv, fit: Fit) -> Candidate:
        """The Q of a recipe, learned and played, or as it was when the fit was interrupted."""
        saved = fit.load(name)
        if saved is not None:
            return Candidate(QFunction.of(saved[1]), recipe, saved[0]["mean_return"])
        q = self._learn(recipe, data, choices(policy.action_space), self._seeds[-1 - len(self.tried)], fit)
        candidate = Candidate(q, recipe, self._play(q, self.ratios[0], policy, env, fit))
        fit.save(name, {"mean_return": candidate.mean_return}, q.arrays())
        return candidate

    def _learn(self, recipe: Recipe, data: Transitions, nvec: tuple[int, ...], seed: int, fit: Fit) -> QFunction:
        """A Q, its schedule shortened if the budget would not last."""
        learning, start = QLearning(data, nvec, recipe, seed), fit.meter.progress
        for update in range(recipe.updates):
            if update % _REPORT_EVERY == 0:
                fit.on_progress(fit.meter.progress)
            spent = (fit.meter.progress - start) / max(_LEARN_SHARE - start, 1e-9)
            done = max(update / recipe.updates, spent if fit.meter.budget.seconds is not None else 0.0)
            if done >= 1:
                break
            learning.update(done)
        return learning.function()

    def _play(self, q: QFunction, ratio: float, policy: Any, env: VecEnv, fit: Fit) -> float:
        """The victim's mean return on episodes of fitting, the same for all candidates."""
        played = attacked_returns(
            self._descend(q, ratio),
            policy,
            env,
            env.num_envs,
            deterministic=self.deterministic,
            seed=self._seeds[0],
            meter=fit.meter,
        )
        fit.on_progress(fit.meter.progress)
        return float(played.mean())

    def _choose_ratio(self, best: Candidate, policy: Any, env: VecEnv, fit: Fit) -> None:
        returns = [best.mean_return]
        for ratio in self.ratios[1:]:
            if fit.meter.progress >= 1:
                break
            returns.append(self._play(best.q, ratio, policy, env, fit))
            self.tried.append((self.rounds, best.recipe.q_eps, best.recipe.reg, ratio, returns[-1]))
        self._descent = self._descend(best.q, self.ratios[int(np.argmin(returns))])

    def _descend(self, q: QFunction, ratio: float) -> QDescent:
        common = (self._eps, self.norm, self._mask, self.seed, self.deterministic)
        return QDescent(*common, q=q, ratio=ratio, **self._search)

    def _settings(self) -> dict[str, Any]:
        learning = dict(
            gamma=self.gamma, rounds=self.rounds, transitions=self.transitions, updates=self.updates, legacy=self.legacy
        )
        return {"grid": [list(pair) for pair in self.grid], "ratios": list(self.ratios), **learning, **self._search}

    def _arrays(self) -> dict[str, Array]:
        assert self._descent is not None
        return {**self._descent.q.arrays(), "ratio": np.array(self._descent.ratio), "tried": np.array(self.tried)}

    def _restore(self, arrays: Mapping[str, Array]) -> None:
        self._descent = self._descend(QFunction.of(arrays), float(arrays["ratio"]))
        self.tried = [tuple(map(float, row)) for row in arrays["tried"]]


def _check_grid(grid: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    pairs = [tuple(map(float, pair)) for pair in grid]
    if not pairs or any(len(pair) != 2 or not all(0 <= one < np.inf for one in pair) for pair in pairs):
        raise ValueError(f"grid={grid!r} must hold pairs (eps, reg), each finite and not negative")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _check_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    if not len(ratios) or not all(0 <= ratio < 1 for ratio in ratios):
        raise ValueError(f"ratios={ratios!r} must hold numbers in [0, 1)")
    return tuple(map(float, ratios))
