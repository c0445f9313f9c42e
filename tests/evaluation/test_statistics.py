import numpy as np
import pytest

from sb3_prune_robust.evaluation.statistics import mean_interval, minimum_gain, t_interval


def test_t_interval_by_hand() -> None:
    # mean 4, standard deviation 2, n 3: half width 4.30265 * 2 / sqrt(3)
    interval = t_interval(np.array([2.0, 4.0, 6.0]))
    assert interval.mean == 4
    assert interval.high == pytest.approx(4 + 4.302653 * 2 / 3**0.5, abs=1e-5)
    assert interval.low == pytest.approx(4 - 4.302653 * 2 / 3**0.5, abs=1e-5)


def test_one_value_has_no_interval() -> None:
    interval = mean_interval(np.array([3.0]))
    assert (interval.mean, interval.low, interval.high, interval.method) == (3.0, None, None, "none")


def test_constant_values_have_an_interval_without_width() -> None:
    interval = mean_interval(np.full(20, 500.0))
    assert (interval.low, interval.high) == (500.0, 500.0)


def test_bootstrap_leans_towards_the_long_tail() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    interval = mean_interval(values)
    assert interval.method == "bca"
    assert interval.low is not None and interval.high is not None
    assert interval.high - interval.mean > interval.mean - interval.low > 0


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        interval = t_interval(rng.normal(1.0, 2.0, size=8), 0.9)
        covered += interval.low <= 1.0 <= interval.high  # type: ignore[operator]
    assert 0.86 <= covered / 400 <= 0.94


@pytest.mark.parametrize("values", [[], [np.nan, 1.0], [[1.0, 2.0]]])
def test_bad_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values must be"):
        mean_interval(np.array(values))


def test_gain_of_the_minimum_is_paired() -> None:
    # Episodes differ wildly, the agent is better by 1 in each: an unpaired interval would be hundreds wide.
    base = np.array([0.0, 300.0, 900.0, 100.0])
    gain = minimum_gain(base, (base + 1)[None], base, base[None], (0.0, 1.0), 0.95)
    assert gain.mean == pytest.approx(1) and gain.low == pytest.approx(1) and gain.high == pytest.approx(1)


def test_gain_takes_the_minimum_over_attacks_on_both_sides() -> None:
    clean = np.zeros(4)
    agent = np.array([[5.0] * 4, [3.0] * 4])  # worst 3
    base = np.array([[4.0] * 4, [1.0] * 4])  # worst 1
    gain = minimum_gain(clean, agent, clean, base, (0.0, 1.0), 0.95)
    assert (gain.mean, gain.low, gain.high) == (2.0, 2.0, 2.0)


def test_false_gains_are_rarer_than_the_level_though_the_worst_attack_is_chosen_on_the_data() -> None:
    rng = np.random.default_rng(2)
    zeros, wrong = np.zeros(12), 0
    for _ in range(200):
        gain = minimum_gain(zeros, rng.normal(size=(4, 12)), zeros, rng.normal(size=(4, 12)), (0.0, 1.0), 0.9)
        wrong += gain.low > 0 or gain.high < 0  # type: ignore[operator]
    assert wrong / 200 <= 0.1


def test_the_choice_among_attacks_is_paid_for() -> None:
    rng = np.random.default_rng(3)
    zeros, rows = np.zeros(8), rng.normal(size=8)
    one = minimum_gain(zeros, rows[None], zeros, zeros[None], (0.0, 1.0), 0.95)
    four = minimum_gain(zeros, np.stack([rows] * 4), zeros, np.zeros((4, 8)), (0.0, 1.0), 0.95)
    expected = t_interval(rows, 1 - 0.05 / 4)
    assert (four.low, four.high) == pytest.approx((expected.low, expected.high))
    assert four.low < one.low and four.high > one.high  # type: ignore[operator]
