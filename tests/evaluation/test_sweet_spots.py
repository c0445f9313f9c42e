import numpy as np
import pytest

from sb3_prune_robust.evaluation.statistics import t_interval
from sb3_prune_robust.evaluation.sweet_spots import Candidate, clean_threshold, paired_gain, sweet_spots, worst_names


def candidate(sparsity: float, clean: float, *worst: float, noise: float = 0.0, n: int = 6) -> Candidate:
    wiggle = noise * np.random.default_rng(round(1000 * sparsity)).normal(size=n)
    attacked = {f"attack{i}": np.full(n, value) + wiggle for i, value in enumerate(worst)}
    return Candidate(sparsity, np.full(n, clean), attacked)


def by_name(*candidates: Candidate) -> dict[str, float]:
    return {spot.criterion: spot.sparsity for spot in sweet_spots(candidates)}


def test_each_criterion_picks_its_own() -> None:
    dense = candidate(0.0, 100, 20, 60)  # mean 60, worst 20, gap 80
    light = candidate(0.5, 98, 50, 70)  # mean 74, worst 50, gap 48
    middle = candidate(0.7, 91, 80, 54)  # mean 72.5, worst 54, gap 37
    heavy = candidate(0.9, 60, 58, 59)  # mean 59, worst 58, gap 2, but keeps 60 % of the clean return
    assert by_name(dense, light, middle, heavy) == {"mean": 0.5, "worst": 0.9, "gap": 0.7}


def test_the_dense_agent_is_a_candidate_and_wins_ties() -> None:
    spots = sweet_spots([candidate(0.5, 100, 60), candidate(0.0, 100, 60)])
    assert [spot.sparsity for spot in spots] == [0.0, 0.0, 0.0]
    assert not any(spot.supported or spot.gain for spot in spots)


def test_worst_is_the_minimum_of_means_not_the_mean_of_minima() -> None:
    one = Candidate(0.0, np.zeros(2), {"a": np.array([0.0, 10.0]), "b": np.array([8.0, 0.0])})
    assert (one.worst, one.worst_attack) == (4.0, "b")


def test_of_agents_the_minimum_is_taken_for_each() -> None:
    values = {"a": np.array([0.0, 10.0]), "b": np.array([8.0, 1.0]), "c": np.array([9.0, 9.0])}
    agents, episodes = Candidate(0.0, np.full(2, 10.0), values, of_agents=True), Candidate(0.0, np.full(2, 10.0), values)
    assert (agents.worst, agents.worst_attack, agents.worst_values.tolist()) == (0.5, None, [0.0, 1.0])
    assert (episodes.worst, episodes.worst_attack) == (4.5, "b")
    same = Candidate(0.0, np.zeros(2), {"a": np.array([5.0, 4.0]), "b": np.array([3.0, 1.0])}, of_agents=True)
    assert (same.worst, same.worst_attack) == (2.0, "b")


def test_an_attack_that_is_worst_for_all_agents_is_named_though_others_tie() -> None:
    values = {"a": np.array([1.0, 5.0]), "b": np.array([1.0, 2.0])}
    assert Candidate(0.0, np.zeros(2), values, of_agents=True).worst_attack == "b"
    assert worst_names(values) == ["b", "b"] and worst_names({**values, "c": np.array([0.0, 9.0])}) == ["c", "b"]


def test_of_agents_the_gain_is_that_of_their_minima() -> None:
    rng = np.random.default_rng(0)
    dense, pruned = (
        Candidate(s, np.full(8, 100.0), {name: m + rng.normal(size=8) for name in "abcde"}, of_agents=True)
        for s, m in ((0.0, 20), (0.5, 50))
    )
    gain = sweet_spots([dense, pruned])[1].gain
    expected = t_interval(pruned.worst_values - dense.worst_values, 0.95)
    assert gain is not None and (gain.mean, gain.low, gain.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_false_gains_of_agents_are_rarer_than_the_level() -> None:
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(400):
        one, other = (
            Candidate(s, np.zeros(6), {name: rng.normal(size=6) for name in "abcd"}, of_agents=True) for s in (0.0, 0.5)
        )
        gain = paired_gain(other, one, (0.0, 1.0), 0.9)
        wrong += gain.low > 0 or gain.high < 0  # type: ignore[operator]
    assert 0.06 <= wrong / 400 <= 0.14  # exact, not only conservative


def test_support_needs_an_interval_above_zero() -> None:
    clear = sweet_spots([candidate(0.0, 100, 20, noise=1), candidate(0.5, 100, 50, noise=1)])
    noisy = sweet_spots([candidate(0.0, 100, 20, noise=60), candidate(0.5, 100, 50, noise=60)])
    assert all(spot.supported and spot.sparsity == 0.5 for spot in clear)
    assert not any(spot.supported for spot in noisy)


def test_one_episode_supports_nothing() -> None:
    spots = sweet_spots([candidate(0.0, 100, 20, n=1), candidate(0.5, 100, 50, n=1)])
    assert all(spot.sparsity == 0.5 and not spot.supported for spot in spots)


def test_more_candidates_widen_the_interval() -> None:
    few = [candidate(0.0, 100, 20, noise=5), candidate(0.5, 100, 50, noise=5)]
    many = [*few, *(candidate(0.5 + 0.01 * i, 90, 5, noise=5) for i in range(1, 9))]
    narrow, wide = sweet_spots(few)[1].gain, sweet_spots(many)[1].gain
    assert narrow is not None and wide is not None
    assert wide.low < narrow.low < narrow.high < wide.high  # type: ignore[operator]


@pytest.mark.parametrize(("dense", "threshold"), [(100.0, 90.0), (-100.0, -110.0), (0.0, 0.0)])
def test_keeping_ninety_percent_of_a_negative_return_is_not_an_improvement(dense: float, threshold: float) -> None:
    assert clean_threshold(dense) == pytest.approx(threshold)


def test_no_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="candidates"):
        sweet_spots([])
