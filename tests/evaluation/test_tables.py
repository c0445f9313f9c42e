"""Numbers as the reports show them."""

import json
from pathlib import Path

import pytest

from sb3_prune_robust.evaluation.markdown import write_markdown
from sb3_prune_robust.evaluation.tables import at_least, at_most, number, percent


@pytest.mark.parametrize(
    ("value", "digits", "low", "high"),
    [
        (1234.5678, 4, "1234", "1235"),
        (-1234.5678, 4, "-1235", "-1234"),
        (0.0012367, 3, "0.00123", "0.00124"),
        (999.96, 4, "999.9", "1000"),
        (2.5, 4, "2.5", "2.5"),
        (0.01 / 0.2, 3, "0.05", "0.05"),
        (123456.7, 3, "123456", "123457"),
        (0.0, 4, "0", "0"),
        (float("inf"), 4, "inf", "inf"),
    ],
)
def test_bounds_are_rounded_outward(value: float, digits: int, low: str, high: str) -> None:
    assert (at_least(value, digits), at_most(value, digits)) == (low, high)
    assert float(low) - 1e-12 <= value <= float(high) + 1e-12


def test_numbers_are_rounded_to_the_nearest() -> None:
    assert [number(value) for value in (1234.5678, 0.00123678, -12.0)] == ["1235", "0.001237", "-12"]


def test_sparsities_near_one_are_told_apart() -> None:
    shown = [percent(share) for share in (0.0, 0.3, 0.975, 0.984, 0.995, 0.998)]
    assert shown == ["0%", "30%", "97.5%", "98.4%", "99.5%", "99.8%"]


def test_the_report_of_the_demo_that_is_shown_is_made_of_its_record() -> None:
    folder = Path(__file__).parents[2] / "docs" / "results" / "demo"
    written = write_markdown(json.loads((folder / "report.json").read_text()))
    assert written == (folder / "report.md").read_text()
    assert "Zeros there were before" not in written  # the demo has kept its dense agent
