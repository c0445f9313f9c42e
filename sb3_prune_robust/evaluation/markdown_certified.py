"""The part of the page that says what is certified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sb3_prune_robust.attacks.registry import is_fitted_attack
from sb3_prune_robust.evaluation.actions import actions_section
from sb3_prune_robust.evaluation.tables import at_least, at_most, number, percent, table


def certified_sections(record: Mapping[str, Any]) -> list[str]:
    """
    The sections on what is certified.

    :param record: a report's record
    :return: paragraphs of Markdown
    """
    points = [p for result in record["modes"].values() for p in result["points"] if p["certificate"] is not None]
    if not points:
        nothing = (
            "Of returns and distributions nothing: those certificates speak of a policy that samples, which was not played."
        )
        return ["## Certified", nothing, *actions_section(record)]
    certified = [point for point in points if "tv" in point["certificate"]]
    refused = [point for point in points if "tv" not in point["certificate"]]
    lines = ["## Certified"]
    if refused:
        lines.append(f"Not certified: {refused[0]['certificate']['not_certified']}.")
    if certified:
        lines += _certificates(certified, record["settings"]) + _returns(certified, record["settings"])
    return lines + actions_section(record)


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
    rows = [[percent(level), number(one["clean"]), *map(_at_radius, one["curve"]), *_half(one)] for level, one in known]
    return [
        "### Certified returns",
        "![Certified and attacked return over eps and sparsity](certified.png)",
        table(header, rows),
        _returns_text(known[0][1], settings),
        *_smoothing(known, radii),
        *_tightness(points),
    ]


def _returns_text(first: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    return (
        f"- Certified is the {first['quantity']}: a lower bound that NO adversary within the ball gets below, by the best of "
        "three methods (its initial: *n* the policy's own action noise, *l* likelihood ratios, *d* performance difference), "
        f"at {first['confidence']:.4g} confidence for each entry by itself; behind the bar, the mean of the same return over "
        f"the same episodes under the attack that is worst at eps = {settings['eps']:g}{_at_other_radii(settings)}.\n"
        "- *Eps for half*: the largest radius tried at which half of the clean return is certified, by the action noise.\n"
        f"- *Discounted*: at eps = {settings['eps']:g}, {first['discounted']['quantity']}.\n"
        f"- Of the clean sampled episodes, {first['n_calibration']} of each agent chose, {first['n_certify']} certified. "
        "More episodes certify more. With several agents, the one for which least is certified."
    )


def _at_other_radii(settings: Mapping[str, Any]) -> str:
    learned = any(is_fitted_attack(name) for name in settings["attacks"])
    return " (at the other radii: of those attacks that do not learn, as a learned one knows its own radius only)" * learned


def _smoothing(known: Sequence[tuple[float, Mapping[str, Any]]], radii: Sequence[float]) -> list[str]:
    """The field's own: noise added to observations at run time."""
    rows = [(level, one["smoothing"]) for level, one in known if one["smoothing"] is not None]
    if not rows:
        return []
    header = ["sparsity", "clean", *(f"eps {radius:.3g}" for radius in radii), "eps for half"]
    cells = [
        [percent(level), number(one["clean"]), *(f">= {at_least(x)}" for x in one["lower"]), _radius(one["half_eps"])]
        for level, one in rows
    ]
    return [
        "Policy smoothing (Kumar, Levine, Feizi 2022): the same networks playing their mode on observations with noise of std "
        f"{rows[0][1]['std']:g} added at run time; half is of the return without smoothing.",
        table(header, cells),
    ]


def _radius(value: float | None) -> str:
    return "-" if value is None else "none" if value == 0 else at_least(value, 3)


def _at_radius(at: Mapping[str, Any]) -> str:
    attacked = "-" if at["attacked"] is None else number(at["attacked"])
    return f">= {at_least(at['lower'])} {_initial(at['method'])} \\| {attacked}"


def _initial(method: str) -> str:
    return {"action-noise": "n", "likelihood-ratio": "l", "performance-difference": "d"}[method]


def _half(one: Mapping[str, Any]) -> list[str]:
    half, discounted = one["half"]["eps"], one["discounted"]
    return [
        _radius(half),
        f">= {at_least(discounted['lower'])} {_initial(discounted['method'])} (clean {number(discounted['clean'])})",
    ]


def _tightness(points: Sequence[Mapping[str, Any]]) -> list[str]:
    pairs = [(point["sparsity"], point["certificate"]["tightness"]) for point in points]
    header = ["sparsity", *(f"eps {pair['eps']:.3g}" for pair in pairs[0][1])]
    rows = [[percent(level), *(f"{p['certified']:.4f} \\| {p['attacked']:.4f}" for p in found)] for level, found in pairs]
    return [
        "### How tight the bounds are",
        table(header, rows),
        "Total variation at some visited states: certified by CROWN | reached by PGD with restarts. The truth lies between.",
    ]


def _certificates(points: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    methods = list(points[0]["certificate"]["tv"]["by_method"])
    rows = [[percent(point["sparsity"]), *_certificate_row(point["certificate"], methods)] for point in points]
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
        table(header, rows),
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
    listed = ", ".join(f"{share:.1%} at {percent(level)}" for level, share in shares)
    return f"- Visited states whose likeliest action provably cannot change, by sparsity: {listed}.\n"


def _certificate_row(certificate: Mapping[str, Any], methods: Sequence[str]) -> list[str]:
    tv, agents = certificate["tv"], certificate["agents"]
    visited = [agent["visitation"] for agent in agents]
    return [
        *(f"{tv['by_method'][method]:.4f}" for method in methods),
        f"{tv['mean']:.4f}",
        "-" if visited[0] is None else f"<= {at_most(max(one['upper'] for one in visited))}",
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
    return f"<= {at_most(worst['bound'])}{' (vacuous)' if worst['vacuous'] else ''}"


def _least(bounds: Sequence[Mapping[str, Any] | None]) -> str:
    known = [bound for bound in bounds if bound is not None]
    if len(known) < len(bounds):
        return "not certified"
    worst = min(known, key=lambda bound: float(bound["lower"]))
    return f">= {at_least(worst['lower'])}{' (vacuous)' if worst.get('vacuous') else ''}"
