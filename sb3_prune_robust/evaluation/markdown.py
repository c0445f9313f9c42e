"""The report as a page for an engineer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


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
    sections += _certified(record) + _notes(record) + _reproduce(record)
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
        _table(["model", "algorithm", "policy", "parameters", "zeros as given (actor)", "VecNormalize"], rows),
        f"{record['pruning']['description']} {settings['n_episodes']} episodes for each agent, sparsity, attack and mode; all "
        f"on the same fixed episode seeds (from {settings['seed']}), so differences are paired. Intervals are at "
        f"{settings['confidence']:.0%}; {len(rows)} model(s), {unit}.",
    ]


def _stats(model: Mapping[str, Any]) -> str:
    return "none" if model["vec_normalize"] is None else f"`{model['vec_normalize']}`, frozen"


def _threat(record: Mapping[str, Any]) -> list[str]:
    settings = record["settings"]
    ball = "every entry by at most eps (l_inf)" if settings["norm"] == "linf" else "by at most eps in Euclidean norm (l_2)"
    lines = [
        "## The threat",
        f"At each step an adversary replaces the observation before the policy sees it, moving {ball}; the environment itself "
        f"moves from the true state. **eps = {settings['eps']:g}**, in units of what the network receives. "
        f"Attacks tried: {', '.join(settings['attacks'])}. *Worst* is the lowest mean return over these attacks: an upper "
        "bound on the true worst case, which a stronger attack may lower.",
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


def _mode(mode: str, result: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    attacks = record["settings"]["attacks"]
    rows = [
        [
            f"{point['sparsity']:.0%}",
            f"{point['reached']['total']:.0%}",
            _interval(point["clean"]),
            *(_interval(point["attacks"][name]) for name in attacks),
            f"{_number(point['worst']['mean'])} ({point['worst']['attack']})",
            _number(point["gap"]),
        ]
        for point in result["points"]
    ]
    what = "samples its actions" if mode == "stochastic" else "plays the mode of its distribution"
    header = ["sparsity", "of all weights", "clean", *attacks, "worst", "clean - worst"]
    return [
        f"## Returns, {mode} actions",
        f"The policy {what}. Mean raw return of an episode [interval].",
        _table(header, rows),
        *_sweet_spots(result),
        *_regret(result),
    ]


def _sweet_spots(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for spot in result["sweet_spots"]:
        if spot["gain"] is None:
            verdict = "the dense agent is best"
        elif spot["supported"]:
            verdict = f"supported: gain {_interval(spot['gain'])}"
        else:
            verdict = f"NOT supported by these episodes: gain {_interval(spot['gain'])}"
        rows.append([spot["description"], f"{spot['sparsity']:.0%}", verdict, _gain(spot["worst_gain"])])
    return [
        "### Sweet spots",
        _table(["criterion", "sparsity", "against the dense agent", "gain in worst return"], rows),
        "The dense agent is a candidate in each. A gain is paired, episode by episode (or agent by agent, if several) "
        "and its interval is corrected for the choice among sparsities and attacks (Bonferroni); a sweet spot is supported "
        "when the interval excludes 0.",
    ]


def _regret(result: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            f"{point['sparsity']:.0%}",
            _number(point["regret"]["returns"]["clean_task"]),
            _interval(point["regret"]["returns"]["pruning_loss"]),
            _interval(point["regret"]["returns"]["robustness"]),
            _gain(point["regret"]["returns"]["robustness_gain"]),
        ]
        for point in result["points"]
    ]
    best = result["best_clean"]
    return [
        "### Where the loss comes from",
        _table(["sparsity", "clean-task term", "pruning loss", "robustness term", "robustness gain"], rows),
        f"Regret = clean-task term (best clean return seen here, {_number(best['mean'])} at {best['sparsity']:.0%}, minus "
        "dense) + pruning loss (dense minus pruned, clean) + robustness term (clean minus worst; attacks bound it from below "
        "only). Pruning pays where the robustness gain exceeds the pruning loss.",
    ]


def _certified(record: Mapping[str, Any]) -> list[str]:
    points = [p for result in record["modes"].values() for p in result["points"] if p["certificate"] is not None]
    if not points:
        return ["## Certified", "Nothing: certificates speak of the stochastic policy as sampled, which was not played."]
    certified = [point for point in points if "tv" in point["certificate"]]
    refused = [point for point in points if "tv" not in point["certificate"]]
    lines = ["## Certified"]
    if refused:
        lines.append(f"Not certified: {refused[0]['certificate']['not_certified']}.")
    return lines + (
        _certificates(certified, record["settings"]) + _returns(certified, record["settings"]) if certified else []
    )


def _returns(points: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """Whole returns, certified against every adversary, beside what an attack reached."""
    known = [(p["sparsity"], p["certificate"]["certified_return"]) for p in points]
    refused = [one["not_certified"] for _, one in known if "not_certified" in one]
    if refused:
        hint = (
            " `--clip-rewards LOW,HIGH` certifies the return of clipped rewards." if settings["rewards"]["low"] is None else ""
        )
        return ["### Certified returns", f"Not certified: {refused[0]}.{hint}"]
    if not known[0][1]["curve"]:
        return ["### Certified returns", "With eps = 0 there is no adversary to certify against."]
    radii = [at["eps"] for at in known[0][1]["curve"]]
    header = ["sparsity", "clean", *(f"eps {radius:.3g}" for radius in radii), "eps for half", "discounted"]
    rows = [[f"{level:.0%}", _number(one["clean"]), *map(_at_radius, one["curve"]), *_half(one)] for level, one in known]
    return [
        "### Certified returns",
        "![Certified and attacked return over eps and sparsity](certified.png)",
        _table(header, rows),
        _returns_text(known[0][1], settings),
        *_smoothing(known, radii),
        *_tightness(points),
    ]


def _returns_text(first: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    return (
        f"- Certified is the {first['quantity']}: a lower bound that NO adversary within the ball gets below, by the best of "
        "three methods (its initial: *n* the policy's own action noise, *l* likelihood ratios, *d* performance difference), "
        f"at {first['confidence']:.4g} confidence for each entry by itself; behind the bar, the mean of the same return over "
        f"the same episodes under the attack that is worst at eps = {settings['eps']:g}.\n"
        "- *Eps for half*: the largest radius tried at which half of the clean return is certified, by the action noise.\n"
        f"- *Discounted*: at eps = {settings['eps']:g}, {first['discounted']['quantity']}.\n"
        f"- Of the clean sampled episodes, {first['n_calibration']} of each agent chose, {first['n_certify']} certified. "
        "More episodes certify more. With several agents, the one for which least is certified."
    )


def _smoothing(known: Sequence[tuple[float, Mapping[str, Any]]], radii: Sequence[float]) -> list[str]:
    """The field's own: noise added to observations at run time."""
    rows = [(level, one["smoothing"]) for level, one in known if one["smoothing"] is not None]
    if not rows:
        return []
    header = ["sparsity", "clean", *(f"eps {radius:.3g}" for radius in radii), "eps for half"]
    cells = [
        [f"{level:.0%}", _number(one["clean"]), *(f">= {_number(x)}" for x in one["lower"]), _radius(one["half_eps"])]
        for level, one in rows
    ]
    return [
        "Policy smoothing (Kumar, Levine, Feizi 2022): the same networks playing their mode on observations with noise of std "
        f"{rows[0][1]['std']:g} added at run time; half is of the return without smoothing.",
        _table(header, cells),
    ]


def _radius(value: float | None) -> str:
    return "-" if value is None else "none" if value == 0 else f"{value:.3g}"


def _at_radius(at: Mapping[str, Any]) -> str:
    attacked = "-" if at["attacked"] is None else _number(at["attacked"])
    return f">= {_number(at['lower'])} {_initial(at['method'])} \\| {attacked}"


def _initial(method: str) -> str:
    return {"action-noise": "n", "likelihood-ratio": "l", "performance-difference": "d"}[method]


def _half(one: Mapping[str, Any]) -> list[str]:
    half, discounted = one["half"]["eps"], one["discounted"]
    return [
        _radius(half),
        f">= {_number(discounted['lower'])} {_initial(discounted['method'])} (clean {_number(discounted['clean'])})",
    ]


def _tightness(points: Sequence[Mapping[str, Any]]) -> list[str]:
    pairs = [(point["sparsity"], point["certificate"]["tightness"]) for point in points]
    header = ["sparsity", *(f"eps {pair['eps']:.3g}" for pair in pairs[0][1])]
    rows = [[f"{level:.0%}", *(f"{p['certified']:.4f} \\| {p['attacked']:.4f}" for p in found)] for level, found in pairs]
    return [
        "### How tight the bounds are",
        _table(header, rows),
        "Total variation at some visited states: certified by CROWN | reached by PGD with restarts. The truth lies between.",
    ]


def _certificates(points: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    methods = list(points[0]["certificate"]["tv"]["by_method"])
    rows = [[f"{point['sparsity']:.0%}", *_certificate_row(point["certificate"], methods)] for point in points]
    rows[0][-2:] = ["-", "-"]  # of the dense agent against itself
    header = [
        "sparsity",
        *(f"TV by {m}" for m in methods),
        "TV, best",
        "F",
        "loss to any attack",
        "return less that loss",
        "pruning loss",
        "gain",
    ]
    first = points[0]["certificate"]
    horizon = "an infinite horizon" if settings["horizon"] is None else f"at most {settings['horizon']} steps"
    return [
        "Valid for every adversary within the threat above, not only for the attacks tried.",
        _table(header, rows),
        "- TV: the action distribution moves by at most this in total variation; mean over the states visited. Only *abs* can "
        "never rise under pruning (nested masks, no retraining); the others usually fall.\n"
        f"- F: upper confidence bound on its discounted average (gamma = {settings['gamma']:g}); loss to any attack, "
        "return, pruning loss and gain in robustness over the dense agent are bounds on the discounted return over "
        f"{horizon}, each at {settings['confidence']:.0%} (return, gain: {2 * settings['confidence'] - 1:.0%}) and for each "
        "sparsity by itself; with several agents, the worst of them. *Vacuous*: no more than the range of the rewards says.\n"
        f"- Rewards: {first['rewards']}.\n{_greedy(points)}"
        f"- Assumed: {first['assumptions']}.\n"
        "- Not certified: the policy that plays its mode (deterministic), the clean-task term.",
    ]


def _greedy(points: Sequence[Mapping[str, Any]]) -> str:
    """A line on policies that play their likeliest choice; empty for Gaussian ones."""
    shares = [(point["sparsity"], point["certificate"]["tv"]["greedy_unchanged"]) for point in points]
    if shares[0][1] is None:
        return ""
    listed = ", ".join(f"{share:.1%} at {level:.0%}" for level, share in shares)
    return f"- Visited states whose likeliest action provably cannot change, by sparsity: {listed}.\n"


def _certificate_row(certificate: Mapping[str, Any], methods: Sequence[str]) -> list[str]:
    tv, agents = certificate["tv"], certificate["agents"]
    visited = [agent["visitation"] for agent in agents]
    return [
        *(f"{tv['by_method'][method]:.4f}" for method in methods),
        f"{tv['mean']:.4f}",
        "-" if visited[0] is None else f"<= {max(one['upper'] for one in visited):.4f}",
        _worst_loss([agent["attack_loss"] for agent in agents]),
        _least([agent["return"] for agent in agents]),
        _worst_loss([agent["pruning_loss"] for agent in agents]),
        _least([agent["robustness_gain"] for agent in agents]),
    ]


def _worst_loss(losses: Sequence[Mapping[str, Any] | None]) -> str:
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses):
        return "not certified"
    worst = max(known, key=lambda loss: float(loss["bound"]))
    return f"<= {_number(worst['bound'])}{' (vacuous)' if worst['vacuous'] else ''}"


def _least(bounds: Sequence[Mapping[str, Any] | None]) -> str:
    known = [bound for bound in bounds if bound is not None]
    if len(known) < len(bounds):
        return "not certified"
    worst = min(known, key=lambda bound: float(bound["lower"]))
    return f">= {_number(worst['lower'])}{' (vacuous)' if worst.get('vacuous') else ''}"


def _notes(record: Mapping[str, Any]) -> list[str]:
    return ["## Notes", *(f"- {note}" for note in record["notes"])] if record["notes"] else []


def _reproduce(record: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return [
        "## To reproduce",
        f"```\n{record['command']}\n```",
        f"Made {record['created']} with {versions}. `report.json` beside this page holds every return and bound.",
    ]


def _interval(cell: Mapping[str, Any]) -> str:
    if "mean" not in cell:
        return "no attack"
    if cell["low"] is None:
        return _number(cell["mean"])
    return f"{_number(cell['mean'])} [{_number(cell['low'])}, {_number(cell['high'])}]"


def _gain(gain: Mapping[str, Any] | None) -> str:
    """The dense agent gains nothing over itself."""
    return "-" if gain is None else _interval(gain)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *lines])
