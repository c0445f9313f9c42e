"""
The ablations of the package's own study beside the agents of its main comparison with which they share all but one thing.

    python benchmarks/study_ablations.py      # half a minute; reads docs/study/results, writes docs/study/ablations.md

Each agent is compared with that of its environment, sparsity and seed. Three seeds: described, not judged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from sb3_prune_robust.evaluation.tables import at_least, at_most, number, table
from sb3_prune_robust.study.config import read_study
from sb3_prune_robust.study.plan import collect
from sb3_prune_robust.study.results import AXES
from sb3_prune_robust.study.store import StudyStore

STUDY = Path(__file__).parents[1] / "docs" / "study"
#: Title, the axis of the grid that differs, its value in the ablation and in the main comparison.
COMPARISONS = (
    ("Micro-pruning against the polynomial schedule", "schedule", "micro", "polynomial"),
    ("Random pruning against magnitude", "scores", "random", "magnitude"),
    ("Lipschitz policies against SB3's", "policy", "lipschitz", "plain"),
    ("SA-PPO against PPO", "algorithm", "sappo", "ppo"),
)
MEASURED = ("clean", "worst", "tv:best", "half_eps")
HEADER = (
    "environment",
    "eps",
    "sparsity",
    "agents",
    "clean",
    "worst",
    "worst by seed",
    "worst is higher",
    "tv, best",
    "half eps",
)


def pairs(frame: pd.DataFrame, axis: str, ablated: str, usual: str) -> pd.DataFrame:
    """
    Agents of an ablation, each in one row with its counterpart for each eps.

    :param frame: of the study's results
    :param axis: what differs
    :param ablated: its value in the ablation
    :param usual: its value in the main comparison
    :return: the columns ``MEASURED`` of the ablation, and with the suffix ``_usual`` those of the counterpart
    """
    short = frame[frame["stage"] == "short"]
    same = [name for name in (*AXES, "eps") if name != axis]
    one, other = (short[short[axis] == value][[*same, *MEASURED]] for value in (ablated, usual))
    return one.merge(other, on=same, suffixes=("", "_usual"), validate="one_to_one").sort_values(
        ["env", "eps", "sparsity", "seed"]
    )


def rows(both: pd.DataFrame) -> list[list[object]]:
    """Of the page's table: the counterpart's figure first, the ablation's behind it."""
    lines = []
    for (env, eps, level), of in both.groupby(["env", "eps", "sparsity"], sort=False):
        clean, worst = (f"{number(of[f'{name}_usual'].mean())}; {number(of[name].mean())}" for name in MEASURED[:2])
        by_seed = "; ".join(", ".join(f"{value:.0f}" for value in of[name]) for name in ("worst_usual", "worst"))
        higher = f"{(of['worst'] > of['worst_usual']).sum()} of {len(of)}"
        tv = "; ".join(_certified(of[name], at_most) for name in ("tv:best_usual", "tv:best"))
        half = "; ".join(_certified(of[name], at_least) for name in ("half_eps_usual", "half_eps"))
        lines.append([env, f"{eps:g}", f"{level:g}", len(of), clean, worst, by_seed, higher, tv, half])
    return lines


def _certified(values: pd.Series, rounded: Callable[[float, int], str]) -> str:
    return "-" if values.isna().any() else rounded(float(values.mean()), 3)


def write(frame: pd.DataFrame) -> str:
    """The page; of a comparison with no finished pair it says so."""
    sections = [
        "# Ablations\n\nWritten by `python benchmarks/study_ablations.py` from `docs/study/results`. Figures twice: that of "
        "the main comparison, then that of the ablation, the mean of agents of the same seeds; *worst* is the lowest mean "
        "return over the short attacks, *tv, best* the mean bound on total variation at this eps, *half eps* the one at which "
        "half of the clean return is certified (-: not certified of each agent; certified means are rounded outward). Three "
        "seeds say little: nothing here is a verdict."
    ]
    for title, *how in COMPARISONS:
        found = rows(pairs(frame, *how))
        sections += [f"## {title}", table(HEADER, found) if found else "No agent is finished yet."]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    results = collect(read_study(STUDY / "main.yml"), StudyStore(STUDY / "results"))
    (STUDY / "ablations.md").write_text(write(results.frame))
