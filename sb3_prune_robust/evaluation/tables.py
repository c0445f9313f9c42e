"""Numbers and tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *lines])
