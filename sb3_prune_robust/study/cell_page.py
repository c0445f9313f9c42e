"""Everything about one cell of a study, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_prune_robust.evaluation.statistics import mean_interval
from sb3_prune_robust.evaluation.tables import at_least, interval, number, table
from sb3_prune_robust.study.cells import Cell

Record = Mapping[str, Any]


def cell_page(record: Record) -> str:
    """
    One cell at one stage in full.

    :param record: of :attr:`.results.Results.records`
    :return: Markdown
    """
    sections = [
        f"# {Cell(**record['cell']).name}: {record['stage']} attacks",
        *_cell(record),
        *_training(record),
        *_clean(record),
    ]
    sections += [section for one in record["attacked"] for section in _attacked(one)]
    return "\n\n".join([*sections, *_certificates(record), *_certified_return(record), *_made(record)]) + "\n"


def _cell(record: Record) -> list[str]:
    return [table(["", ""], [[name, f"`{value}`"] for name, value in record["cell"].items()])]


def _training(record: Record) -> list[str]:
    training = record["training"]
    reached = ", ".join(f"{part} {share:.2%}" for part, share in training["sparsity"].items())
    entry = [[f"`{name}`", f"`{value!r}`".replace("|", "\\|")] for name, value in training["entry"].items()]
    return [
        "## Training",
        f"{training['timesteps']:,} environment steps in {training['cpu_seconds']:.0f} CPU seconds; continued from a "
        f"checkpoint {training['resumed']} time(s). Zeros reached: {reached}. "
        f"SHA-256 of the model's file: `{training['sha256']}`.",
        "Hyperparameters, as trained:",
        table(["hyperparameter", "value"], entry),
    ]


def _clean(record: Record) -> list[str]:
    names = {"deterministic": "its mode", "sampled": "samples of its distribution"}
    rows = [[names[mode], *_returns(values)] for mode, values in record["clean"].items() if len(values)]
    return [
        "## Clean returns",
        "Raw returns of held-out episodes: mean, with its 95 % interval over episodes.",
        table(["plays", "episodes", "mean [interval]", "each"], rows),
    ]


def _returns(values: Sequence[float]) -> list[str]:
    found = mean_interval(np.array(values))
    each = " ".join(number(value) for value in values)
    return [str(len(values)), interval({"mean": found.mean, "low": found.low, "high": found.high}), each]


def _attacked(one: Record) -> list[str]:
    rows = [
        [
            name,
            *_returns(played["returns"])[:2],
            f"{played['perturbed']:.0%}",
            _cost(played["cost"]),
            _returns(played["returns"])[2],
        ]
        for name, played in one["attacks"].items()
    ]
    worst = min(one["attacks"], key=lambda name: float(np.mean(one["attacks"][name]["returns"])))
    header = ["attack", "episodes", "mean [interval]", "steps attacked", "fitted with", "each"]
    skipped = [f"- `{name}` was skipped: {why}" for name, why in one["skipped"].items()]
    return [
        f"## Attacked: {one['norm']}, eps = {one['eps']:g}",
        f"The mode, on the same episode seeds. The worst is `{worst}`, the lowest mean.",
        table(header, rows),
        *(["\n".join(skipped)] if skipped else []),
    ]


def _cost(cost: Record | None) -> str:
    return "-" if cost is None else f"{cost['steps']:,} steps, {cost['cpu_seconds']:.0f} CPU s"


def _certificates(record: Record) -> list[str]:
    if not record["certificates"]:
        return ["## Certificates", "None at this stage, or none for this policy."]
    rows = [
        [f"{one['eps']:g}", method, *(number(one[what][method]) if method in one[what] else "-" for what in ("tv", "radius"))]
        for one in record["certificates"]
        for method in dict.fromkeys([*one["tv"], *one["radius"]])
    ]
    states = sorted({one["n_states"] for one in record["certificates"]})
    return [
        "## Certificates",
        f"Upper bounds ({record['certificates'][0]['norm']}), means over {', '.join(map(str, states))} visited states"
        f"{_whose(record)}.",
        table(
            ["eps", "method", "total variation of the action distribution", "change of the mean action or of a logit"], rows
        ),
    ]


def _certified_return(record: Record) -> list[str]:
    found = record["certified_return"]
    if "not_certified" in found:
        return [f"The return is not certified: {found['not_certified']}."]
    return [
        f"Half of the clean return ({number(found['clean'])}; {found['quantity']}) is certified against every adversary up to "
        f"**eps = {at_least(found['half_eps'], 3)}** (method: {found['method']}; confidence {found['confidence']:g}; "
        f"{found['n_episodes']} episodes){_whose(record)}.",
    ]


def _whose(record: Record) -> str:
    return ", of the policy that samples its actions (attacked above is its mode)" if record["clean"]["sampled"] else ""


def _made(record: Record) -> list[str]:
    seconds = ", ".join(f"{what} {value:.0f}" for what, value in record["cpu_seconds"].items())
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    commit = f"commit `{record['commit']}`" if record["commit"] else "no commit known"
    return [
        "## Made",
        f"Finished {record['finished']} on `{record['host']}`, {commit}. CPU seconds: {seconds}. With {versions}.",
    ]
