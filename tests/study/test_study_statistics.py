import numpy as np
import pandas as pd
import pytest
from rliable import library, metrics
from synthetic import ENVS, PLAIN, cell, record, study

from sb3_prune_robust.evaluation.statistics import t_interval
from sb3_prune_robust.evaluation.sweet_spots import Candidate, sweet_spots
from sb3_prune_robust.study import aggregates, claims
from sb3_prune_robust.study.labels import labels, variants
from sb3_prune_robust.study.results import Results
from sb3_prune_robust.study.spots import best_sparsities
from sb3_prune_robust.study.statistics import (
    differences,
    frontier,
    normalised,
    pairs,
    scale,
    seeded,
    with_dense,
)

ENV = "CartPole-v1"
RANDOM = ("ppo", "plain", "random", "uniform", "polynomial")
REPS = 100


def table(*records) -> pd.DataFrame:
    return Results("test", "", records, {}, len(records)).frame


def agents(sparsity, clean, worst, variant=PLAIN, stage="short", **more) -> list:
    """One for each seed."""
    found = zip(clean, worst, strict=True)
    return [record(cell(ENV, variant, sparsity, seed), stage, c, {0.1: w}, **more) for seed, (c, w) in enumerate(found)]


def only(found: pd.DataFrame, **values) -> pd.Series:
    """The one row with these values."""
    rows = found[np.logical_and.reduce([found[name] == value for name, value in values.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_dense_agent_belongs_to_each_variant_of_its_algorithm_and_policy():
    sa = ("sappo", "plain", *PLAIN[2:])
    frame = table(*agents(0, [9], [5]), *agents(0.5, [9], [5]), *agents(0.5, [9], [5], RANDOM), *agents(0, [9], [5], sa))
    rows = with_dense(frame)
    dense = rows[rows["sparsity"] == 0]
    assert sorted(zip(dense["algorithm"], dense["scores"], strict=True)) == [
        ("ppo", "magnitude"),
        ("ppo", "random"),
        ("sappo", "none"),
    ]
    assert len(rows) == 5 and list(rows) == list(frame)


def test_a_curve_starts_at_the_dense_agents_of_its_own_seeds():
    frame = table(*agents(0, [9] * 3, [5, 5, 1]), *agents(0.5, [9] * 2, [5] * 2), *agents(0.9, [9] * 3, [5] * 3, RANDOM))
    found = frontier(frame, reps=REPS)
    dense = found[(found["sparsity"] == 0) & (found["quantity"] == "worst")].set_index("scores")["values"]
    assert dense["magnitude"] == [5, 5] and dense["random"] == [5, 5, 1] and "none" not in dense


def test_the_lowest_that_is_known_of_an_agent_is_its_worst():
    frame = table(*agents(0, [9, 9], [5, 3]), *agents(0, [9, 9], [4, 4], stage="strong"))
    assert frame["worst"].tolist() == [5, 3, 4, 3]
    assert frame["worst_attack"].tolist() == ["mad", "mad", "mad", "mad (short)"]


def test_a_cell_that_is_there_twice_is_refused():
    frame = table(*agents(0, [9], [5]), *agents(0.5, [9], [5]), *agents(0.5, [8], [5]))
    for function in (with_dense, pairs, differences, best_sparsities, claims.regret):
        with pytest.raises(ValueError, match=r"twice.*CartPole-v1.*0\.5"):
            function(frame)


def test_pruned_agents_are_beside_the_dense_one_of_their_seed():
    frame = table(*agents(0, [100, 90], [50, 40]), *agents(0.5, [99, 88, 77], [61, 52, 43]))
    both = pairs(frame)
    assert both["dense_clean"].tolist()[:2] == [100, 90] and both["dense_worst"].tolist()[:2] == [50, 40]
    assert both["paired"].tolist() == [True, True, False]  # seed 2 has no dense agent


def test_agents_that_met_other_attacks_are_no_pair():
    dense, pruned = agents(0, [100], [50]), agents(0.5, [100], [50])
    del pruned[0]["attacked"][0]["attacks"]["random"]
    frame = table(*dense, *pruned)
    assert pairs(frame)["paired"].tolist() == [False]
    row = only(differences(frame), quantity="worst")
    assert (row["n_pairs"], row["n_unpaired"]) == (0, 1) and np.isnan(row["mean"]) and not row["supported"]


def test_an_attack_that_found_nothing_on_one_of_them_was_tried_on_both():
    dense, pruned = agents(0, [100], [50]), agents(0.5, [100], [20])
    one = dense[0]["attacked"][0]
    del one["attacks"]["robust-sarsa"]
    one["skipped"]["robust-sarsa"] = "nothing to learn"
    frame = table(*dense, *pruned, *agents(0.5, [100, 100], [20, 30])[1:])
    assert pairs(frame)["paired"].tolist() == [True, False]  # the second has no dense one
    assert only(differences(frame), quantity="worst")["mean"] == -30


def test_scale():
    frame = table(*agents(0, [100, 200], [50, 50]), *agents(0.5, [900, 900], [50, 50]))
    assert scale(frame, ENV, {ENV: 20.0}) == (20.0, 130.0)
    rows = normalised(frame, {ENV: 20.0})
    assert rows["clean"].tolist() == pytest.approx([80 / 130, 180 / 130, 880 / 130, 880 / 130])
    assert rows["worst"].tolist() == pytest.approx([30 / 130] * 4)


@pytest.mark.parametrize("variant, references, message", [
    (PLAIN, {}, "references.*CartPole-v1"),
    (("sappo", *PLAIN[1:]), {ENV: 20.0}, "no dense agent of ppo.*CartPole-v1"),
    (PLAIN, {ENV: 100.0}, "CartPole-v1: dense PPO returns 100, random actions 100"),
])  # fmt: skip
def test_without_a_scale_nothing_is_normalised(variant, references, message):
    with pytest.raises(ValueError, match=message):
        normalised(table(*agents(0, [100], [50], variant)), references)


def test_frontier_has_rliables_intervals_and_none_for_one_seed():
    worst = [50.0, 40.0, 90.0, 60.0, 10.0]
    found = frontier(table(*agents(0, [100] * 5, worst), *agents(0.3, [90] * 5, [9] * 5), *agents(0.5, [80], [70])), reps=REPS)
    row = only(found, quantity="worst", sparsity=0.0)
    assert (row["n"], row["mean"], row["iqm"]) == (5, 50.0, 50.0)  # the middle three: 40, 50, 60
    assert row["values"] == worst
    matrix = np.array(worst)[:, None]
    _, intervals = library.get_interval_estimates({"": matrix}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000)
    assert [row["low"], row["high"]] == pytest.approx(intervals[""][:, 0], abs=12)
    one = only(found, quantity="worst", sparsity=0.5)
    assert one["n"] == 1 and np.isnan([one["low"], one["high"]]).all()
    assert set(found["quantity"]) == {"clean", "worst", "attack:random", "attack:mad", "attack:robust-sarsa"}


def test_frontier_intervals_repeat_and_leave_the_generator_alone():
    frame = study([ENV], sparsities=(0, 0.5), n_seeds=3).frame
    np.random.seed(1)  # noqa: NPY002
    first = frontier(frame, reps=REPS)
    drawn = np.random.rand()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert drawn == np.random.rand()  # noqa: NPY002
    pd.testing.assert_frame_equal(first, frontier(frame, reps=REPS))


def test_differences_are_students_and_corrected_for_the_sparsities_tried():
    dense, light = agents(0, [100] * 3, [50, 40, 30]), agents(0.5, [98] * 3, [60, 55, 50])
    heavy = agents(0.9, [50] * 3, [50, 40, 29])
    found = differences(table(*dense, *light, *heavy))
    gains = {"clean": [-2] * 3, "worst": [10, 15, 20], "mean": [4, 6.5, 9], "gap": [12, 17, 22]}
    for quantity, values in gains.items():
        row, expected = only(found, quantity=quantity, sparsity=0.5), t_interval(np.array(values), 0.975)
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((expected.mean, expected.low, expected.high))
        assert row["supported"] == (expected.low > 0) and row["harmful"] == (expected.high < 0)
        assert (row["n_pairs"], row["n_unpaired"], row["n_tried"]) == (3, 0, 2)


def test_a_smaller_gap_counts_only_where_the_clean_return_is_kept():
    dense = agents(0, [100, 101, 102], [50, 51, 52])
    found = differences(table(*dense, *agents(0.5, [91] * 3, [89] * 3), *agents(0.9, [60] * 3, [59] * 3)))
    light, heavy = (only(found, quantity="gap", sparsity=s) for s in (0.5, 0.9))
    assert light["low"] > 0 and light["kept"] and light["supported"]
    assert heavy["low"] > 0 and not heavy["kept"] and not heavy["supported"]
    assert only(found, quantity="worst", sparsity=0.9)["supported"]  # which asks nothing of the clean return


def test_one_pair_has_no_interval_and_no_verdict():
    found = differences(table(*agents(0, [100], [50]), *agents(0.5, [99], [90])))
    assert found["low"].isna().all() and found["high"].isna().all() and not found[["supported", "harmful"]].any(axis=None)
    spots = best_sparsities(table(*agents(0, [100], [50]), *agents(0.5, [99], [90])))
    assert (spots["sparsity"] == 0.5).all() and spots["low"].isna().all() and not spots["supported"].any()


def test_best_sparsities_are_those_of_evaluation():
    clean, worst = np.array([100.0, 102, 98]), {0: [50.0, 45, 40], 0.5: [70.0, 66, 65], 0.9: [55.0, 70, 51]}
    frame = table(*(one for level, values in worst.items() for one in agents(level, clean - 5 * level, values)))
    found = best_sparsities(frame)
    expected = sweet_spots([Candidate(s, clean - 5 * s, {"worst": np.array(v)}, of_agents=True) for s, v in worst.items()])
    for spot in expected:
        row = only(found, criterion=spot.criterion)
        assert (row["sparsity"], row["supported"]) == (spot.sparsity, spot.supported)
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((spot.gain.mean, spot.gain.low, spot.gain.high))
        assert row["worst_low"] == pytest.approx(spot.worst_gain.low)
    assert found["supported"].any()


def test_sparsities_are_compared_on_the_seeds_that_have_all_and_others_are_counted():
    dense, light = agents(0, [100] * 4, [50, 51, 52, 53]), agents(0.5, [100] * 4, [70, 71, 73, 10])
    found = best_sparsities(table(*dense, *light, *agents(0.9, [100] * 3, [40, 41, 42])))
    row = only(found, criterion="worst")
    assert (row["n_pairs"], row["n_unpaired"], row["sparsity"]) == (3, 1, 0.5)
    assert row["mean"] == pytest.approx((20 + 20 + 21) / 3)
    none = best_sparsities(table(*agents(0.5, [100], [50])))
    assert none["n_pairs"].tolist() == [0] * 3 and none["sparsity"].isna().all() and not none["supported"].any()


def test_the_strong_stage_pays_for_the_sparsities_of_the_short_one():
    records = [
        one
        for level, worst in {0: 50, 0.3: 55, 0.5: 70, 0.9: 40}.items()
        for one in agents(level, [100] * 2, [worst, worst + level])
    ]
    strong = agents(0, [100] * 2, [40, 40], stage="strong") + agents(0.5, [100] * 2, [60, 61], stage="strong")
    frame = table(*records, *strong)
    expected = t_interval(np.array([20.0, 21.0]), 1 - 0.05 / 3)
    spot = only(best_sparsities(frame), stage="strong", criterion="worst")
    assert (spot["low"], spot["high"]) == pytest.approx((expected.low, expected.high))
    row = only(differences(frame), stage="strong", quantity="worst")
    assert (row["n_tried"], row["low"]) == (3, pytest.approx(expected.low))


def test_without_pruned_agents_the_tables_are_empty():
    for frame in (table(*agents(0, [100], [50])), table()):
        assert differences(frame).empty and best_sparsities(frame).empty
        assert {"sparsity", "supported"} <= set(differences(frame)) & set(best_sparsities(frame))


def test_aggregates_are_rliables():
    results = study(sparsities=(0, 0.5), n_seeds=4)
    rows = aggregates.at_one_eps(normalised(results.frame, results.references), "short")
    found = aggregates.aggregate(results.frame, results.references, reps=REPS)
    pruned, dense = (
        rows[rows["sparsity"] == s].pivot(index="seed", columns="env", values="worst").to_numpy() for s in (0.5, 0)
    )
    assert pruned.shape == (4, 3)
    asked = {
        "worst": (pruned, metrics.aggregate_iqm),
        "difference": (pruned - dense, metrics.aggregate_iqm),
        "difference_mean": (pruned - dense, metrics.aggregate_mean),
        "improvement": ((pruned, dense), metrics.probability_of_improvement),
    }
    for quantity, (scores, function) in asked.items():
        row = only(found, sparsity=0.5, quantity=quantity)
        with seeded():
            points, intervals = library.get_interval_estimates({"": scores}, lambda *x: np.array([function(*x)]), reps=REPS)  # noqa: B023
        assert row["value"] == pytest.approx(points[""][0])
        assert [row["low"], row["high"]] == pytest.approx(intervals[""][:, 0])
    assert only(found, sparsity=0.0, quantity="worst")["value"] == pytest.approx(metrics.aggregate_iqm(dense))


def test_probability_of_improvement_is_rliables_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, size=(5, 3)), rng.integers(0, 4, size=(6, 3))
    assert aggregates.probability_of_improvement(x, y) == pytest.approx(metrics.probability_of_improvement(x, y))
    assert aggregates.probability_of_improvement(x, x) == 0.5


def test_environments_without_a_pair_are_left_out_and_listed_and_seeds_are_common():
    def keep(cell, stage):
        lacking = cell["env"] == "Hopper-v5" and cell["sparsity"] == 0.5
        return not lacking and not (cell["env"] == "Acrobot-v1" and cell["seed"] == 1)

    results = study(sparsities=(0, 0.5), n_seeds=3, keep=keep)
    found = aggregates.aggregate(results.frame, results.references, reps=REPS)
    row = only(found, sparsity=0.5, quantity="difference")
    assert (row["envs"], row["left_out"], row["n_seeds"]) == (["Acrobot-v1", "CartPole-v1"], ["Hopper-v5"], 2)
    dense = only(found, sparsity=0.0, quantity="worst", scores="magnitude")
    assert dense["left_out"] == ["Hopper-v5"]  # that of the variant speaks of the same environments


def test_one_common_seed_has_no_interval_and_none_no_value():
    results = study(sparsities=(0, 0.5), n_seeds=2, keep=lambda cell, stage: cell["env"] != "Hopper-v5" or cell["seed"] == 0)
    found = aggregates.aggregate(results.frame, results.references, reps=REPS)
    assert (found["n_seeds"] == 1).all() and found["value"].notna().all() and found["low"].isna().all()
    assert aggregates.profiles(results.frame, results.references, reps=REPS)["low"].isna().all()
    results = study(
        sparsities=(0, 0.5), n_seeds=2, keep=lambda cell, stage: (cell["env"] != "Hopper-v5") == (cell["seed"] == 0)
    )
    assert aggregates.aggregate(results.frame, results.references, reps=REPS)["value"].isna().all()
    assert aggregates.profiles(results.frame, results.references, reps=REPS).empty


def test_aggregates_take_the_first_eps_unless_told():
    frame = study().frame
    first = aggregates.at_one_eps(frame, "short")
    assert first.groupby("env")["eps"].unique().map(list).to_dict() == {env: [radii[0]] for env, (*_, radii) in ENVS.items()}
    told = aggregates.at_one_eps(frame, "short", {"Acrobot-v1": 0.2})
    assert set(told.loc[told["env"] == "Acrobot-v1", "eps"]) == {0.2} and len(told) == len(first)
    with pytest.raises(ValueError, match=r"eps: Acrobot-v1 was not attacked at 0\.9.*0\.05"):
        aggregates.at_one_eps(frame, "short", {"Acrobot-v1": 0.9})


def test_profiles_are_rliables():
    results = study(sparsities=(0, 0.5), n_seeds=3)
    found = aggregates.profiles(results.frame, results.references, reps=REPS)
    rows = aggregates.at_one_eps(normalised(results.frame, results.references), "short")
    scores = rows[rows["sparsity"] == 0.5].pivot(index="seed", columns="env", values="worst").to_numpy()
    with seeded():
        share, intervals = library.create_performance_profile({"": scores}, aggregates.TAUS, reps=REPS)
    own = found[found["sparsity"] == 0.5]
    assert own["share"].tolist() == pytest.approx(share[""])
    assert own["low"].tolist() == pytest.approx(intervals[""][0])


def test_regret_by_hand():
    dense, pruned = agents(0, [100, 90], [50, 60]), agents(0.5, [95, 91, 10], [70, 71, 5])
    other = agents(0.5, [120, 118], [0, 0], RANDOM)  # the best clean return in this environment: 119
    row = only(claims.regret(table(*dense, *pruned, *other)), scores="magnitude")
    assert row["n_pairs"] == 2
    assert (row["clean_task"], row["pruning_loss"], row["robustness"]) == (119 - 95, 2, (25 + 20) / 2)
    assert row["robustness_gain"] == (50 + 30) / 2 - (25 + 20) / 2


def test_bounds_that_differ_by_rounding_are_equal():
    found = claims.bounds_tighten(
        table(record(cell(ENV, PLAIN, 0, 0), tv=0.4), record(cell(ENV, PLAIN, 0.5, 0), tv=0.4 - 1e-15))
    )
    assert only(found, bound="tv:crown")["share"] == 0.0


def test_bounds_by_hand():
    dense = [agents(0, [100], [50], tv=0.2)[0], record(cell(ENV, PLAIN, 0, 1), tv=0.4)]
    pruned = [record(cell(ENV, PLAIN, 0.5, 0), tv=0.1), record(cell(ENV, PLAIN, 0.5, 1), tv=0.5)]
    unpaired = record(cell(ENV, PLAIN, 0.5, 2), tv=0.1)
    found = claims.bounds_tighten(table(*dense, *pruned, unpaired))
    row = only(found, bound="tv:crown")
    assert (row["n_pairs"], row["share"], row["ratio"]) == (2, 0.5, pytest.approx((0.5 + 1.25) / 2))
    row = only(found, bound="tv:abs")  # both bounds at most 1: of neither seed it falls
    assert (row["share"], row["ratio"]) == (0.0, 1.0)
    assert only(found, bound="radius:abs")["ratio"] == pytest.approx((0.5 + 1.25) / 2)
    bare = record(cell(ENV, PLAIN, 0, 0))
    bare["certificates"] = []
    assert claims.bounds_tighten(table(bare)).empty


def test_support_is_counted_with_what_chance_would_give():
    dense = agents(0, [100, 101, 102], [50, 51, 52])
    better, worse = agents(0.5, [100, 101, 102], [70, 72, 71]), agents(0.9, [100, 101, 102], [30, 31, 32.5])
    single = agents(0.7, [100], [90], RANDOM)
    found = claims.supported(table(*dense, *better, *worse, *single))
    row = only(found, quantity="worst")
    counted = ("supported", "harmful", "undecided", "without_interval", "tried")
    assert [row[name] for name in counted] == [1, 1, 0, 1, 3]
    assert row["by_chance"] == pytest.approx(2 * 0.025 / 2)
    shown = only(claims.sweet_spots_shown(table(*dense, *better, *worse, *single)), criterion="worst")
    assert (shown["supported"], shown["dense_best"], shown["tried"]) == (1, 0, 2)


def test_clean_kept_also_of_negative_returns():
    found = claims.clean_kept(table(*agents(0, [-100, -100, -100], [-300] * 3), *agents(0.5, [-105, -120, -90], [-300] * 3)))
    assert (found["n_pairs"].item(), found["share"].item(), found["better"].item()) == (
        3,
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
    )


def test_not_dominated():
    levels = {0: (100, 50), 0.3: (101, 50), 0.5: (90, 60), 0.7: (100, 50), 0.9: (90, 50)}
    found = claims.not_dominated(table(*(one for level, (c, w) in levels.items() for one in agents(level, [c], [w]))))
    assert found["dominated"].tolist() == [False, False, False, True]
    assert found["dominates"].tolist() == [True, False, False, False]


def test_variants_are_called_by_what_tells_them_apart():
    lipschitz, dense = ("ppo", "lipschitz", *PLAIN[2:]), ("ppo", "plain", "none", "none", "none")
    named = labels([PLAIN, RANDOM, lipschitz, dense])
    assert list(named.values()) == ["PPO, plain, magnitude", "PPO, plain, random", "PPO, lipschitz, magnitude", "PPO, plain"]
    assert labels([PLAIN, dense]) == {PLAIN: "PPO", dense: "PPO"}
    assert variants(table(*agents(0, [1], [1]), *agents(0.5, [1], [1]))) == [PLAIN, dense]


def test_the_correction_counts_sparsities_that_are_not_finished_yet():
    """Else the first sparsity to be finished would be judged as if it were the only one."""
    records = study().records
    whole = Results("", "", records, {}, 9)
    one = [record for record in records if record["cell"]["sparsity"] in (0, 0.5)]
    cell = next(record["cell"] for record in one if record["cell"]["sparsity"] == 0.5)
    variant = tuple(cell[axis] for axis in ("env", "algorithm", "policy", "scores", "distribution", "schedule"))
    alone, planned = (Results("", "", one, {}, 9, tried=tried) for tried in ({}, {variant: 6}))

    def tried(found):
        both = pairs(found.frame)
        return set(both.loc[(both[["env", "algorithm", "policy", *variant_axes]] == variant).all(axis=1), "n_tried"])

    variant_axes = ["scores", "distribution", "schedule"]
    assert tried(alone) == {1} and tried(planned) == {6} and tried(whole) != {1}
