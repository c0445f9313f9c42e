"""The report of a study: Markdown, the same as HTML, and figures."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import markdown
import pandas as pd

from sb3_prune_robust.evaluation.report import prepare_folder, write_files
from sb3_prune_robust.study import aggregates, claims, figures, figures_agents, statistics
from sb3_prune_robust.study import report_tables as tables
from sb3_prune_robust.study.cell_page import cell_page
from sb3_prune_robust.study.labels import labels, rows_of, variants
from sb3_prune_robust.study.report_claims import claim_sections
from sb3_prune_robust.study.report_overview import compute, reading, there
from sb3_prune_robust.study.results import Results
from sb3_prune_robust.study.spots import best_sparsities

__all__ = ["cell_page", "write_report"]

FIGURES = "figures"
_STYLE = """
body { font-family: system-ui, sans-serif; line-height: 1.45; max-width: 1150px; margin: 2rem auto; padding: 0 1rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #ccc; padding: 0.25rem 0.5rem; text-align: left; vertical-align: top; }
tr:nth-child(even) td { background: #f6f6f6; }
img { max-width: 100%; }
h2 { border-top: 2px solid #ddd; padding-top: 1rem; margin-top: 2.5rem; }
"""


def write_report(results: Results, folder: Path, reps: int = statistics.REPS) -> list[str]:
    """
    Write ``report.md``, ``report.html`` and ``figures/*.png``.

    :param results: of the study, complete or not
    :param folder: where; made if missing
    :param reps: bootstrap repetitions
    :return: names of the files, relative to ``folder``
    :raises ValueError: if the folder cannot be written, or a cell is there twice
    """
    folder = prepare_folder(folder)
    report = _Report(results, reps)
    text = report.text()
    images = {f"{name}.png": image for name, image in report.figures.items()}
    write_files(prepare_folder(folder / FIGURES), images)  # before the pages that show them
    write_files(folder, {"report.md": text.encode(), "report.html": to_html(text, f"Study: {results.name}").encode()})
    return ["report.md", "report.html", *(f"{FIGURES}/{name}" for name in images)]


def to_html(text: str, title: str) -> str:
    """
    :param text: Markdown
    :param title: of the page
    :return: a page
    """
    body = markdown.markdown(text, extensions=["tables"])
    head = f'<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


class _Report:
    """Its sections, which draw their figures as they are written."""

    def __init__(self, results: Results, reps: int) -> None:
        self.results, self.reps, self.confidence = results, reps, results.confidence
        self.frame = results.frame
        self.figures: dict[str, bytes] = {}
        self.unscaled: dict[str, str] = {}
        if self.frame.empty:
            return
        self.envs = list(self.frame["env"].unique())
        self.named = labels(variants(self.frame))
        self.normal = self._normalised()
        self.frontier = statistics.frontier(self.frame, self.confidence, reps)
        self.differences = statistics.differences(self.frame, self.confidence)
        self.spots = best_sparsities(self.frame, self.confidence)
        self.regret = claims.regret(self.frame)

    def _normalised(self) -> pd.DataFrame:
        """Of the environments that have a scale; why others have none is reported."""
        for env in self.envs:
            try:
                statistics.scale(self.frame, env, self.results.references)
            except ValueError as error:
                self.unscaled[env] = str(error)
        return statistics.normalised(self.frame[~self.frame["env"].isin(list(self.unscaled))], self.results.references)

    def text(self) -> str:
        sections = [f"# Study: {self.results.name}", self.results.description.strip(), *there(self.results, self.frame)]
        if not self.frame.empty:
            sections += [
                *reading(self.frame, self.confidence),
                "## Claims",
                *claim_sections(self.frame, self.confidence),
                *self._all(),
            ]
            for env in self.envs:
                sections += self._env(env)
            sections += compute(self.frame)
        return "\n\n".join(section for section in sections if section) + "\n"

    def _all(self) -> list[str]:
        sections = ["## Over all environments"]
        sections += [f"- Left out of normalised returns: {why}." for why in self.unscaled.values()]
        if self.normal.empty:
            return sections
        sections += [
            "Normalised returns: 0 is random actions, 1 the mean clean return of the dense plain PPO agents. At the first "
            "eps of each environment; of each row, the seeds that all its environments have.",
        ]
        for stage in self.normal["stage"].unique():
            sections += [f"### {str(stage).capitalize()} attacks", *self._aggregate(stage)]
        return sections

    def _aggregate(self, stage: str) -> list[str]:
        how: dict[str, Any] = dict(stage=stage, confidence=self.confidence, reps=self.reps)
        found = aggregates.aggregate(self.scaled, self.results.references, **how)
        profiles = aggregates.profiles(self.scaled, self.results.references, **how)
        sections = [tables.aggregate_table(found, self.named), *_left_out(found, self.named)]
        gains = statistics.differences(self.normal, self.confidence)
        if gains.loc[gains["stage"] == stage, "mean"].notna().any():
            sections += self._figure(
                f"gains-{stage}", "Gain in worst return", figures.draw_heat_map, gains, stage, self.confidence
            )
        if not profiles.empty:
            draw = figures.draw_profiles
            sections += self._figure(f"profiles-{stage}", "Performance profiles", draw, profiles, stage, self.confidence)
        return sections

    @property
    def scaled(self) -> pd.DataFrame:
        """The raw returns of the environments that have a scale."""
        return self.frame[~self.frame["env"].isin(list(self.unscaled))]

    def _figure(self, name: str, what: str, draw: Callable[..., bytes | None], *args: Any) -> list[str]:
        image = draw(*args)
        if image is None:
            return []
        name = name.replace("/", "_")
        self.figures[name] = image
        return [f"![{what}]({FIGURES}/{name}.png)"]

    def _env(self, env: str) -> list[str]:
        sections = [f"## {env}"]
        for stage in self.frame.loc[self.frame["env"] == env, "stage"].unique():
            sections += [f"### {env}: {stage} attacks", *self._returns(env, stage), *self._pruning(env, stage)]
        return sections

    def _returns(self, env: str, stage: str) -> list[str]:
        rows = self.frame[(self.frame["env"] == env) & (self.frame["stage"] == stage)]
        name, dense = f"{env}-{stage}", statistics.with_dense(self.frame)
        return [
            "Raw returns: mean over seeds [each seed].",
            tables.raw_returns(rows, self.named),
            *self._figure(f"frontier-{name}", "Frontier", figures.draw_frontier, self.frontier, env, stage, self.confidence),
            "Mean over seeds under each attack; in brackets on how many agents, where it found nothing on the others:",
            tables.attack_returns(rows, self.named),
            *self._figure(f"bounds-{name}", "Bounds", figures_agents.draw_bounds, dense, env, stage),
            *self._figure(
                f"certified-{name}", "Certified and attacked", figures_agents.draw_certified, self.normal, env, stage
            ),
        ]

    def _pruning(self, env: str, stage: str) -> list[str]:
        found, spots, regret = (
            one[(one["env"] == env) & (one["stage"] == stage)] for one in (self.differences, self.spots, self.regret)
        )
        if found.empty:
            return ["No pruned agent is finished here yet."]
        sections = ["#### Pruned against dense, paired by seed", tables.difference_table(found, self.named)]
        sections += ["#### Sweet spots", tables.spot_table(spots, self.named)]
        if regret.empty:
            return [*sections, "No pruned agent has its dense agent yet, so there are no terms of regret."]
        sections += ["#### Where the loss comes from", _REGRET, tables.regret_table(regret, self.named)]
        return sections + self._figure(
            f"regret-{env}-{stage}", "Terms of the regret", figures_agents.draw_regret, regret, env, stage
        )


_REGRET = (
    "Clean-task term: the best mean clean return in this environment minus dense. Pruning loss: dense minus pruned, clean. "
    "Robustness term: clean minus worst, pruned. Their sum is the regret; pruning pays where the robustness gain (how much "
    "smaller the robustness term is than the dense agents') exceeds the pruning loss. Means over pairs."
)


def _left_out(found: pd.DataFrame, named: tables.Named) -> list[str]:
    """Which environments a row of the table does not speak of."""
    lines = {
        f"- {tables.name_of(row, named)}, sparsity {row['sparsity']:g}: without {', '.join(row['left_out'])}"
        for row in rows_of(found)
        if row["left_out"]
    }
    return ["Environments that lack it are left out of a row:\n\n" + "\n".join(sorted(lines))] if lines else []
