"""
What the study's results say on the four claims, by the rules that docs/study/protocol.md fixed before the runs.

    python benchmarks/study_verdicts.py      # a minute; reads docs/study/results, writes docs/study/verdicts.md

Only the main comparison decides: PPO, magnitude, polynomial, by the short attacks at the first eps of each environment, and
only environments in which all its agents are finished. A claim that the others can still turn is *open*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr

from sb3_prune_robust.evaluation.statistics import t_interval
from sb3_prune_robust.evaluation.sweet_spots import clean_threshold
from sb3_prune_robust.evaluation.tables import number, table
from sb3_prune_robust.study import claims
from sb3_prune_robust.study.aggregates import aggregate
from sb3_prune_robust.study.cells import NONE
from sb3_prune_robust.study.config import Study, read_study
from sb3_prune_robust.study.plan import collect
from sb3_prune_robust.study.report_tables import ends
from sb3_prune_robust.study.statistics import VARIANT, differences, ends_of, pairs
from sb3_prune_robust.study.store import StudyStore

STUDY = Path(__file__).parents[1] / "docs" / "study"
MAIN = (("ppo", "plain", "magnitude", "erk", "polynomial"), ("ppo", "plain", NONE, NONE, NONE))
MODERATE = (0.3, 0.5, 0.7)
N_PERMUTED = 2000
Rows = list[list[object]]
_BOTH = ("dense, short", "dense, strong", "pruned, short", "pruned, strong")


def main_rows(frame: pd.DataFrame, study: Study, stage: str, which: int = 0) -> pd.DataFrame:
    """The main comparison at one eps of each environment, the first if not told otherwise."""
    wanted = {(env, eps) for env, one in study.environments.items() for eps in one.eps[which : which + 1]}
    ways = zip(*(frame[name] for name in VARIANT), strict=True)
    radii = zip(frame["env"], frame["eps"], strict=True)
    here = np.array([way in MAIN and radius in wanted for way, radius in zip(ways, radii, strict=True)])
    return frame[here & (frame["stage"] == stage)]


def main_part(frame: pd.DataFrame, study: Study) -> pd.DataFrame:
    """What decides: of the main comparison under the short attacks the environments in which all of it is finished."""
    rows = main_rows(frame, study, "short")
    there = set(zip(rows["env"], rows["sparsity"], rows["seed"], strict=True))
    wanted = [cell for cell in study.cells if cell.variant[1:] in MAIN]
    return rows[~rows["env"].isin({cell.env for cell in wanted if (cell.env, cell.sparsity, cell.seed) not in there})]


def decided(yes: int, done: int, total: int, confirmed: int, refuted_below: int) -> str:
    """Of a claim that counts environments."""
    if yes >= confirmed:
        return "**confirmed**"
    if yes + total - done < refuted_below:
        return "**refuted**"
    return "**undecided**" if done == total else "open"


def bounds(main: pd.DataFrame, study: Study) -> tuple[str, str, Rows]:
    """Claim 1: verdict, numbers, lines."""
    both, lines, shares = pairs(main), [], []
    for env, one in both.groupby("env", sort=False):
        found = {name: compared(one, name) for name in ("tv:best", "tv:abs", "radius:best", "radius:abs")}
        lines.append([env, *(text for _, _, text in found.values())])
        shares.append([found[name][:2] for name in ("tv:best", "tv:abs")])
    lower, higher = np.moveaxis(np.array(shares), -1, 0)  # each of environments and bounds
    if (higher >= 0.5).any():
        verdict = "**refuted**"
    else:
        possible, whole = (lower >= 0.9).all(), len(lines) == len(study.environments)
        verdict = ("**confirmed**" if whole else "open") if possible else "**undecided**" if whole else "open, not confirmed"
    common = common_levels(study)
    few = [compared(one, "tv:best")[1] >= 0.5 for _, one in both[both["sparsity"].isin(common)].groupby("env")]
    counts = [
        f"`{name}`: lower in 90 % of the pairs in {(lower[:, i] >= 0.9).sum()} of {len(lines)} environments, higher in "
        f"half of them in {(higher[:, i] >= 0.5).sum()}"
        for i, name in enumerate(("best", "abs"))
    ]
    counts.append(f"at {', '.join(f'{level:g}' for level in common)} alone `best` is higher in half of them in {sum(few)}")
    return verdict, "; ".join(counts), lines


def common_levels(study: Study) -> list[float]:
    """Sparsities that the main comparison has in every environment: shares of pairs depend on which are pooled."""
    levels = [
        {cell.sparsity for cell in study.cells if cell.env == env and cell.variant[1:] in MAIN} for env in study.environments
    ]
    return sorted(set.intersection(*levels) - {0})


def compared(both: pd.DataFrame, name: str) -> tuple[float, float, str]:
    """Shares of all pairs in which the pruned agent's bound is lower, and higher, by more than rounding; and both in words."""
    pruned, dense = both[name], both[f"dense_{name}"]
    lower, higher = (pruned < dense - claims.ROUNDING).mean(), (pruned > dense + claims.ROUNDING).mean()
    ratio, known = (pruned / dense).median(), int((pruned.notna() & dense.notna()).sum())
    return lower, higher, f"{lower:.0%} / {higher:.0%}, x{ratio:.3g} ({known} of {len(both)})"


def spots(main: pd.DataFrame, study: Study, references: dict[str, float]) -> tuple[str, str, Rows]:
    """Claim 2: verdict, numbers, lines."""
    found, total, lines, yes = differences(main, study.confidence), len(study.environments), [], 0
    pruned = _levels_of(main)[1:]
    for env, one in found[found["quantity"] == "worst"].groupby("env", sort=False):
        texts = {row["sparsity"]: ends(row) + _sign(row) for _, row in one.iterrows()}
        lines.append([env, *_by_level(texts, pruned), unharmed(main[main["env"] == env], len(texts), study.confidence)])
        yes += bool(one["supported"].any())
    over = aggregate(main, references, confidence=study.confidence)
    over = over[over["quantity"] == "difference_mean"].sort_values("sparsity")
    lines.append(
        [
            f"finished ({len(lines)}), normalised",
            *_by_level({row["sparsity"]: _over(row) for _, row in over.iterrows()}, pruned),
            "",
        ]
    )
    verdict = decided(yes, len(lines) - 1, total, 4, 1)
    if verdict == "**refuted**" and (over["low"] > 0).any():
        verdict = "**undecided**"
    return verdict, f"a supported sparsity in {yes} of {len(lines) - 1} environments", lines


def unharmed(one: pd.DataFrame, n_tried: int, confidence: float) -> str:
    """The difference to the dense agents of agents as good as these that no attack harms."""
    dense = one[one["sparsity"] == 0]
    found = t_interval((dense["clean"] - dense["worst"]).to_numpy(), 1 - (1 - confidence) / n_tried)
    return ends(pd.Series(ends_of(found)))


def _over(row: pd.Series) -> str:
    count = f" ({len(row['envs'])})" if row["left_out"] else ""
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{count}"


def _sign(row: pd.Series) -> str:
    return " **+**" if row["supported"] else " **-**" if row["harmful"] else ""


def kept(main: pd.DataFrame, total: int) -> tuple[str, str, Rows]:
    """Claim 3: verdict, numbers, lines."""
    lines, yes = [], 0
    for env, one in main.groupby("env", sort=False):
        means = one.groupby("sparsity")["clean"].mean()
        lines.append([env, *_by_level(means.map(number), _levels_of(main))])
        yes += all(means[level] >= clean_threshold(means[0.0]) for level in MODERATE)
    return decided(yes, len(lines), total, 6, 4), f"kept at .3, .5 and .7 in {yes} of {len(lines)} environments", lines


def frontier(main: pd.DataFrame, total: int) -> tuple[str, str, Rows]:
    """Claim 4: verdict, numbers, lines."""
    found, lines, yes = claims.not_dominated(main), [], 0
    for env, one in found.groupby("env", sort=False):
        lines.append([env, _levels(one[one["dominates"]]), _levels(one[one["dominated"]])])
        yes += bool(one["dominates"].any())
    return decided(yes, len(lines), total, 6, 4), f"some sparsity dominates dense in {yes} of {len(lines)} environments", lines


def _levels_of(main: pd.DataFrame) -> list[float]:
    return sorted(main["sparsity"].unique())


def _by_level(texts: Mapping[float, str] | pd.Series, levels: Sequence[float]) -> list[str]:
    """Under the heading of its sparsity, each; nothing where an environment has none such."""
    return [str(texts.get(level, "")) for level in levels]


def _levels(rows: pd.DataFrame) -> str:
    return ", ".join(f"{level:g}" for level in rows["sparsity"]) or "none"


def by_chance(n_sparsities: int, n: int = 100_000) -> float:
    """How often one of the sparsities beats dense in the means of clean and worst return, if all are draws from the same."""
    draws = np.random.default_rng(0).normal(size=(n, 1 + n_sparsities, 2))
    return float((draws[:, 1:] > draws[:, :1]).all(axis=2).any(axis=1).mean())


def by_sparsity(main: pd.DataFrame, name: str) -> Rows:
    """Means of a column by environment and sparsity."""
    means = main.groupby(["env", "sparsity"])[name].mean().map(number)
    return [[env, *_by_level(means[env], _levels_of(main))] for env in main["env"].unique()]


def against_attacked(one: pd.DataFrame, name: str) -> str:
    """Rank correlation of a bound with the worst return: of all agents, and within seeds with its permutation test."""
    bound, worst = (one.pivot(index="sparsity", columns="seed", values=column).to_numpy() for column in (name, "worst"))
    ranks, others = (rankdata(values, axis=0) - (len(values) + 1) / 2 for values in (bound, worst))
    drawn = np.random.default_rng(0).permuted(np.broadcast_to(others, (N_PERMUTED, *others.shape)), axis=1)
    seen, null = (ranks * others).sum(), (ranks * drawn).sum(axis=(1, 2))
    p = (1 + (np.abs(null) >= abs(seen) - 1e-9).sum()) / (1 + N_PERMUTED)
    size = np.sqrt((ranks**2).sum() * (others**2).sum())
    if not size:
        return "all equal"
    return f"{spearmanr(bound.ravel(), worst.ravel())[0]:.2f}; {seen / size:.2f} (p = {p:.2g})"


def correlations(main: pd.DataFrame, further: pd.DataFrame) -> Rows:
    """Of bounds and worst return, by environment, at both eps."""
    lines = []
    for env in main["env"].unique():
        both = [rows[rows["env"] == env] for rows in (main, further)]
        lines.append(
            [env, *("" if one.empty else against_attacked(one, f"tv:{how}") for one in both for how in ("best", "abs"))]
        )
    return lines


def strong(frame: pd.DataFrame, study: Study) -> Rows:
    """The candidates of the main comparison and their dense agents under the strong attacks, at the first eps."""
    rows = main_rows(frame, study, "strong")
    found, both = differences(rows, study.confidence), pairs(pd.concat([main_rows(frame, study, "short"), rows]))
    lines = []
    for _, row in found[found["quantity"] == "worst"].iterrows():
        same = both[(both["env"] == row["env"]) & (both["sparsity"] == row["sparsity"])]
        long = same[(same["stage"] == "strong") & same["paired"]]
        short = same[(same["stage"] == "short") & same["seed"].isin(long["seed"])]
        means = [number(one[name].mean()) for name in ("dense_worst", "worst") for one in (short, long)]
        lines.append([row["env"], f"{row['sparsity']:g}", row["n_pairs"], *means, ends(row) + _sign(row)])
    return lines


def write(frame: pd.DataFrame, study: Study, references: dict[str, float]) -> str:
    """The page."""
    main, total = main_part(frame, study), len(study.environments)
    done = list(main["env"].unique())
    header = ["environment", *(f"{level:g}" for level in _levels_of(main))]
    one, two = bounds(main, study), spots(main, study, references)
    three, four = kept(main, total), frontier(main, total)
    hard, further = strong(frame, study), main_rows(frame, study, "short", 1)
    names = ("1. Bounds tighten", "2. Sweet spots", "3. Clean return is kept", "4. Frontier")
    verdicts = [[name, found[1], found[0]] for name, found in zip(names, (one, two, three, four), strict=True)]
    sections: Sequence[str] = (
        "# Verdicts\n\nWritten by `python benchmarks/study_verdicts.py` from `docs/study/results`, by the rules of the "
        f"[protocol](protocol.md). Main comparison finished in {len(done)} of {total} environments: {', '.join(done)}.",
        table(["claim", "numbers", "verdict"], verdicts),
        "## Clean return (mean over five seeds) by sparsity",
        table(header, three[2]),
        "## Worst attacked return (mean over five seeds) by sparsity",
        table(header, by_sparsity(main, "worst")),
        "## The same at the second eps\n\nTwice the first; it takes part in no verdict.",
        table(header, by_sparsity(further[further["env"].isin(done)], "worst")),
        "## Under the strong attacks\n\nThe dense agents and the candidates, which were best by the short attacks. Mean worst "
        "return of the pairs that have met both (strong: the lowest of both stages), "
        "and the paired difference by the strong attacks [jointly at 95 % over the "
        "sparsities tried].",
        table([header[0], "sparsity", "pairs", *_BOTH, "gain, strong"], hard),
        "## 1. Bounds\n\nShare of pairs in which the pruned agent's bound is lower / higher, median ratio pruned / dense, and "
        "number of pairs that have it. `tv`: total variation of the action distribution, which decides; where both are 1, "
        "neither is lower. `radius`: how far the network's output may move, which has no upper end.",
        table([header[0], "tv, best", "tv, abs", "radius, best", "radius, abs"], one[2]),
        "Mean of `tv`, best, by sparsity:",
        table(header, by_sparsity(main, "tv:best")),
        "Do agents with a tighter bound keep more under attack? Spearman's correlation of bound and worst return over all "
        "agents of an environment; within seeds (p by permutation of sparsities, not corrected). Takes part in no verdict.",
        table([header[0], "tv, best", "tv, abs", "tv, best, second eps", "tv, abs, second eps"], correlations(main, further)),
        "## 2. Worst return minus the dense agent's\n\nMean of the pairs [Student's interval, jointly at 95 % over the "
        "sparsities tried], in units of return. Over environments: normalised (0: random actions, 1: the dense clean mean), "
        "rliable's stratified bootstrap, not corrected; (n): of n. "
        "Last, what pruned agents would gain that are as good as the dense ones and that no attack harms: where that "
        "interval contains 0, no sparsity can be supported by gains like these: the dense agents differ too much.",
        table([header[0], *header[2:], "no attack harms"], two[2]),
        "## 4. Frontier, by means\n\nThe rule asks for one of those tried. If pruning did nothing at all, one "
        f"of six (four) would dominate in {by_chance(6):.0%} ({by_chance(4):.0%}) of environments if clean and worst are "
        f"independent, in {6 / 7:.0%} ({4 / 5:.0%}) of those where all clean returns are equal.",
        table([header[0], "dominates dense in clean and worst", "dominated by dense"], four[2]),
    )
    return "\n\n".join(sections) + "\n"


def run() -> None:
    """Write the page, or say that there is nothing yet."""
    study, store = read_study(STUDY / "main.yml"), StudyStore(STUDY / "results")
    results = collect(study, store)
    if not results.records or main_part(results.frame, study).empty:
        raise SystemExit("the main comparison is finished in no environment yet")
    (STUDY / "verdicts.md").write_text(write(results.frame, study, dict(results.references)))


if __name__ == "__main__":
    run()
