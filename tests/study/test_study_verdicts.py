"""The verdicts of the package's own study, which benchmarks/study_verdicts.py gives by the protocol."""

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from small import changed
from synthetic import record

from sb3_prune_robust.study.config import make_study
from sb3_prune_robust.study.results import Results

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "study_verdicts.py"
_spec = importlib.util.spec_from_file_location("study_verdicts", _SCRIPT)
verdicts = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(verdicts)

ENVS = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0")


@pytest.fixture(scope="module")
def plan():
    """Four environments, two radii; one way of pruning that decides and one that does not."""
    one = {"entry": {"n_timesteps": 100}, "eps": [0.1, 0.2]}
    grid = [
        {"sparsities": [0, 0.3, 0.5, 0.7], "seeds": [0, 1, 2]},
        {"scores": ["random"], "sparsities": [0.5], "seeds": [0]},
    ]
    return make_study(changed(environments=dict.fromkeys(ENVS, one), grid=grid))


def results(plan, clean=lambda cell: 100.0, worst=lambda cell: 50.0, tv=lambda cell: 0.1, keep=lambda cell: True):
    """A study in which the second eps (pruning helps) and random pruning (it harms) say something else."""
    rng = np.random.default_rng(0)
    records = []
    for cell in filter(keep, plan.cells):
        other = cell.scores == "random"
        low = 10.0 if other else worst(cell) + 0.1 * rng.normal()
        radii = {0.1: low, 0.2: 1 + 9 * cell.sparsity}
        one = record(cell.axes(), clean=10.0 if other else clean(cell), worst=radii, tv=tv(cell))
        records.append(one)
    tried = Counter(cell.variant for cell in {replace(cell, seed=0) for cell in plan.cells if cell.sparsity})
    return Results("", "", records, dict.fromkeys(ENVS, 0.0), len(plan.cells), [], 0.95, tried)


def found(plan, **how):
    """By number of the claim, its verdict on the page."""
    made = results(plan, **how)
    page = verdicts.write(made.frame, plan, dict(made.references))
    lines = [line.split("|") for line in page.splitlines() if line.startswith("|")]
    return {int(line[1].strip()[0]): line[3].strip(" *") for line in lines if line[1].strip()[0:2] in ("1.", "2.", "3.", "4.")}


def test_what_the_main_comparison_says_decides(plan):
    better = dict(worst=lambda cell: 50 + 10 * cell.sparsity, tv=lambda cell: 0.1 * (1 - cell.sparsity))
    assert found(plan, **better)[2] == "confirmed"  # supported in four environments
    assert found(plan, clean=lambda cell: 100 - 10 * cell.sparsity, worst=lambda cell: 50 - 10 * cell.sparsity) == {
        1: "undecided",  # equal bounds: neither lower nor higher
        2: "refuted",
        3: "undecided",  # kept in all four, which are not six
        4: "refuted",
    }
    assert found(plan, tv=lambda cell: 0.1 * (1 + cell.sparsity))[1] == "refuted"
    saturated = lambda cell: 1.0 - 2e-16 * (cell.sparsity == 0)  # noqa: E731
    assert found(plan, tv=saturated)[1] == "undecided"  # both are 1 but for rounding
    assert found(plan, clean=lambda cell: 80.0 if cell.sparsity == 0.7 else 100.0)[3] == "refuted"


def test_the_second_radius_is_shown_and_does_not_decide(plan):
    made = results(plan, worst=lambda cell: 50 - 10 * cell.sparsity)
    page = verdicts.write(made.frame, plan, dict(made.references)).split("## The same at the second eps")[1]
    assert "| Acrobot-v1 | 1 | 3.7 | 5.5 | 7.3 |" in page.split("##")[0]


def test_a_level_that_an_environment_has_not_leaves_its_column_empty():
    one = {"entry": {"n_timesteps": 100}, "eps": [0.1, 0.2]}
    block = {"sparsities": [0, 0.3, 0.5, 0.7], "seeds": [0, 1, 2]}
    grid = [{"environments": [ENVS[0]], **block}, {"environments": [ENVS[1]], **block, "sparsities": [0, 0.3, 0.4, 0.5, 0.7]}]
    plan = make_study(changed(environments=dict.fromkeys(ENVS[:2], one), grid=grid))
    made = results(plan, worst=lambda cell: 50 + 10 * cell.sparsity)
    page = verdicts.write(made.frame, plan, dict(made.references))
    lines = [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in page.splitlines() if line.startswith("| CartPole-v1")
    ]
    clean, worst, second, _, bounds, _, difference, _ = lines
    assert (
        clean == ["100", "100", "", "100", "100"]
        and bounds == ["0.1", "0.1", "", "0.1", "0.1"]
        and second == ["1", "3.7", "", "5.5", "7.3"]
    )
    assert [worst[2], difference[1]] == ["", ""] and worst[3].startswith("55") and difference[2].startswith("5.")
    (over,) = (line.split("|")[2:-1] for line in page.splitlines() if line.startswith("| finished (2)"))
    assert [cell.strip().endswith("] (1)") for cell in over] == [False, True, False, False, False]


def test_a_small_gain_over_all_environments_keeps_sweet_spots_undecided(plan):
    gain = lambda cell: 50 + (5 + 3 * (cell.seed - 1)) * (cell.sparsity > 0)  # noqa: E731  three seeds show it nowhere
    assert found(plan, worst=gain)[2] == "undecided"


def test_the_strong_attacks_are_beside_the_short_ones_of_the_same_pairs(plan):
    made = results(plan, worst=lambda cell: 50 + 10 * cell.seed)
    chosen = [cell for cell in plan.cells if cell.env == "Acrobot-v1" and cell.sparsity in (0, 0.7) and cell.seed > 0]
    hard = [record(cell.axes(), "strong", worst={0.1: 20 + 5 * (cell.sparsity > 0) + cell.seed, 0.2: 1.0}) for cell in chosen]
    frame = replace(made, records=[*made.records, *hard]).frame
    (line,) = verdicts.strong(frame, plan)
    assert line[:3] == ["Acrobot-v1", "0.7", 2]
    assert [float(one) for one in line[3:7]] == pytest.approx([65, 21.5, 65, 26.5], abs=0.2)
    assert line[7].startswith("5 [")


def test_environments_that_are_not_finished_do_not_count_and_leave_claims_open(plan):
    keep = lambda cell: (cell.env, cell.sparsity, cell.seed) != ("Acrobot-v1", 0.5, 2)  # noqa: E731
    made = results(plan, keep=keep)
    assert set(verdicts.main_part(made.frame, plan)["env"]) == set(ENVS) - {"Acrobot-v1"}
    assert found(plan, keep=keep, tv=lambda cell: 0.1 * (1 - cell.sparsity))[1] == "open"
    assert found(plan, keep=keep)[3] == "open" and found(plan, keep=keep)[1] == "open, not confirmed"  # bounds are equal


def agents(bound, worst, clean=100.0):
    """Three levels, two seeds; values by level, a row a seed."""
    cells = [(level, seed) for seed in range(2) for level in range(3)]
    values = [(0.3 * level, seed, clean, bound[seed][level], worst[seed][level]) for level, seed in cells]
    return pd.DataFrame(values, columns=["sparsity", "seed", "clean", "tv:best", "worst"])


def test_a_bound_is_ranked_against_the_return_over_all_and_within_seeds():
    # Each seed's tighter bound keeps more; the seeds differ the other way, which only the first number sees.
    mixed = agents([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]], [[30, 20, 10], [90, 80, 70]])
    text = verdicts.against_attacked(mixed, "tv:best")
    assert text.startswith("0.54; -1.00 (p = ")
    # Of 36 pairs of orders 2 are as far from 0: both seeds in step, either way.
    assert float(text.split("p = ")[1].rstrip(")")) == pytest.approx(2 / 36, abs=0.02)
    assert verdicts.against_attacked(agents([[1, 1, 1]] * 2, [[3, 2, 1]] * 2), "tv:best") == "all equal"


def test_what_could_be_gained_at_most_has_the_interval_of_the_differences():
    dense = agents([[0] * 3] * 2, [[60, 0, 0], [40, 0, 0]])  # 40 and 60 to gain
    mean, low, high = 50.0, *(50 + side * stats.t.ppf(1 - 0.025 / 4, 1) * 10 for side in (-1, 1))
    text = verdicts.unharmed(dense, 4, 0.95).replace("[", "").replace("]", "").replace(",", "").split()
    assert [float(one) for one in text] == pytest.approx([mean, low, high], rel=1e-2)


def test_bounds_are_compared_at_the_levels_that_all_environments_have_too():
    one = {"entry": {"n_timesteps": 100}, "eps": [0.1]}
    grid = [
        {"environments": [ENVS[0]], "sparsities": [0, 0.3, 0.7], "seeds": [0, 1]},
        {"environments": [ENVS[1]], "sparsities": [0, 0.7, 0.9], "seeds": [0, 1]},
    ]
    plan = make_study(changed(environments=dict.fromkeys(ENVS[:2], one), grid=grid))
    assert verdicts.common_levels(plan) == [0.7]
    higher = results(
        plan, tv=lambda cell: 0.1 + 0.1 * (cell.env == ENVS[0] and cell.sparsity == 0.7) - 0.05 * (cell.sparsity == 0.3)
    )
    assert (
        "at 0.7 alone `best` is higher in half of them in 1"
        in verdicts.bounds(verdicts.main_part(higher.frame, plan), plan)[1]
    )


@pytest.mark.parametrize("yes, done, verdict", [
    (6, 6, "**confirmed**"), (5, 6, "open"), (5, 7, "**undecided**"),
    (3, 6, "open"), (3, 7, "**refuted**"), (0, 4, "**refuted**"),
])  # fmt: skip
def test_a_verdict_that_nothing_can_turn_is_given_before_all_is_finished(yes, done, verdict):
    assert verdicts.decided(yes, done, 7, 6, 4) == verdict
