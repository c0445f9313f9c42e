"""Numbers and tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any


def interval(cell: Mapping[str, Any]) -> str:
    """A mean with its interval, as far as they are known, and the agents on which an attack found nothing."""
    if "mean" not in cell:
        return "no attack"
    note = f" (nothing found on {', '.join(cell['nothing_found'])})" if cell.get("nothing_found") else ""
    ends = "" if cell["low"] is None else f" [{number(cell['low'])}, {number(cell['high'])}]"
    return number(cell["mean"]) + ends + note


def gain(gain: Mapping[str, Any] | None) -> str:
    """The dense agent gains nothing over itself."""
    return "-" if gain is None else interval(gain)


def number(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def at_least(value: float, digits: int = 4) -> str:
    """A lower bound as :func:`number`, rounded down: what is shown must hold, too."""
    return _rounded(value, digits, ROUND_FLOOR)


def at_most(value: float, digits: int = 4) -> str:
    """An upper bound, rounded up."""
    return _rounded(value, digits, ROUND_CEILING)


def _rounded(value: float, digits: int, rounding: str) -> str:
    if value == 0 or not math.isfinite(value):
        return number(value)
    last = min(math.floor(math.log10(abs(value))) + 1 - digits, 0)  # exponent of the last digit shown
    exact = Decimal(f"{value:.12g}")  # 0.01 / 0.2 is a little less than 0.05 in floating point
    return number(float(exact.quantize(Decimal(1).scaleb(last), rounding)))


def percent(share: float) -> str:
    """As many digits as tell 0.995 from 0.998, and neither from 1."""
    return f"{100 * share:.4g}%"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *lines])
