"""What a study has found so far, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

AXES = ("env", "algorithm", "policy", "scores", "distribution", "schedule", "sparsity", "seed")


@dataclass(frozen=True)
class Results:
    """
    The finished cells of a study.

    :param name: of the study
    :param description: what it asks, Markdown
    :param records: one for each finished cell and stage
    :param references: by environment, the mean return of uniformly random actions
    :param planned: number of cells in the grid, finished or not
    :param faults: a sentence for each cell whose file is damaged, or whose last run failed
    :param confidence: level of all intervals
    :param tried: by environment, algorithm, policy, scores, distribution and schedule, the number of sparsities in the grid:
        what intervals are corrected for, finished or not
    """

    name: str
    description: str
    records: Sequence[Mapping[str, Any]]
    references: Mapping[str, float]
    planned: int
    faults: Sequence[str] = field(default_factory=tuple)
    confidence: float = 0.95
    tried: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each cell, stage and eps: means over episodes and states; what is not there is NaN."""
        rows = [{**row, "n_planned": self._planned(record["cell"])} for record in self.records for row in _rows(record)]
        return _lowest_known(pd.DataFrame(rows))

    def _planned(self, cell: Mapping[str, Any]) -> int:
        return self.tried.get(tuple(str(cell[axis]) for axis in AXES[:-2]), 0)


def _lowest_known(frame: pd.DataFrame) -> pd.DataFrame:
    """What a short attack has found of an agent is as true beside the strong ones: worst is the lowest of all."""
    if frame.empty:
        return frame
    short = frame[["worst", "worst_attack"]].where(frame["stage"] == "short")
    short = short.groupby([frame[name] for name in (*AXES, "eps", "norm")]).transform("first")
    lower = (frame["stage"] == "strong") & (short["worst"] < frame["worst"])
    frame.loc[lower, ["worst", "worst_attack"]] = short[lower].assign(worst_attack=short["worst_attack"] + " (short)")
    return frame


def _rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    certificates = {one["eps"]: one for one in record["certificates"]}
    return [{**_common(record), **_attacked(one), **_certified(certificates.get(one["eps"]))} for one in record["attacked"]]


def _common(record: Mapping[str, Any]) -> dict[str, Any]:
    training, clean = record["training"], record["clean"]
    seconds = {f"{what}_seconds": value for what, value in record["cpu_seconds"].items()}
    return {
        **{axis: record["cell"][axis] for axis in AXES},
        "stage": record["stage"],
        "clean": float(np.mean(clean["deterministic"])),
        "sampled": float(np.mean(clean["sampled"])) if clean["sampled"] else np.nan,
        "reached": training["sparsity"]["actor"],
        "half_eps": record["certified_return"].get("half_eps", np.nan),
        "timesteps": training["timesteps"],
        "resumed": training["resumed"],
        **seconds,
    }


def _attacked(one: Mapping[str, Any]) -> dict[str, Any]:
    means = {name: float(np.mean(played["returns"])) for name, played in one["attacks"].items()}
    worst = min(means, key=lambda name: means[name])
    columns = {f"attack:{name}": mean for name, mean in means.items()}
    tried = ", ".join(sorted([*one["attacks"], *one["skipped"]]))  # an attack that found nothing was tried all the same
    return {
        "eps": one["eps"],
        "norm": one["norm"],
        "worst": means[worst],
        "worst_attack": worst,
        "attacks_tried": tried,
        **columns,
    }


def _certified(one: Mapping[str, Any] | None) -> dict[str, Any]:
    if one is None:
        return {}
    return {f"{what}:{method}": value for what in ("tv", "radius") for method, value in one[what].items()}
