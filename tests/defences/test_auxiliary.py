"""A further term in a loss: its gradient is added, nothing else changes."""

import pytest
import torch as th
from torch import nn

from sb3_prune_robust.defences.auxiliary import carry, wrapped


def test_gradient_by_hand():
    """loss = 5 (3 w) with the term 7 w^2 carried, at w = 2: 15 + 28."""
    w = th.tensor(2.0, requires_grad=True)
    carrier = carry(3.0 * w, 7.0 * w**2)
    assert carrier.item() == 6.0
    (5.0 * carrier).backward()
    assert w.grad.item() == 15.0 + 28.0


def test_share_scales_what_goes_through_the_carrier_only():
    w = th.tensor(2.0, requires_grad=True)
    (5.0 * carry(3.0 * w, 7.0 * w**2, share=0.5)).backward()
    assert w.grad.item() == 7.5 + 28.0


def test_the_term_counts_in_full_where_the_carrier_does_not():
    w = th.tensor([1.0, 2.0], requires_grad=True)
    (0.0 * carry(w, w.sum())).sum().backward()
    assert w.grad.tolist() == [1.0, 1.0]


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(th.tensor(1.0))

    def double(self, x):
        return 2.0 * x * self.w


def test_wrapped_changes_results_and_goes_away():
    module, seen = Doubling(), []

    def change(x, result):
        seen.append(x)
        assert module.double(x).item() == result.item()  # called from inside: as it is
        return result + 100.0

    with wrapped(module, "double", change):
        assert module.double(th.tensor(3.0)).item() == 106.0
        with th.no_grad():
            assert module.double(th.tensor(3.0)).item() == 6.0
    assert module.double(th.tensor(3.0)).item() == 6.0
    assert "double" not in vars(module) and len(seen) == 1


def test_wrapped_goes_away_after_an_error():
    module = Doubling()

    def change(x, result):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match=r"inside"), wrapped(module, "double", change):
        module.double(th.tensor(3.0))
    assert module.double(th.tensor(3.0)).item() == 6.0
