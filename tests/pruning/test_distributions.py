"""How a sparsity is shared over layers of different shapes."""

import pytest

from sb3_prune_robust.pruning.distributions import share

MATRICES = {"wide": (10, 6), "thin": (2, 30)}
MIXED = {"convolution": (4, 2, 3, 3), "matrix": (10, 6)}


def alive(shapes):
    sizes = {}
    for name, shape in shapes.items():
        sizes[name] = 1
        for n in shape:
            sizes[name] *= n
    return sizes


@pytest.mark.parametrize(
    ("shapes", "distribution", "n_keep", "expected"),
    [
        (MATRICES, "uniform", 60, {"wide": 30, "thin": 30}),
        (MATRICES, "erk", 48, {"wide": 16, "thin": 32}),  # 16 : 32
        (MIXED, "uniform", 66, {"convolution": 36, "matrix": 30}),  # 72 : 60
        (MIXED, "erk", 56, {"convolution": 24, "matrix": 32}),  # 4 + 2 + 3 + 3 = 12 : 16
        (MIXED, "erk", 126, {"convolution": 66, "matrix": 60}),  # the matrix is full
    ],
)
def test_shares_by_hand(shapes, distribution, n_keep, expected):
    assert share(distribution, shapes, alive(shapes), n_keep) == expected


def test_a_layer_keeps_no_more_than_it_has_left():
    assert share("erk", MATRICES, {"wide": 60, "thin": 5}, 30) == {"wide": 25, "thin": 5}
