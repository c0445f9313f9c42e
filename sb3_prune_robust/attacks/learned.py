"""Attacks by an adversary that learned to attack: SA-RL acts in observation space, PA-AD in the victim's action space."""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_prune_robust.actor import Actor, action_masks
from sb3_prune_robust.attacks.adversary_env import AdversaryVecEnv, View
from sb3_prune_robust.attacks.balls import BALLS, Ball, round_down
from sb3_prune_robust.attacks.base import Array
from sb3_prune_robust.attacks.director import Director
from sb3_prune_robust.attacks.engines import NetworkReader
from sb3_prune_robust.attacks.fitting import Budget, Cost, Fit, FittedAttack, Meter, attacked_returns
from sb3_prune_robust.attacks.gradient import check_count
from sb3_prune_robust.attacks.learning import ALGORITHMS, LEARNING_SHARE, Learner, is_off_policy
from sb3_prune_robust.attacks.objectives import direction_objective, policy_outputs
from sb3_prune_robust.attacks.search import PushSearch
from sb3_prune_robust.network import is_greedy, n_outputs

MOST_SEARCH = 0.9 * LEARNING_SHARE
PUSH_SIZE = 2.0
VIEW_STEPS = 2000  # of clean play, to see how large the observations are where they are not normalised
ROUNDS = 4  # at most, of an episode in each environment for each candidate


class LearnedAttack(FittedAttack):
    """
    An adversary that observes the true state and learned by reinforcement learning what to show the victim.

    It plays its mean. Of the last directors that learning passed through, the one that lowers the return most on episodes of
    its own is kept. Other arguments as in :class:`Attack`.

    :param algorithm: the SB3 algorithm that learns: a key of ``ALGORITHMS``
    :param algorithm_kwargs: its arguments, over the defaults here; for JSON
    :param curriculum: learning starts with this many times ``eps``, falling in a line to ``eps`` over its first 60 %
    """

    default_budget = Budget(seconds=240.0)

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        *,
        algorithm: str = "ppo",
        algorithm_kwargs: Mapping[str, Any] | None = None,
        curriculum: float = 1.0,
    ) -> None:
        super().__init__(eps, norm, mask, seed, deterministic)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm={algorithm!r} is not known; choose one of {list(ALGORITHMS)}")
        if not 1 <= curriculum < np.inf:
            raise ValueError(f"curriculum={curriculum!r} must be finite and at least 1, a multiple of eps")
        try:
            json.dumps(dict(algorithm_kwargs or {}))
        except TypeError as error:
            raise TypeError(f"algorithm_kwargs={algorithm_kwargs!r} must hold what JSON can, as files do: {error}") from None
        self.algorithm = algorithm
        self.algorithm_kwargs = copy.deepcopy(dict(algorithm_kwargs or {}))
        self.curriculum = float(curriculum)
        self._director: Callable[[Array], Array] | None = None
        self._view = View.plain(1)

    def direct(self, director: Callable[[Array], Array], view: View) -> None:
        """
        Attack by a director that learns elsewhere, instead of by :meth:`fit`; it may go on changing.

        :param director: from what the adversary observes, shape ``(n, d)``, to its actions, shape ``(n, k)``
        :param view: how it observes
        """
        self._director, self._view, self.cost = director, view, Cost(0, 0.0)

    @abstractmethod
    def _action_space(self, policy: Any) -> spaces.Box:
        """Of the adversary."""

    @abstractmethod
    def _move(self, policy: Any, ball: Ball, actions: Array) -> Array:
        """From the adversary's actions ``(n, k)`` to perturbed observations ``(n, d)``."""

    def perturb(self, policy: Any, ball: Ball) -> Array:
        self._check_fitted()
        assert self._director is not None
        size = len(self._view.mean)
        if ball.center.shape[1] != size:
            raise ValueError(f"obs has {ball.center.shape[1]} entries; this attack was fitted on a victim that has {size}")
        return self._move(policy, ball, self._director(self._view(ball.center)))

    def environment(self, model: Any, env: VecEnv) -> AdversaryVecEnv:
        """
        The adversary's own decision problem, to be learned by any algorithm; :meth:`fit` learns it by ``algorithm``.

        :param model: the victim: an SB3 policy, or an algorithm that has one
        :param env: environments as the victim was trained in, rewards raw
        :return: environments whose action is the adversary's and whose reward is minus the victim's
        """
        policy = getattr(model, "policy", model)

        def moved(observations: Array, actions: Array, scale: float) -> Array:
            ball = self._ball(policy, observations.reshape(len(observations), -1))
            if scale != 1.0:
                eps = scale * ball.eps
                ball = BALLS[self.norm](ball.center, eps, round_down(eps, ball.center.dtype))
            return ball.project(self._move(policy, ball, actions)).reshape(observations.shape)

        seed = self._fit_seeds(1)[0]
        return AdversaryVecEnv(env, policy, self._action_space(policy), moved, self.deterministic, seed, self._view)

    def _fit(
        self, policy: Any, env: VecEnv, meter: Meter, checkpoint: Path | None, on_progress: Callable[[float], object]
    ) -> None:
        seeds = self._fit_seeds(2)
        under_way = Fit(meter, checkpoint, self._identity(policy, env), on_progress)
        self._view = self._measured(policy, env, under_way, seeds[0])
        adversary = self.environment(policy, env)
        candidates = self._prepare(policy, adversary, under_way, seeds[0])
        curriculum = 1.0 if candidates else self.curriculum
        learner = Learner(
            self.algorithm, copy.deepcopy(self.algorithm_kwargs), adversary, under_way, curriculum, seeds[0], meter.progress
        )
        candidates += learner.run()
        if not candidates:
            raise ValueError(f"budget {meter.budget} ended before the first update of {self.algorithm!r}: nothing was learned")
        self._choose(candidates, policy, env, meter, seeds[1])

    def _measured(self, policy: Any, env: VecEnv, fit: Fit, seed: int) -> View:
        """The adversary's view: as it is where VecNormalize normalises, else by a short clean play."""
        normalizer = unwrap_vec_normalize(env)
        size = int(np.prod(policy.observation_space.shape))
        if normalizer is not None and normalizer.norm_obs:
            return View.plain(size)
        saved = fit.load("view")
        if saved is not None:
            return View(**saved[1])
        env.seed(seed)
        actor, streams = Actor(policy, self.deterministic), [np.random.default_rng(seed)] * env.num_envs
        rows = [np.array(env.reset())]
        steps = VIEW_STEPS if fit.meter.budget.steps is None else min(VIEW_STEPS, fit.meter.budget.steps // 20)
        for _ in range(steps // env.num_envs):
            rows.append(np.array(env.step(actor(rows[-1], streams, action_masks(policy, env))[0])[0]))
            fit.meter.add(env.num_envs)
        view = View.measured(np.concatenate(rows))
        fit.save("view", {}, asdict(view))
        return view

    def _prepare(self, policy: Any, adversary: AdversaryVecEnv, fit: Fit, seed: int) -> list[Director]:
        """What comes before learning; gives directors that are candidates already. The curriculum is over after it."""
        return []

    def _choose(self, candidates: list[Director], policy: Any, env: VecEnv, meter: Meter, seed: int) -> None:
        """Keep the director under which the victim's mean return is lowest: a round at least, more as the budget lets."""
        returns: dict[int, list[float]] = {}
        self.cost = meter.cost  # so that it can be played
        rounds = [(k, i) for k in range(ROUNDS) for i in reversed(range(len(candidates)))]  # the last learned comes first
        for k, i in rounds:
            if k and meter.progress >= 1:
                break
            self._director = candidates[i]
            played = attacked_returns(
                self, policy, env, env.num_envs, deterministic=self.deterministic, seed=seed + k * env.num_envs, meter=meter
            )
            returns.setdefault(i, []).extend(played)
        self._director = candidates[min(returns, key=lambda i: float(np.mean(returns[i])))]

    def _settings(self) -> dict[str, Any]:
        return dict(algorithm=self.algorithm, algorithm_kwargs=self.algorithm_kwargs, curriculum=self.curriculum)

    def _arrays(self) -> dict[str, Array]:
        if not isinstance(self._director, Director):
            raise TypeError(
                f"{type(self).__name__} is directed by {self._director!r}, which files cannot hold; fit it instead"
            )
        return {**self._director.arrays(), "mean": self._view.mean, "spread": self._view.spread}

    def _restore(self, arrays: Mapping[str, Array]) -> None:
        director = Director.of(arrays)
        self._director, self._view = director, View(arrays["mean"], arrays["spread"])
        if not self._view.mean.shape == self._view.spread.shape == (director.network.n_inputs,):
            raise ValueError(f"these arrays are no adversary: a view of {self._view.mean.shape} and other weights")


class SARL(LearnedAttack):
    """
    SA-RL, the optimal attack (Zhang et al. 2021): the adversary's action is the perturbation, in units of ``eps``.

    Arguments as in :class:`LearnedAttack`.
    """

    def _action_space(self, policy: Any) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (int(np.prod(policy.observation_space.shape)),), np.float32)

    def _move(self, policy: Any, ball: Ball, actions: Array) -> Array:
        return np.asarray(ball.center + ball.eps * np.clip(actions, -1.0, 1.0), ball.center.dtype)


class PAAD(LearnedAttack):
    """
    PA-AD (Sun et al. 2022): a director chooses a direction in the victim's ACTION space (means or logits), an actor finds the
    observation in the ball that moves the action that way.

    The actor climbs ``d . f(s_hat)``, ``f`` the victim's means or logits; with one step its answer in l_inf is
    ``eps sign(J^T d)``. The space of directions is far smaller than that of observations. Other arguments as in
    :class:`LearnedAttack`.

    With ``search``, a push ``d = b + c f(s)`` that holds all episode long is searched for first
    (:class:`~sb3_prune_robust.attacks.search.PushSearch`), in the curriculum if there is one, and the director learns what to
    add to it: stronger on robust agents and on walkers, weaker where a steady push ends in a trap (``docs/adversaries.md``).

    :param steps: gradient steps of the actor
    :param search: share of the budget for that search; 0: none
    """

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        *,
        algorithm: str = "ppo",
        algorithm_kwargs: Mapping[str, Any] | None = None,
        curriculum: float = 1.0,
        steps: int = 2,
        search: float = 0.0,
    ) -> None:
        settings: dict[str, Any] = dict(algorithm=algorithm, algorithm_kwargs=algorithm_kwargs, curriculum=curriculum)
        super().__init__(eps, norm, mask, seed, deterministic, **settings)
        self.steps = check_count("steps", steps)
        if not 0 <= search <= MOST_SEARCH:
            raise ValueError(f"search={search!r} must lie in [0, {MOST_SEARCH}], a share of the budget")
        self.search = float(search)
        self._push: Array | None = None
        self._reader = NetworkReader()

    def _action_space(self, policy: Any) -> spaces.Box:
        # Only the direction counts. PPO does not squash, and SB3 asks for finite bounds: wide ones.
        bound = 1.0 if is_off_policy(self.algorithm) else 10.0
        return spaces.Box(-bound, bound, (n_outputs(policy),), np.float32)

    def _prepare(self, policy: Any, adversary: AdversaryVecEnv, fit: Fit, seed: int) -> list[Director]:
        if not self.search:
            return []
        self._push = None
        found = fit.load("push")
        self._push = self._search(policy, adversary, fit, seed) if found is None else found[1]["push"]
        fit.save("push", {}, {"push": self._push})
        if not self._push.any():  # none lowered the return: learning starts from scratch, in what is left of the budget
            self._push = None
            return []
        return [Director.still(int(np.prod(policy.observation_space.shape)), n_outputs(policy))]

    def _search(self, policy: Any, adversary: AdversaryVecEnv, fit: Fit, seed: int) -> Array:
        """The push that was found, scaled so that the noise of learning, of size 1, does not drown it."""

        def direct(pushes: Array, observations: Array) -> Array:
            return self._pushed(policy, observations.reshape(len(observations), -1), pushes[:, :k], pushes[:, k:])

        k = n_outputs(policy)
        adversary.seed(seed)
        search = PushSearch(2 * k, np.random.default_rng(seed))
        push = search.run(adversary, direct, fit.meter, self.search, self.curriculum, fit.on_progress)
        return PUSH_SIZE * (push / max(np.sqrt(np.mean(push**2)), 1e-9)).reshape(2, k)

    def _pushed(self, policy: Any, points: Array, constant: Array, slope: Array) -> Array:
        found = policy_outputs(policy, points, self._reader)
        if is_greedy(policy):  # Q values are of any size, and only their differences act
            found = (found - found.mean(axis=1, keepdims=True)) / (found.std(axis=1, keepdims=True) + 1e-8)
        return constant + slope * found

    def _move(self, policy: Any, ball: Ball, actions: Array) -> Array:
        if self._push is not None:
            actions = actions + self._pushed(policy, ball.center, *self._push)
        objective = direction_objective(policy, actions, self._reader)
        points = ball.center
        for i in range(self.steps):
            _, gradient = objective.value_and_gradient(points)
            # The last step goes to the border whatever came before, by the gradient on the way there.
            points = ball.step(points, gradient, 2.0 if i == self.steps - 1 else 1 / self.steps)
        return points

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "steps": self.steps, "search": self.search}

    def _arrays(self) -> dict[str, Array]:
        return super()._arrays() | ({} if self._push is None else {"push": self._push})

    def _restore(self, arrays: Mapping[str, Array]) -> None:
        super()._restore(arrays)
        self._push = arrays.get("push")
