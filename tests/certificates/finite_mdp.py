"""Finite SA-MDPs whose adversary chooses from finite sets, so that its exact worst case is found by dynamic programming."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sb3_prune_robust.certificates.divergences import categorical_tv
from sb3_prune_robust.certificates.returns import remaining
from sb3_prune_robust.certificates.rewards import RewardRange
from sb3_prune_robust.network import Array


@dataclass
class FiniteMDP:
    """
    ``seen[s]``: the finite set B(s) of states that the adversary can show at ``s``, ``s`` among them.

    :param move: probabilities of the next state, ``(S, A, S)``; what is missing to 1 ends the episode
    :param reward: ``(S, A)``
    """

    move: Array
    reward: Array
    logits: Array
    seen: list[list[int]]
    ends_early: bool

    @property
    def policy(self) -> Array:
        weights = np.exp(self.logits)
        return weights / weights.sum(axis=1, keepdims=True)

    @property
    def span(self) -> float:
        span = RewardRange(float(self.reward.min()), float(self.reward.max()), self.ends_early, "").span
        assert span is not None
        return span

    def tv_max(self) -> Array:
        return np.array(
            [max(categorical_tv(self.logits[s], self.logits[h]) for h in self.seen[s]) for s in range(len(self.seen))]
        )

    def omega(self) -> Array:
        """``max_h`` of the range of the logits' changes, over B(s) exactly."""
        return np.array([max(np.ptp(self.logits[h] - self.logits[s]) for h in self.seen[s]) for s in range(len(self.seen))])

    def ratios(self) -> Array:
        """``w(s, a) = min_h pi(a|h) / pi(a|s)``, over B(s) exactly, ``(S, A)``."""
        policy = self.policy
        return np.array([policy[self.seen[s]].min(axis=0) / policy[s] for s in range(len(self.seen))])

    def backup(self, value: Array, gamma: float, attacked: bool) -> Array:
        """One step of value iteration, the adversary choosing what to show: the optimal one, history does not help it."""
        action_value = self.reward + gamma * self.move @ value
        shown = self.policy @ action_value.T  # (what is shown, where the environment is)
        if not attacked:
            return np.diag(shown).copy()
        return np.array([min(shown[h, s] for h in self.seen[s]) for s in range(len(self.seen))])

    def value(self, gamma: float, steps: int, attacked: bool) -> Array:
        value = np.zeros(len(self.seen))
        for _ in range(steps):
            value = self.backup(value, gamma, attacked)
        return value

    def alive(self, steps: int) -> Array:
        """Probability of each state at each step of the clean policy from state 0, ``(steps, S)``."""
        transition = np.einsum("sa,sat->st", self.policy, self.move)
        rows = [np.eye(len(self.seen))[0]]
        for _ in range(steps - 1):
            rows.append(rows[-1] @ transition)
        return np.array(rows)

    def visited_tv(self, tv: Array, gamma: float, steps: int = 3000) -> float:
        """F, exactly but for gamma^3000."""
        return float((1 - gamma) * gamma ** np.arange(steps) @ (self.alive(steps) @ tv))

    def capped_tv(self, tv: Array, gamma: float, cap: int) -> float:
        steps = np.arange(cap)
        return float((gamma**steps * remaining(cap - steps, gamma)) @ (self.alive(cap) @ tv))


def random_mdp(seed: int, ends_early: bool) -> FiniteMDP:
    rng = np.random.default_rng(seed)
    n_states, n_actions = int(rng.integers(2, 6)), int(rng.integers(2, 4))
    move = rng.dirichlet(np.full(n_states, 0.3), size=(n_states, n_actions))
    if ends_early:
        move *= rng.choice([0.0, 0.5, 1.0], size=(n_states, n_actions, 1))
    reward = rng.choice(
        [rng.normal(size=(n_states, n_actions)), rng.random((n_states, n_actions)), np.ones((n_states, n_actions))]
    )
    logits = rng.choice([0.03, 0.3, 2.0]) * rng.normal(size=(n_states, n_actions))
    seen = [sorted({s, *rng.integers(0, n_states, size=2).tolist()}) for s in range(n_states)]
    return FiniteMDP(move, reward - rng.choice([0.0, 2.0]), logits, seen, ends_early)


def sparse_mdp(seed: int, ends_early: bool, strength: float) -> FiniteMDP:
    """Few ways on from each state, so that all trajectories can be listed; ``strength``: how much the policies differ."""
    rng = np.random.default_rng(seed)
    n_states = int(rng.integers(2, 5))
    move = np.zeros((n_states, 2, n_states))
    for s, a in np.ndindex(n_states, 2):
        move[s, a, rng.choice(n_states, size=2, replace=False)] = rng.dirichlet([0.5, 0.5])
    if ends_early:
        move *= rng.choice([0.0, 0.7, 1.0], size=(n_states, 2, 1))
    reward = rng.choice([rng.normal(size=(n_states, 2)), rng.random((n_states, 2)), np.ones((n_states, 2))])
    logits = rng.normal(size=2) + strength * rng.normal(size=(n_states, 2))
    seen = [sorted({s, *rng.integers(0, n_states, size=2).tolist()}) for s in range(n_states)]
    return FiniteMDP(move, reward - rng.choice([0.0, 1.5]), logits, seen, ends_early)


@dataclass
class Episode:
    probability: float
    states: list[int]
    actions: list[int]
    terminated: bool


def trajectories(mdp: FiniteMDP, steps: int, start: Episode | None = None, state: int = 0) -> Iterator[Episode]:
    """Every trajectory of the clean policy from state 0, with its probability."""
    so_far = start or Episode(1.0, [], [], False)
    if len(so_far.states) == steps:
        yield so_far
        return
    for a, chance in enumerate(mdp.policy[state]):
        states, actions, weight = [*so_far.states, state], [*so_far.actions, a], so_far.probability * chance
        end = 1.0 - mdp.move[state, a].sum()
        if end > 1e-12:
            yield Episode(weight * end, states, actions, True)
        for after in np.flatnonzero(mdp.move[state, a]):
            yield from trajectories(
                mdp, steps, Episode(weight * mdp.move[state, a, after], states, actions, False), int(after)
            )


def simulate(mdp: FiniteMDP, n: int, steps: int, rng: np.random.Generator) -> list[Episode]:
    """Independent episodes of the clean policy from state 0."""
    n_states = len(mdp.seen)
    state, length = np.zeros(n, dtype=int), np.full(n, steps)
    states, actions = np.zeros((2, n, steps), dtype=int)
    after = np.concatenate([mdp.move, np.clip(1.0 - mdp.move.sum(axis=2, keepdims=True), 0.0, 1.0)], axis=2).cumsum(axis=2)
    after[..., -1] = 1.0
    for t in range(steps):
        alive = state < n_states
        length[~alive & (length == steps)] = np.minimum(length, t)[~alive & (length == steps)]
        here = np.where(alive, state, 0)
        action = (rng.random(n)[:, None] > mdp.policy[here].cumsum(axis=1)[:, :-1]).sum(axis=1)
        states[:, t], actions[:, t] = here, action
        state = np.where(alive, (rng.random(n)[:, None] > after[here, action]).sum(axis=1), n_states)
    ended = state == n_states
    return [
        Episode(1.0 / n, s[:m].tolist(), a[:m].tolist(), bool(e))
        for s, a, m, e in zip(states, actions, length, ended, strict=True)
    ]
