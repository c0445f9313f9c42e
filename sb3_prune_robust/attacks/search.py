"""A search for pushes: directions that hold all episode long, found by the cross-entropy method on whole episodes.

Reinforcement learning tries directions that change at every step, whose effects cancel; what makes a robust agent fall is
often a push kept up for many steps. A push has few parameters, and whole episodes tell which is best, so a minute finds one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sb3_prune_robust.attacks.adversary_env import AdversaryVecEnv, Array
from sb3_prune_robust.attacks.fitting import Meter, check_episode

POPULATION, ELITE, VETERANS = 48, 8, 8  # candidates of a generation, how many shape the next, how many are tried again
HELPS = 0.05  # share of the return by which a push must lower it: one that hardly helps is worse than none to learn from
PACE, LEAST_SPREAD = 0.7, 0.1
FINALISTS, PLAYOFF = 3, 8  # candidates of each search that play it out, and over how many episodes
Direct = Callable[[Array, Array], Array]
CURRICULUM_END = 0.6  # share of learning after which the adversary has eps, and no more


def curriculum_scale(curriculum: float, done: float) -> float:
    """
    The multiple of ``eps`` that the adversary has when a share ``done`` of its learning is over.

    :param curriculum: the multiple at the start
    :param done: in [0, 1]
    """
    return 1.0 + (curriculum - 1.0) * max(0.0, 1.0 - done / CURRICULUM_END)


@dataclass(eq=False)
class Candidate:
    """A push and the victim's returns under it so far."""

    push: Array
    returns: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Of the returns."""
        return float(np.mean(self.returns))


class PushSearch:
    """
    The cross-entropy method (Rubinstein 1999), elites weighted by rank as in CMA-ES, the best tried again and again.

    It runs twice from scratch: at ``eps``, and through the curriculum, which finds what takes a larger push to be seen at all
    but can end where ``eps`` does nothing.

    :param n_parameters: of a push
    :param rng: random numbers
    """

    def __init__(self, n_parameters: int, rng: np.random.Generator) -> None:
        self.n_parameters, self.rng = n_parameters, rng
        self.finalists = [np.zeros(n_parameters)]  # the first: no push at all
        weights = np.log(ELITE + 0.5) - np.log(np.arange(1, ELITE + 1))
        self.weights = weights / weights.sum()

    def run(
        self,
        env: AdversaryVecEnv,
        direct: Direct,
        meter: Meter,
        share: float,
        curriculum: float,
        on_progress: Callable[[float], object],
    ) -> Array:
        """
        Search until a share of the budget is used; one generation is played, however small that is.

        :param env: the adversary's environment
        :param direct: from pushes, one for each environment, and true observations to the adversary's actions ``(n, k)``
        :param meter: the budget
        :param share: of the budget
        :param curriculum: the multiple of ``eps`` that the adversary has at the start of the second search
        :param on_progress: called with the share of the budget that is used
        :return: the push under which the victim returned least at ``eps`` itself, shape ``(n_parameters,)``; zeros if none
            lowered its return by :data:`HELPS`
        """
        for start, end, multiple in ((0.0, share / 2, 1.0), (share / 2, share, curriculum)):
            self.mean, self.spread = np.zeros(self.n_parameters), np.ones(self.n_parameters)
            self.known: list[Candidate] = []  # at eps itself: returns under another say nothing
            searched = False
            while meter.progress < end or not (searched or len(self.finalists) > 1):
                env.scale, searched = curriculum_scale(multiple, (meter.progress - start) / (end - start)), True
                self._generation(env, direct, meter)
                on_progress(meter.progress)
            if not searched:
                continue  # the first search used the budget of both
            tried_again = [candidate for candidate in self.known if len(candidate.returns) > 1]
            best = sorted(tried_again, key=lambda candidate: candidate.mean)[:FINALISTS]
            self.finalists += [self.mean, *(candidate.push for candidate in best)]
        env.scale = 1.0
        return self._playoff(env, direct, meter)

    def _playoff(self, env: AdversaryVecEnv, direct: Direct, meter: Meter) -> Array:
        """The best finalist by new episodes: of many candidates, the lowest mean so far is the luckiest's."""
        finalists = [Candidate(push) for push in self.finalists]
        episodes = finalists * PLAYOFF
        for i in range(0, len(episodes), env.num_envs):
            _try(episodes[i : i + env.num_envs], env, direct, meter)
        none, best = finalists[0], min(finalists, key=lambda candidate: candidate.mean)
        return best.push if none.mean - best.mean > HELPS * abs(none.mean) else none.push

    def _generation(self, env: AdversaryVecEnv, direct: Direct, meter: Meter) -> None:
        size = -(-POPULATION // env.num_envs) * env.num_envs
        veterans = sorted(self.known, key=lambda candidate: candidate.mean)[:VETERANS]
        noise = self.rng.standard_normal((size - len(veterans), self.n_parameters))
        fresh = [Candidate(push) for push in self.mean + self.spread * noise]
        tried = [*fresh, *veterans]
        for i in range(0, size, env.num_envs):
            _try(tried[i : i + env.num_envs], env, direct, meter)
        if env.scale == 1.0:
            self.known += fresh
        elite = np.array([one.push for one in sorted(tried, key=lambda candidate: candidate.mean)[:ELITE]])
        mean = self.weights @ elite
        spread = np.sqrt(self.weights @ (elite - mean) ** 2)
        self.mean = (1 - PACE) * self.mean + PACE * mean
        self.spread = np.maximum((1 - PACE) * self.spread + PACE * spread, LEAST_SPREAD)


def _try(group: list[Candidate], env: AdversaryVecEnv, direct: Direct, meter: Meter) -> None:
    """One episode of each candidate, side by side; environments that are left over play along."""
    pushes = np.resize(np.array([candidate.push for candidate in group]), (env.num_envs, len(group[0].push)))
    returns, running = np.zeros(env.num_envs), np.ones(env.num_envs, bool)
    env.reset()
    length = 0
    while running[: len(group)].any():
        length += 1
        check_episode(length)
        _, rewards, dones, _ = env.step(direct(pushes, env.true))
        returns -= running * rewards  # the adversary's reward is minus the victim's
        running &= ~dones
        meter.add(env.num_envs)
    for candidate, value in zip(group, returns, strict=False):
        candidate.returns.append(float(value))
