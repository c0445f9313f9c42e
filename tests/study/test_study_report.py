import io
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure
from synthetic import PLAIN, cell, record, study

from sb3_prune_robust.study import figures, figures_agents, report_tables
from sb3_prune_robust.study.aggregates import profiles
from sb3_prune_robust.study.claims import regret
from sb3_prune_robust.study.report import cell_page, to_html, write_report
from sb3_prune_robust.study.results import Results
from sb3_prune_robust.study.statistics import differences, frontier, normalised, with_dense

REPS = 20
RANDOM = ("ppo", "plain", "random", "uniform", "polynomial")
LIPSCHITZ = ("ppo", "lipschitz", *PLAIN[2:])
# More than four: they do not fit in one panel.
MANY = (PLAIN, RANDOM, LIPSCHITZ, ("sappo", *PLAIN[1:]), ("radial", *PLAIN[1:]))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn."""
    found = []
    save = Figure.savefig

    def spy(figure, *args, **kwargs):
        found.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return found


def check(figure, png):
    """Axes named, titles within the figure, nothing over anything else."""
    assert image.imread(io.BytesIO(png), format="png").size
    renderer = figure.canvas.get_renderer()
    shown = [axis for axis in figure.axes if axis.axison]
    for axis in shown:
        place = axis.get_subplotspec()
        assert axis.get_xlabel() or (place is None or not place.is_last_row())  # None: a scale of colours
        assert axis.get_ylabel() or (place is not None and not place.is_first_col())
    boxes = [axis.get_tightbbox(renderer) for axis in shown] + [figure._suptitle.get_window_extent(renderer)]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
    for one, other in itertools.combinations(boxes, 2):  # apart in one direction
        assert min(one.x1, other.x1) - max(one.x0, other.x0) < 2 or min(one.y1, other.y1) - max(one.y0, other.y0) < 2


def texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def everything(results, env, stage="short"):
    """All figures of one environment, and over all, by name."""
    frame, normal = results.frame, normalised(results.frame, results.references)
    drawn = {
        "frontier": figures.draw_frontier(frontier(frame, reps=REPS), env, stage),
        "bounds": figures_agents.draw_bounds(with_dense(frame), env, stage),
        "certified": figures_agents.draw_certified(normal, env, stage),
        "regret": figures_agents.draw_regret(regret(frame), env, stage),
        "gains": figures.draw_heat_map(differences(normal), stage),
        "profiles": figures.draw_profiles(profiles(frame, results.references, reps=REPS), stage),
    }
    assert None not in drawn.values()
    return drawn


@pytest.mark.parametrize("variants, n_seeds, sparsities, env", [
    ((PLAIN,), 1, (0, 0.5), "CartPole-v1"),
    (MANY, 2, (0, 0.3, 0.5, 0.8, 0.9, 0.95), "Hopper-v5"),
])  # fmt: skip
def test_figures_are_tidy(drawn, variants, n_seeds, sparsities, env):
    results = study(["CartPole-v1", "Hopper-v5"], variants, sparsities, n_seeds)
    for name, png in everything(results, env).items():
        try:
            check(drawn.pop(0), png)
        except AssertionError as error:
            raise AssertionError(name) from error


def test_frontier_has_a_panel_for_each_eps_and_four_variants(drawn):
    results = study(["CartPole-v1"], MANY, (0, 0.5), 2)
    figures.draw_frontier(frontier(results.frame, reps=REPS), "CartPole-v1", "short")
    assert [axis.get_title() for axis in drawn[0].axes] == ["eps = 0.1", "eps = 0.3"] * 2
    assert {"PPO, plain, magnitude: clean", "SAPPO, plain, magnitude: worst"} <= set(texts(drawn[0]))
    assert "95% intervals" in drawn[0]._suptitle.get_text()


def test_frontier_of_one_seed_has_no_bands(drawn):
    for n_seeds in (1, 3):
        found = frontier(study(["CartPole-v1"], sparsities=(0, 0.5), n_seeds=n_seeds).frame, reps=REPS)
        figures.draw_frontier(found, "CartPole-v1", "short")
    bands = [[path for shape in figure.axes[0].collections for path in shape.get_paths()] for figure in drawn]
    drawn_ones = [[path for path in paths if np.isfinite(path.vertices).all()] for paths in bands]
    assert not drawn_ones[0] and any(np.ptp(path.vertices[:, 1]) > 0 for path in drawn_ones[1])
    assert "no intervals: one seed" in drawn[0]._suptitle.get_text()


def test_heat_map_has_stars_only_where_an_interval_excludes_0(drawn):
    def made(n_seeds):
        results = study(
            ["CartPole-v1"], sparsities=(0, 0.5, 0.95), n_seeds=n_seeds, effect=lambda s: {0.5: 0.3, 0.95: -0.3}.get(s, 0)
        )
        figures.draw_heat_map(differences(normalised(results.frame, results.references)), "short")
        return [text.get_text() for text in drawn.pop().axes[0].texts]

    assert made(1) == ["+0.36", "-0.26", "+0.18", "-0.13"]
    assert [text[-1] for text in made(4)] == ["*", "x"] * 2


def test_regret_is_stacked_to_its_sum(drawn):
    found = regret(study(["Hopper-v5"], sparsities=(0, 0.5), n_seeds=3).frame)
    figures_agents.draw_regret(found, "Hopper-v5", "short")
    row, axis = found.iloc[0], drawn[0].axes[0]
    total = row["clean_task"] + row["pruning_loss"] + row["robustness"]
    (marks,) = [line for line in axis.lines if line.get_marker() == "D"]
    assert marks.get_ydata() == pytest.approx([total])
    assert sum(bar.get_height() for bar in axis.patches) == pytest.approx(total)
    tops = sum(max(0, row[term]) for term in ("clean_task", "pruning_loss", "robustness"))
    assert max(bar.get_y() + max(0, bar.get_height()) for bar in axis.patches) == pytest.approx(tops)
    assert "regret of the dense agents of the same seeds" in texts(drawn[0])


def test_agents_near_random_actions_have_no_share_and_are_counted(drawn):
    agents = [
        record(cell("CartPole-v1", PLAIN, s, 0), clean=clean, worst={0.1: 30.0}) for s, clean in ((0, 500.0), (0.5, 25.0))
    ]
    normal = normalised(Results("", "", agents, {"CartPole-v1": 20.0}, 2).frame, {"CartPole-v1": 20.0})
    figures_agents.draw_certified(normal, "CartPole-v1", "short")
    points = np.concatenate([shape.get_offsets() for shape in drawn[0].axes[0].collections])
    assert points[:, 1].compressed().tolist() == pytest.approx([10 / 480])
    assert "1 near random actions left out" in re.sub(r"\s+", " ", drawn[0]._suptitle.get_text())


def test_strong_attacks_are_shown_against_the_certificates_of_the_short_stage(drawn):
    agents = [
        record(cell("CartPole-v1", PLAIN, s, 0), stage, 500.0, {0.1: 260.0}) for s in (0, 0.5) for stage in ("short", "strong")
    ]
    for agent in agents[1::2]:
        agent |= {"certificates": [], "certified_return": {"not_certified": "not at this stage"}}
    normal = normalised(Results("", "", agents, {"CartPole-v1": 20.0}, 2).frame, {"CartPole-v1": 20.0})
    assert figures_agents.draw_certified(normal, "CartPole-v1", "strong")
    points = np.concatenate([shape.get_offsets() for shape in drawn[0].axes[0].collections]).compressed()
    assert points.tolist() == pytest.approx([0.05, 0.5] * 2)
    assert texts(drawn[0]) == ["PPO", "dense", "sparsity 0.5"]
    (marker,) = {shape.get_paths()[0].vertices.tobytes() for shape in drawn[0].axes[0].collections[:2]}
    assert marker  # the dense agents of the only variant have its marker


def test_bounds_of_0_have_no_place_and_without_any_there_is_no_figure(drawn):
    agents = [record(cell("CartPole-v1", PLAIN, s, 0)) for s in (0, 0.5)]
    agents[1]["certificates"][0]["tv"]["crown"] = 0.0
    frame = Results("", "", agents, {}, 2).frame
    assert figures_agents.draw_bounds(with_dense(frame), "CartPole-v1", "short")
    lines = {line.get_label(): list(line.get_xdata()) for line in drawn[0].axes[0].lines}
    assert (lines["abs"], lines["crown"]) == ([0, 0.5], [0])
    for agent in agents:
        agent["certificates"] = []
    assert figures_agents.draw_bounds(with_dense(Results("", "", agents, {}, 2).frame), "CartPole-v1", "short") is None


def lacking(cell, stage):
    """Hopper has one seed; the strong stage two sparsities, in one environment."""
    if cell["env"] == "Hopper-v5" and cell["seed"] > 0:
        return False
    return stage == "short" or (cell["sparsity"] in (0, 0.5) and cell["env"] == "CartPole-v1")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    results = study(["CartPole-v1", "Hopper-v5"], (PLAIN, RANDOM), (0, 0.5, 0.95), 3, ("short", "strong"), lacking)
    faulty = Results(
        "pruning", results.description, results.records, results.references, results.planned, ["cell x is damaged"]
    )
    folder = tmp_path_factory.mktemp("study") / "out"
    names = write_report(faulty, folder, REPS)
    return SimpleNamespace(names=names, folder=folder, results=faulty, text=(folder / "report.md").read_text())


def section(text, heading):
    """From a heading to the next of its rank."""
    level = heading.split(" ")[0]
    _, after = text.split(f"\n{heading}\n", 1)
    return re.split(rf"\n#{{1,{len(level)}}} ", after)[0]


def rows(text):
    """Cells of the lines of tables."""
    return [[one.strip() for one in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_files_and_figures_are_there_and_no_other(written):
    assert written.names[:2] == ["report.md", "report.html"]
    there = {str(path.relative_to(written.folder)) for path in written.folder.rglob("*") if path.is_file()}
    assert there == set(written.names)
    assert set(re.findall(r"\]\((.*?)\)", written.text)) == set(written.names[2:])
    page = (written.folder / "report.html").read_text()
    assert set(re.findall(r'src="(.*?)"', page)) == set(written.names[2:])
    assert page.count("<table>") == len(re.findall(r"\n\|---", written.text)) and "<style>" in page


def test_the_report_says_what_is_there(written):
    assert "Does **pruning** help?" in written.text
    there = section(written.text, "## What is there")
    assert "**20 of 30 planned agents**" in there and "not finished" in there and "- cell x is damaged" in there
    assert ["CartPole-v1", "strong", "9", "3", "0, 0.5", "linf: 0.1, 0.3", "100,000", "22"] in rows(there)


def test_raw_returns_are_those_of_each_seed(written):
    frame = written.results.frame
    own = frame[(frame["env"] == "CartPole-v1") & (frame["stage"] == "short") & (frame["sparsity"] == 0)]
    worst = own[own["eps"] == 0.1].sort_values("seed")["worst"]
    expected = f"{worst.mean():.4g} [{', '.join(f'{one:.4g}' for one in worst)}]"
    found = rows(section(written.text, "### CartPole-v1: short attacks"))
    (dense,) = [row for row in found if row[:3] == ["PPO", "0", "0, 1, 2"]]
    assert dense[5] == expected
    assert any(row[2] == "0" and "[" not in row[3] for row in rows(section(written.text, "### Hopper-v5: short attacks")))


def test_a_mean_over_some_of_the_agents_says_over_how_many():
    records = [record(cell("CartPole-v1", PLAIN, 0, seed)) for seed in (0, 1)]
    del records[1]["attacked"][0]["attacks"]["robust-sarsa"]
    named = {("ppo", "plain", "none", "none", "none"): "PPO"}
    text = report_tables.attack_returns(Results("", "", records, {}, 2).frame, named)
    header, _, row = rows(text)
    assert dict(zip(header, row, strict=True))["robust-sarsa"] == "60 (1)" and row[header.index("mad")] == "50"


def test_verdicts(written):
    spots = rows(section(written.text, "### CartPole-v1: short attacks").split("#### Sweet spots")[1].split("####")[0])[2:]
    assert {row[-1] for row in spots} <= {"**supported**", "not shown: dense is best", "not shown: the interval holds 0"}
    assert ["0.1", "PPO, magnitude", "highest worst return", "0.5"] == spots[1][:4] and spots[1][-1] == "**supported**"
    assert re.fullmatch(r"\S+ \[\S+, \S+\]", spots[1][4])


def test_one_seed_has_no_interval_star_or_verdict_in_the_report(written):
    hopper = section(written.text, "## Hopper-v5")
    assert "**supported**" not in hopper and "**+**" not in hopper and "**-**" not in hopper
    assert not re.search(r"\[[-\d]", hopper)
    assert "not shown: one pair of seeds" in hopper


def test_claims_count(written):
    claims = section(written.text, "## Claims")
    for number in "1234":
        assert f"### {number}. " in claims
    worst = next(row for row in rows(claims) if row[:2] == ["short", "worst"])
    # CartPole's two variants, sparsities and eps have three pairs, Hopper's two variants and sparsities one.
    assert sum(map(int, worst[2:6])) == int(worst[6]) == 12 and worst[5] == "4"
    crown = next(row for row in rows(claims) if row[0] == "`tv:crown`")
    assert crown[1].startswith("100%, x0.5")


def test_compute_counts_a_training_once(written):
    cartpole = next(row for row in rows(section(written.text, "## Compute")) if row[0] == "CartPole-v1")
    # 15 agents of 360 s; 15 + 9 measurements of 120 s and 60 s.
    assert cartpole == ["CartPole-v1", "15", "1.50", "0.80", "0.40", "2.70"]


@pytest.mark.parametrize("what, keep, expected", [
    ("nothing", lambda cell, stage: False, "**0 of 6 planned agents**"),
    ("dense only", lambda cell, stage: not cell["sparsity"], "No pruned agent is finished"),
    ("no dense", lambda cell, stage: cell["sparsity"], "not shown: no seed has all sparsities"),
    ("one sparsity", lambda cell, stage: cell["sparsity"] != 0.9, "**supported**"),
])  # fmt: skip
def test_incomplete_studies_are_reported(tmp_path, what, keep, expected):
    results = study(["Hopper-v5"], sparsities=(0, 0.5, 0.9), n_seeds=2, keep=keep, effect=lambda s: s)
    names = write_report(results, tmp_path, REPS)
    text = (tmp_path / "report.md").read_text()
    assert expected in text and "nan" not in text.lower().replace("finance", "")
    assert all((tmp_path / name).is_file() for name in names)


def test_environments_without_a_scale_are_named(tmp_path):
    results = study(["Hopper-v5"], sparsities=(0, 0.5), n_seeds=2)
    write_report(Results("s", "", results.records, {}, 4), tmp_path, REPS)
    text = (tmp_path / "report.md").read_text()
    assert "Left out of normalised returns: references: no return of random actions for Hopper-v5" in text
    assert "## Hopper-v5" in text and "figures/gains" not in text and "not known" in text


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="is not a folder"):
        write_report(study(["Hopper-v5"], n_seeds=1), tmp_path / "out", REPS)


def test_html_escapes_the_title():
    assert "<title>a &lt; b</title>" in to_html("# x", "a < b")


def test_cell_page_is_in_full():
    one = record(cell("CartPole-v1", PLAIN, 0.5, 3), clean=400.0, worst={0.1: 300.0, 0.3: 50.0})
    text = cell_page(one)
    assert text.startswith("# CartPole-v1-ppo-plain-magnitude-uniform-polynomial-0.5-seed3: short attacks\n")
    found = rows(text)
    assert ["`n_steps`", "`2048`"] in found and ["eps", "method"] == next(row for row in found if row[0] == "eps")[:2]
    assert ["robust-sarsa", "2", "320 [294.6, 345.4]", "100%", "20,000 steps, 60 CPU s", "318 322"] in found
    assert ["its mode", "2", "400 [387.3, 412.7]", "399 401"] in found
    assert ["0.3", "crown", "0.4", "2"] in found
    assert "The worst is `mad`" in text
    for part in ("100,000 environment steps", "continued from a checkpoint 1 time", "eps = 0.3", "needs a Gaussian policy",
                 "torch 2.9.0", "commit `7408674`", "`box`", "eps = 0.05**", "train 360", "0123456789abcdef"):  # fmt: skip
        assert part in text


def test_cell_page_says_what_is_not_there():
    one = record(cell("CartPole-v1", PLAIN, 0, 3), "strong")
    one |= {"certificates": [], "certified_return": {"not_certified": "not at this stage"}, "commit": None}
    one["clean"]["sampled"] = []
    text = cell_page(one)
    assert "None at this stage" in text and "The return is not certified: not at this stage." in text
    assert "no commit known" in text and "samples of its distribution" not in text
