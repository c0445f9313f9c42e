"""What variants are called in tables and figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from sb3_prune_robust.study.statistics import VARIANT

Variant = tuple[str, ...]


def variants(table: pd.DataFrame) -> list[Variant]:
    """
    The variants of a table, each once, sorted.

    :param table: with the columns of a variant
    :return: their values
    """
    return sorted(tuple(row) for row in table[VARIANT].drop_duplicates().itertuples(index=False))


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """
    :param table: any
    :return: its rows, by name of column
    """
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def labels(named: Iterable[Variant]) -> dict[Variant, str]:
    """
    Names that tell variants apart: the axes in which they differ, always with the algorithm.

    :param named: the variants that appear together
    :return: the name of each
    """
    named = list(named)
    values = [{variant[i] for variant in named} - {"none"} for i in range(len(VARIANT))]
    shown = [i for i in range(len(VARIANT)) if i == 0 or len(values[i]) > 1]
    return {variant: ", ".join(_part(variant[i], i) for i in shown if variant[i] != "none") for variant in named}


def _part(value: str, axis: int) -> str:
    return value.upper() if axis == 0 else value


def of_variant(table: pd.DataFrame, variant: Variant) -> pd.DataFrame:
    """
    The rows of one variant.

    :param table: with the columns of a variant
    :param variant: its values
    :return: the rows
    """
    return table[(table[VARIANT] == list(variant)).all(axis=1)]
