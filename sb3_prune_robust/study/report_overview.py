"""What a study's report says of the study itself: what is there, how to read it, what it took."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sb3_prune_robust.evaluation.tables import number, table
from sb3_prune_robust.study.results import AXES, Results
from sb3_prune_robust.study.statistics import PRUNING


def there(results: Results, frame: pd.DataFrame) -> list[str]:
    """
    :param results: of the study
    :param frame: its table
    :return: how much is finished, and what is wrong; Markdown
    """
    done = {tuple(record["cell"][axis] for axis in AXES) for record in results.records}
    text = f"**{len(done)} of {results.planned} planned agents** are trained and measured."
    if len(done) < results.planned:
        text += " The study is not finished: what follows may change."
    faults = "\n".join(f"- {fault}" for fault in results.faults)
    faulty = [f"{len(results.faults)} fault(s), of cells that are not counted:", faults] if faults else []
    return ["## What is there", text, *faulty, *([] if frame.empty else [_overview(results, frame)])]


def _overview(results: Results, frame: pd.DataFrame) -> str:
    lines = []
    for (env, stage), rows in _in_order(frame, ["env", "stage"]):
        agents, radii = rows.drop_duplicates([*AXES]), _list(rows["eps"].unique())
        known = [
            len(agents),
            rows["seed"].nunique(),
            _list(sorted(rows["sparsity"].unique())),
            f"{rows['norm'].iloc[0]}: {radii}",
        ]
        random = number(results.references[env]) if env in results.references else "not known"
        lines.append([env, stage, *known, f"{agents['timesteps'].max():,}", random])
    header = ["environment", "attacks", "agents", "seeds", "sparsities", "eps", "training steps", "return of random actions"]
    return table(header, lines)


def _in_order(frame: pd.DataFrame, keys: list[str]) -> Any:
    return frame.groupby(keys, sort=False)


def _list(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)


def reading(frame: pd.DataFrame, confidence: float) -> list[str]:
    """
    :param frame: of the results
    :param confidence: level of intervals
    :return: what words and signs mean; Markdown
    """
    pruned = frame[frame["sparsity"] > 0]
    rows = {"policy": frame, **dict.fromkeys(PRUNING, pruned)}
    shared = [f"{axis} *{found[axis].iloc[0]}*" for axis, found in rows.items() if found[axis].nunique() == 1]
    return [
        "## How to read this",
        "*Worst* is, for each agent, its lowest mean return over the attacks tried: an upper bound on its true worst case; "
        "what the short attacks found counts among the strong too. Attacked is the policy's mode; certificates are of the "
        "policy that samples, certified returns of rewards clipped where the study says so: neither bounds the other. "
        f"Differences are paired by training seed, with Student's intervals at {confidence:.0%}, corrected for the number of "
        "sparsities tried (Bonferroni). **+** marks an interval above 0, **-** one below 0. One seed gives no interval, and "
        "no verdict. Intervals of interquartile means (IQM; in figures and over environments) are percentile bootstraps by "
        "rliable, not corrected, and too short with few seeds: no verdict rests on them.",
        f"Not repeated in the names of variants, since all share it: {', '.join(shared)}." if shared else "",
    ]


def compute(frame: pd.DataFrame) -> list[str]:
    """
    :param frame: of the results
    :return: CPU hours by environment; an agent is trained once, however many stages it is measured at; Markdown
    """
    measured = frame.drop_duplicates([*AXES, "stage"])
    trained = measured.drop_duplicates([*AXES])
    lines, total = [], 0.0
    for (env,), rows in _in_order(measured, ["env"]):
        own = trained[trained["env"] == env]
        seconds = [own["train_seconds"].sum(), rows["attack_seconds"].sum(), rows["certify_seconds"].sum()]
        total += sum(seconds) / 3600
        lines.append([env, len(own), *(f"{one / 3600:.2f}" for one in (*seconds, sum(seconds)))])
    header = ["environment", "agents", "training", "attacks", "certificates", "all, CPU hours"]
    resumed = int((trained["resumed"] > 0).sum())
    note = f"In all **{total:.2f} CPU hours**. {resumed} training(s) went on from a checkpoint after an interruption."
    return ["## Compute", table(header, lines), note]
