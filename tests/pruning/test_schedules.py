"""Schedules and distributions against values computed by hand."""

import math

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_prune_robust.pruning.distributions import share
from sb3_prune_robust.pruning.schedules import SCHEDULES, make_schedule


@pytest.mark.parametrize(
    ("name", "values"),
    [
        # at progress 0, .1, .2, .35, .5, .8, 1 with start .2 and end .8: shares of the way 0, .25, .5, 1
        ("one_shot", [0, 0, 0.8, 0.8, 0.8, 0.8, 0.8]),
        ("polynomial", [0, 0, 0, 0.8 * (1 - 27 / 64), 0.8 * 7 / 8, 0.8, 0.8]),
        ("linear", [0, 0, 0, 0.2, 0.4, 0.8, 0.8]),
        ("periodic", [0, 0, 0, 0.16, 0.4, 0.8, 0.8]),
        ("constant", [0.8] * 7),
        ("micro", [0, 0, 0, 0.2, 0.4, 0.8, 0.8]),
    ],
)
def test_schedules_by_hand(name, values):
    schedule = make_schedule(name, 0.8, start=0.2, end=0.8)
    assert [schedule(p) for p in (0, 0.1, 0.2, 0.35, 0.5, 0.8, 1)] == pytest.approx(values)


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1))
def test_schedules_never_fall_and_end_at_the_final_sparsity(name, final, one, other):
    schedule = make_schedule(name, final, start=0.25, end=0.75)
    low, high = sorted((one, other))
    assert 0 <= schedule(low) <= schedule(high) <= final
    assert schedule(0.75) == schedule(1.0) == final


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.1), (math.nan, 0.5)])
def test_start_must_lie_before_end(start, end):
    with pytest.raises(ValueError, match="start < end"):
        make_schedule("linear", 0.5, start, end)


@pytest.mark.parametrize("final", [-0.1, 1.0, math.nan, "0.5", True])
def test_final_sparsity_is_checked(final):
    with pytest.raises(ValueError, match=r"final_sparsity must be a number in \[0, 1\)"):
        make_schedule("linear", final, 0.2, 0.8)


def test_unknown_schedule_lists_the_known():
    with pytest.raises(ValueError, match="schedule='cosine' is unknown; known: one_shot, polynomial"):
        make_schedule("cosine", 0.5, 0.2, 0.8)


def test_erk_by_hand():
    # factor x size = n_in + n_out: 74 and 128; 1010 kept: c = 1010 / 202 = 5, so 370 and 640 of 640 and 4096
    shapes = {"first": (64, 10), "second": (64, 64)}
    assert share("erk", shapes, {"first": 640, "second": 4096}, 1010) == {"first": 370, "second": 640}
    # 3020 kept: c would be 14.95 and the first 1106 of its 640, so it keeps all and the second the other 2380
    assert share("erk", shapes, {"first": 640, "second": 4096}, 3020) == {"first": 640, "second": 2380}


def test_uniform_by_hand():
    shapes = {"first": (64, 10), "second": (64, 64)}
    assert share("uniform", shapes, {"first": 640, "second": 4096}, 2368) == {"first": 320, "second": 2048}
    # 4736 / 3 = 1578.67: 213.33 and 1365.33 round to 213 and 1366 (the larger remainder; they tie) and sum to 1579
    assert sum(share("uniform", shapes, {"first": 640, "second": 4096}, 1579).values()) == 1579
    # the first has only 100 left: the second keeps the rest
    assert share("uniform", shapes, {"first": 100, "second": 4096}, 2368) == {"first": 100, "second": 2268}


@given(st.data(), st.sampled_from(["uniform", "erk"]))
def test_shares_sum_to_the_weight_and_respect_what_is_left(data, distribution):
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5))
    shapes = {f"layer{i}": shape for i, shape in enumerate(sizes)}
    alive = {name: data.draw(st.integers(1, math.prod(shape))) for name, shape in shapes.items()}
    n_keep = data.draw(st.integers(len(shapes), max(sum(alive.values()), len(shapes))))
    counts = share(distribution, shapes, alive, min(n_keep, sum(alive.values())))
    assert sum(counts.values()) == min(n_keep, sum(alive.values()))
    assert all(1 <= counts[name] <= alive[name] for name in shapes)


def test_shares_are_the_same_for_the_same_question():
    assert (
        th.tensor([share("erk", {"a": (3, 5), "b": (5, 3)}, {"a": 15, "b": 15}, 9)["a"] for _ in range(5)]).unique().numel()
        == 1
    )
