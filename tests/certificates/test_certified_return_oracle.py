"""
Certified returns 2 and 3 against exact worst cases found by dynamic programming.

Run with ``-s`` to see how close they come: the ratio is that of the shifted returns, certified to worst case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from finite_mdp import Episode, FiniteMDP, random_mdp, simulate, sparse_mdp, trajectories
from scipy.stats import norm

from sb3_prune_robust.certificates import (
    categorical_log_ratio,
    categorical_shift,
    likelihood_return_bound,
    likelihood_samples,
    noise_certificate,
    promised_bound,
    shift_offset,
    stopped_returns,
)
from sb3_prune_robust.certificates.noise import shifted_mean, shifted_probability

NO_END = 60  # steps of value iteration that stand for an infinite horizon at gamma <= 1/2


@dataclass
class Record:
    """Episodes of a finite SA-MDP in the form the certificates take."""

    probabilities: np.ndarray
    rewards: list[np.ndarray]
    shifts: list[np.ndarray]
    log_ratios: list[np.ndarray]
    exact_log_ratios: list[np.ndarray]
    terminated: list[bool]


def record(mdp: FiniteMDP, episodes: list[Episode]) -> Record:
    omega, log_policy = mdp.omega(), np.log(mdp.policy)
    shift, exact = categorical_shift(omega), np.log(mdp.ratios())
    ratio = np.stack([categorical_log_ratio(log_policy[:, [a]], omega[:, None]) for a in range(exact.shape[1])], axis=1)
    assert np.all(ratio <= exact + 1e-12)
    at = [(e.states, e.actions) for e in episodes]
    return Record(
        np.array([e.probability for e in episodes]),
        [mdp.reward[i] for i in at],
        [shift[s] for s, _ in at],
        [ratio[i] for i in at],
        [np.minimum(exact[i], 0.0) for i in at],
        [e.terminated for e in episodes],
    )


def floor_of(mdp: FiniteMDP) -> float:
    return min(float(mdp.reward.min()), 0.0)


def exact_noise_return(known: Record, budget: float, gamma: float, horizon: int | None, floor: float) -> float:
    """The integral for the exact law of R_D, from all trajectories."""
    samples = stopped_returns(known.rewards, known.shifts, known.terminated, budget, gamma, horizon, floor)
    order = np.argsort(samples)
    reached = np.minimum(np.cumsum(known.probabilities[order][::-1])[::-1], 1.0)
    return shifted_mean(samples[order], reached, budget) - shift_offset(gamma, horizon, floor)


def exact_likelihood_return(known: Record, ratios: list[np.ndarray], gamma: float, horizon: int | None, floor: float) -> float:
    samples = likelihood_samples(known.rewards, ratios, known.terminated, gamma, horizon, floor)
    return float(known.probabilities @ samples) - shift_offset(gamma, horizon, floor)


def likelihood_by_recursion(mdp: FiniteMDP, gamma: float, horizon: int, floor: float) -> float:
    """The same expectation backwards in time, without trajectories."""
    value, credit, weight = np.zeros(len(mdp.seen)), 0.0, mdp.policy * mdp.ratios()
    for _ in range(horizon):
        ended = 1.0 - mdp.move.sum(axis=2)
        value = (weight * (mdp.reward - floor + gamma * (mdp.move @ value + ended * credit))).sum(axis=1)
        credit = -floor + gamma * credit
    return float(value[0]) - shift_offset(gamma, horizon, floor)


def budgets_of(known: Record, few: int = 7) -> list[float]:
    spent = np.unique(np.round(np.sqrt(np.concatenate([np.cumsum(s**2) for s in known.shifts])), 9))
    return [float(b) * (1 + 1e-9) + 1e-9 for b in spent[np.linspace(0, len(spent) - 1, few).astype(int)]]


def report(name: str, ratios: list[float]) -> None:
    print(f"\n{name}: certified/worst mean {np.mean(ratios):.3f}, best {max(ratios):.4f}, {len(ratios)} cases", end="")


@pytest.mark.parametrize("strength", [0.03, 0.3, 1.5])
@pytest.mark.parametrize(("gamma", "steps", "capped"), [(1.0, 4, True), (0.9, 3, True), (0.5, 4, False)])
def test_exact_certified_returns_are_below_the_exact_worst_case(gamma, steps, capped, strength):
    horizon = steps if capped else None
    closeness: dict[str, list[float]] = {"noise": [], "likelihood, by omega": [], "likelihood, exact w": []}
    for seed in range(25):
        mdp = sparse_mdp(seed, seed % 2 == 0, strength)
        floor, known = floor_of(mdp), record(mdp, list(trajectories(mdp, steps)))
        assert known.probabilities.sum() == pytest.approx(1.0)
        clean, worst = (float(mdp.value(gamma, horizon or NO_END, attacked)[0]) for attacked in (False, True))
        certified = {
            "noise": [exact_noise_return(known, budget, gamma, horizon, floor) for budget in budgets_of(known)],
            "likelihood, by omega": [exact_likelihood_return(known, known.log_ratios, gamma, horizon, floor)],
            "likelihood, exact w": [exact_likelihood_return(known, known.exact_log_ratios, gamma, horizon, floor)],
        }
        if horizon is not None:
            by_recursion = likelihood_by_recursion(mdp, gamma, horizon, floor)
            assert certified["likelihood, exact w"][0] == pytest.approx(by_recursion, abs=1e-9)
        offset = shift_offset(gamma, horizon, floor)
        for name, values in certified.items():
            assert max(values) <= worst + 1e-8, (seed, name)
            if worst < clean - 1e-6 and worst + offset > 1e-9:
                closeness[name].append((max(values) + offset) / (worst + offset))
    for name, ratios in closeness.items():
        report(f"gamma {gamma}, {'T' if capped else 'cut at'} {steps}, strength {strength}: {name}", ratios)
    if strength == 0.03 and capped:
        assert np.mean(closeness["noise"]) > 0.9


@pytest.mark.parametrize("ends_early", [False, True])
def test_lower_confidence_bounds_hold(ends_early):
    """From sampled episodes: longer ones, any number of ways on, and a budget chosen on other episodes."""
    rng, steps, n, closeness = np.random.default_rng(0), 20, 300, {"noise": [], "likelihood": []}
    for seed in range(10):
        mdp, gamma = random_mdp(seed, ends_early), [1.0, 0.9][seed % 2]
        floor, worst = floor_of(mdp), float(mdp.value(gamma, steps, True)[0])
        calibration, data = (record(mdp, simulate(mdp, m, steps, rng)) for m in (60, n))
        common = {"gamma": gamma, "horizon": steps, "floor": floor, "alpha": 1e-4}
        budget, _ = promised_bound(calibration.rewards, calibration.shifts, calibration.terminated, **common, n_certify=n)
        bounds = {
            "noise": noise_certificate(data.rewards, data.shifts, data.terminated, budget, **common),
            "likelihood": likelihood_return_bound(
                data.rewards, data.log_ratios, data.terminated, **common, high=float(mdp.reward.max())
            ),
        }
        offset = shift_offset(gamma, steps, floor)
        for name, bound in bounds.items():
            assert bound.lower <= worst, (seed, name)
            assert bound.clean == pytest.approx(float(mdp.value(gamma, steps, False)[0]), abs=0.25 * steps**0.5)
            closeness[name].append((bound.lower + offset) / (worst + offset))
    for name, ratios in closeness.items():
        report(f"sampled, {'with' if ends_early else 'without'} early ends: {name}", ratios)
    assert max(closeness["noise"]) > 0.7


# One-dimensional Gaussian systems: x' = x + a, a ~ N(mu(s_hat), 1); the environment rounds x' to a grid, and all is exact.
GRID = np.linspace(-8.0, 8.0, 401)
EDGES = np.concatenate([[-np.inf], 0.5 * (GRID[1:] + GRID[:-1]), [np.inf]])
START = len(GRID) // 2


def transition(mean: np.ndarray) -> np.ndarray:
    """Probabilities of the next grid point, for the mean of the action at each."""
    return np.diff(norm.cdf(EDGES[None, :] - (GRID + mean)[:, None]), axis=1)


@dataclass
class GaussianSystem:
    """Reward 1 for each step after which ``|x| < limit``; else the episode ends. The policy steers back, by up to ``most``."""

    limit: float = 5.0
    gain: float = 0.6
    most: float = 1.5
    eps: float = 0.1
    steps: int = 30

    def mean(self, x: np.ndarray) -> np.ndarray:
        return np.clip(-self.gain * x, -self.most, self.most)

    @property
    def shift(self) -> np.ndarray:
        """``d(x)``: by how much the mean can move, the eps-ball being an interval and the mean monotone."""
        return np.maximum(*(np.abs(self.mean(GRID + side * self.eps) - self.mean(GRID)) for side in (-1, 1)))

    @property
    def alive(self) -> np.ndarray:
        return np.abs(GRID) < self.limit

    def worst(self) -> float:
        """The optimal adaptive adversary, among 5 observations of the ball."""
        shown = [transition(self.mean(GRID + eps)) * self.alive for eps in np.linspace(-self.eps, self.eps, 5)]
        value = np.zeros(len(GRID))
        for _ in range(self.steps):
            value = np.min([p @ (1.0 + value) for p in shown], axis=0)
        return float(value[START])

    def survival(self) -> np.ndarray:
        """``P_pi(R >= j)``, ``j = 1 ... steps``."""
        now, move, rows = np.eye(len(GRID))[START], transition(self.mean(GRID)) * self.alive, []
        for _ in range(self.steps):
            now = now @ move
            rows.append(now.sum())
        return np.array(rows)

    def episodes(self, n: int, rng: np.random.Generator):
        """Rewards, shifts and endings as a user records them."""
        x, rewards, shifts = np.full(n, START), [[] for _ in range(n)], [[] for _ in range(n)]
        playing, shift = np.ones(n, dtype=bool), self.shift
        for _ in range(self.steps):
            after = np.searchsorted(EDGES[1:-1], GRID[x] + self.mean(GRID[x]) + rng.normal(size=n))
            for i in np.flatnonzero(playing):
                rewards[i].append(float(self.alive[after[i]]))
                shifts[i].append(float(shift[x[i]]))
            playing &= self.alive[after]
            x = after
        return rewards, shifts, (~playing).tolist()


@pytest.mark.parametrize("eps", [0.03, 0.2, 0.8])
def test_gaussian_system_with_a_constant_shift(eps):
    """``most`` out of reach: d = gain eps everywhere, so that R_D is R but for the number of steps: exact, no sampling."""
    system = GaussianSystem(eps=eps, most=100.0, limit=4.0)
    d, reached, worst = system.gain * eps, system.survival(), system.worst()
    np.testing.assert_allclose(system.shift, d)
    certified = [shifted_mean(np.arange(1.0, m + 1), reached[:m], d * math.sqrt(m)) for m in range(1, system.steps + 1)]
    assert max(certified) <= worst + 1e-9 < reached.sum()
    report(f"Gaussian system, d = {d:.3f}, D = {d * math.sqrt(30):.2f}, clean {reached.sum():.2f}", [max(certified) / worst])


@pytest.mark.parametrize("eps", [0.02, 0.1, 0.3])
def test_gaussian_system_with_a_shift_that_depends_on_the_state(eps):
    """Where the steering is saturated no observation matters: the budget is spent near 0 only."""
    system, rng = GaussianSystem(eps=eps), np.random.default_rng(0)
    assert 0.0 == system.shift.min() < system.shift.max() == pytest.approx(system.gain * eps)
    budget, _ = promised_bound(*system.episodes(100, rng), 1.0, system.steps, alpha=1e-4, n_certify=1000)
    bound = noise_certificate(*system.episodes(1000, rng), budget, 1.0, system.steps, alpha=1e-4)
    assert bound.clean == pytest.approx(system.survival().sum(), rel=0.02)
    assert 0.3 * system.worst() < bound.lower <= system.worst()
    report(f"Gaussian system, sampled, eps {eps}, D = {budget:.2f}", [bound.lower / system.worst()])


@pytest.mark.parametrize("d", [0.05, 0.3])
def test_a_constant_shift_attains_certificate_3(d):
    """Reward 1 if the sum of 9 actions passes a threshold: the best adaptive adversary shifts all the way, always."""
    steps, threshold = 9, -3.0
    clean = attacked = (threshold <= GRID).astype(float)
    means = [np.full(len(GRID), u) for u in (-d, 0.0, d)]
    for _ in range(steps):
        clean = transition(means[1]) @ clean
        attacked = np.min([transition(u) @ attacked for u in means], axis=0)
    certified = float(shifted_probability(clean[START], d * math.sqrt(steps)))
    assert certified <= attacked[START] + 1e-9
    assert certified == pytest.approx(attacked[START], rel=2e-3)  # the grid ends at -8
    # and without a grid: the sum is N(0, 9), shifted N(-9 d, 9)
    exact = shifted_probability(norm.sf(threshold, 0.0, 3.0), 3.0 * d)
    assert exact == pytest.approx(norm.sf(threshold, -9.0 * d, 3.0), rel=1e-12)


def log_odds(p: float) -> list[float]:
    return [math.log(1 - p), math.log(p)]


def rare_gate(gate: float, forced: float) -> FiniteMDP:
    """
    State 0: action 1 (probability ``gate``, or ``forced``, shown 3) leads to 1, else to 2 where all is well.

    In 1 action 1 (probability .001, or .999, shown 4) forfeits the reward of 1.
    """
    move, reward = np.zeros((5, 2, 5)), np.zeros((5, 2))
    move[0, 0, 2] = move[0, 1, 1] = 1.0
    reward[2] = 1.0
    reward[1, 0] = 1.0
    logits = np.array([log_odds(p) for p in (gate, 0.001, 0.5, forced, 0.999)])
    return FiniteMDP(move, reward, logits, [[0, 3], [1, 4], [2], [3], [4]], ends_early=True)


def test_counterexample_a_maximum_over_visited_states():
    """100 clean episodes hardly ever visit state 1, where d is 5 times as large: D from the states they visit is unsound."""
    mdp = rare_gate(gate=0.001, forced=0.01)
    shift, worst = categorical_shift(mdp.omega()), float(mdp.value(1.0, 2, True)[0])
    visits = np.bincount(np.concatenate([e.states for e in simulate(mdp, 100, 2, np.random.default_rng(0))]), minlength=5)
    assert visits[1] == 0
    clean = float(mdp.value(1.0, 2, False)[0])
    assert shifted_probability(clean, math.sqrt(2) * shift[visits > 0].max()) > worst + 0.005
    known = record(mdp, list(trajectories(mdp, 2)))
    assert max(exact_noise_return(known, budget, 1.0, 2, 0.0) for budget in budgets_of(known)) <= worst


def test_counterexample_the_budget_of_a_typical_episode_without_the_stop():
    """Six episodes in ten spend nothing, and all earn 1: with D = 0 and no stop the certified return would be 1."""
    mdp = rare_gate(gate=0.4, forced=0.4)
    known = record(mdp, list(trajectories(mdp, 2)))
    worst = float(mdp.value(1.0, 2, True)[0])
    spends_nothing = np.array([not shifts.any() for shifts in known.shifts])
    assert float(known.probabilities @ spends_nothing) == pytest.approx(0.6)
    assert worst == pytest.approx(0.6 + 0.4 * 0.001)
    assert float(known.probabilities @ [r.sum() for r in known.rewards]) > worst + 0.39
    assert exact_noise_return(known, 0.0, 1.0, 2, 0.0) == pytest.approx(0.6)


def test_counterexample_a_credit_after_the_budget_stop():
    """-1 per step until an action that only the clean policy takes: after the stop an end is not to be counted on."""
    move = np.zeros((2, 2, 2))
    move[0, 0, 0] = move[1, 0, 1] = 1.0
    logits = np.array([log_odds(0.99), log_odds(0.01)])
    mdp, steps = FiniteMDP(move, np.full((2, 2), -1.0), logits, [[0, 1], [1]], ends_early=True), 8
    known, worst = record(mdp, list(trajectories(mdp, steps))), float(mdp.value(1.0, steps, True)[0])
    assert float(mdp.value(1.0, steps, False)[0]) > -1.1 and worst < -7.0
    credits = np.array([(steps - len(r)) * ended for r, ended in zip(known.rewards, known.terminated, strict=True)])
    assert float(known.probabilities @ credits) - steps > -1.1  # D = 0: nothing counts, but for the credit
    assert exact_noise_return(known, 0.0, 1.0, steps, -1.0) == pytest.approx(-steps)
    assert max(exact_noise_return(known, budget, 1.0, steps, -1.0) for budget in budgets_of(known)) <= worst


def test_counterexample_reward_1_while_alive_has_floor_0():
    """With c = -1 the shifted rewards were 0 and the certified return T, whatever the adversary does: refused."""
    with pytest.raises(ValueError, match="floor must be finite and at most 0, which is what an ended episode pays"):
        noise_certificate([[1.0]] * 9, [[0.0]] * 9, [True] * 9, 1.0, 1.0, 5, floor=1.0)
