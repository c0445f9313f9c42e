"""The report as a page for an engineer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sb3_prune_robust.evaluation.markdown_certified import certified_sections
from sb3_prune_robust.evaluation.tables import gain, interval, number, percent, table

SEVERAL = "each its own"  # worst attack of several agents


def write_markdown(record: Mapping[str, Any]) -> str:
    """
    The page ``report.md``.

    :param record: a report's record, as in ``docs/report_schema.md``
    :return: Markdown
    """
    settings = record["settings"]
    sections = [f"# Robustness and sparsity of {_models(record)} on {settings['env']}", *_tested(record), *_threat(record)]
    sections += ["![Return and certified bounds against sparsity](frontier.png)"]
    for mode, result in record["modes"].items():
        sections += _mode(mode, result, record)
    sections += certified_sections(record) + _notes(record) + _reproduce(record)
    return "\n\n".join(sections) + "\n"


def _models(record: Mapping[str, Any]) -> str:
    names = [f"`{model['name']}`" for model in record["models"]]
    return names[0] if len(names) == 1 else f"{len(names)} agents"


def _tested(record: Mapping[str, Any]) -> list[str]:
    settings = record["settings"]
    rows = [
        [f"`{m['name']}`", m["algorithm"].upper(), m["policy"], m["n_parameters"], f"{m['sparsity_as_given']:.1%}", _stats(m)]
        for m in record["models"]
    ]
    unit = "each an agent of its own training seed" if len(rows) > 1 else "a single agent: intervals speak of it alone"
    return [
        "## What was tested",
        table(["model", "algorithm", "policy", "parameters", "zeros as given (actor)", "VecNormalize"], rows),
        f"{record['pruning']['description']} {settings['n_episodes']} episodes for each agent, sparsity, attack and mode; all "
        f"on the same fixed episode seeds (from {settings['seed']}), so differences are paired. Intervals are at "
        f"{settings['confidence']:.0%}; {len(rows)} model(s), {unit}.",
        *_pruned_before(record),
    ]


def _pruned_before(record: Mapping[str, Any]) -> list[str]:
    if record["kind"] == "demo" or not any(model["sparsity_as_given"] for model in record["models"]):
        return []  # the demo keeps its agent of each sparsity, the dense one among them
    return ["Zeros there were before: the row of 0 %, and what is called the dense agent here, is the agent as it was given."]


def _stats(model: Mapping[str, Any]) -> str:
    return "none" if model["vec_normalize"] is None else f"`{model['vec_normalize']}`, frozen"


def _threat(record: Mapping[str, Any]) -> list[str]:
    settings = record["settings"]
    ball = "every entry by at most eps (l_inf)" if settings["norm"] == "linf" else "by at most eps in Euclidean norm (l_2)"
    lines = [
        "## The threat",
        f"At each step an adversary replaces the observation before the policy sees it, moving {ball}; the environment itself "
        f"moves from the true state. **eps = {settings['eps']:g}**, in units of what the network receives. "
        f"Attacks tried: {', '.join(settings['attacks'])}. *Worst* is the lowest mean return over these attacks"
        f"{_per_agent(record)}: an upper bound on the true worst case, which a stronger attack may lower.",
        *_learned(record),
    ]
    for model in record["models"]:
        if model["eps_raw"] is not None:
            entries = ", ".join(f"{value:.3g}" for value in model["eps_raw"])
            lines.append(
                f"In the environment's own units (eps times the frozen standard deviations) of `{model['name']}`: {entries}."
            )
    if all(model["eps_raw"] is None for model in record["models"]):
        lines.append("No VecNormalize was given, so these are the environment's own units.")
    return lines


def _per_agent(record: Mapping[str, Any]) -> str:
    return "" if len(record["models"]) == 1 else " for each agent by itself, and the mean of these over the agents"


def _learned(record: Mapping[str, Any]) -> list[str]:
    """What each learned attack was given and took."""
    points = [point for result in record["modes"].values() for point in result["points"]]
    rows = []
    for name in record["settings"]["attacks"]:
        cells = [point["attacks"][name] for point in points]
        costs = [cost for cell in cells for cost in cell["cost"] or []]
        if costs:
            mean = {key: sum(cost[key] for cost in costs) / len(costs) for key in ("steps", "seconds")}
            total = sum(cost["seconds"] for cost in costs) / 60
            rows.append([name, len(costs), _budget(cells[0]["budget"]), f"{mean['steps']:,.0f}", f"{mean['seconds']:.1f}"])
            rows[-1].append(f"{total:.1f}")
    if not rows:
        return ["None of them learns: nothing was chosen on the episodes reported."]
    header = ["learned attack", "times fitted", "budget", "steps, mean", "CPU seconds, mean", "CPU minutes in all"]
    return [
        "Attacks that learn were fitted on each agent at each sparsity in each mode anew, all choices among what they learned "
        "made on episodes of their own, with other seeds than the episodes reported here.",
        table(header, rows),
    ]


def _budget(budget: Mapping[str, Any]) -> str:
    given = [f"{budget[key]:,g} {unit}" for key, unit in (("steps", "steps"), ("seconds", "CPU s")) if budget[key] is not None]
    return " or ".join(given)


def _mode(mode: str, result: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    attacks = record["settings"]["attacks"]
    rows = [
        [
            percent(point["sparsity"]),
            f"{point['reached']['total']:.1%}",
            interval(point["clean"]),
            *(interval(point["attacks"][name]) for name in attacks),
            f"{number(point['worst']['mean'])} ({point['worst']['attack'] or SEVERAL})",
            number(point["gap"]),
        ]
        for point in result["points"]
    ]
    what = (
        "samples its actions"
        if mode == "stochastic"
        else "plays its mode: the mean, the likeliest choice, or the one of highest value"
    )
    header = ["sparsity", "of all weights", "clean", *attacks, "worst", "clean - worst"]
    return [
        f"## Returns, {mode} actions",
        f"The policy {what}. Mean raw return of an episode [interval].",
        table(header, rows),
        *_sweet_spots(result),
        *_regret(result),
    ]


def _sweet_spots(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for spot in result["sweet_spots"]:
        if spot["gain"] is None:
            verdict = "the dense agent is best"
        elif spot["supported"]:
            verdict = f"supported: gain {interval(spot['gain'])}"
        else:
            verdict = f"NOT supported by these episodes: gain {interval(spot['gain'])}"
        rows.append([spot["description"], percent(spot["sparsity"]), verdict, gain(spot["worst_gain"])])
    return [
        "### Sweet spots",
        table(["criterion", "sparsity", "against the dense agent", "gain in worst return"], rows),
        "The dense agent is a candidate in each. A gain is paired, episode by episode (or agent by agent, if several) "
        "and its interval is corrected for the choice among sparsities and attacks (Bonferroni; of several agents each has a "
        "worst attack of its own, so that no choice among attacks is left to correct for); a sweet spot is supported when the "
        "interval excludes 0.",
    ]


def _regret(result: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            percent(point["sparsity"]),
            number(point["regret"]["returns"]["clean_task"]),
            interval(point["regret"]["returns"]["pruning_loss"]),
            interval(point["regret"]["returns"]["robustness"]),
            gain(point["regret"]["returns"]["robustness_gain"]),
        ]
        for point in result["points"]
    ]
    best = result["best_clean"]
    return [
        "### Where the loss comes from",
        table(["sparsity", "clean-task term", "pruning loss", "robustness term", "robustness gain"], rows),
        f"Regret = clean-task term (best clean return seen here, {number(best['mean'])} at {percent(best['sparsity'])}, minus "
        "dense) + pruning loss (dense minus pruned, clean) + robustness term (clean minus worst; attacks bound it from below "
        "only). Pruning pays where the robustness gain exceeds the pruning loss.",
    ]


def _notes(record: Mapping[str, Any]) -> list[str]:
    return ["## Notes", *(f"- {note}" for note in record["notes"])] if record["notes"] else []


def _reproduce(record: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return [
        "## To reproduce",
        f"```\n{record['command']}\n```",
        f"Made {record['created']} with {versions}. `report.json` beside this page holds every return and bound.",
    ]
