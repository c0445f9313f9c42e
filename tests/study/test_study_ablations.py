"""What benchmarks/study_ablations.py compares."""

import importlib.util
from pathlib import Path

import pytest
from synthetic import cell, record

from sb3_prune_robust.study.results import Results

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "study_ablations.py"
_spec = importlib.util.spec_from_file_location("study_ablations", _SCRIPT)
ablations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ablations)

MAIN = ("ppo", "plain", "magnitude", "erk", "polynomial")
SAPPO = ("sappo", *MAIN[1:])
MICRO = (*MAIN[:4], "micro")


def frame(agents):
    """Of (way, sparsity, seed, worst at the eps 0.1): all of one environment; at 0.2 the worst is a tenth of it."""
    records = [
        record(cell("CartPole-v1", way, sparsity, seed), worst={0.1: worst, 0.2: worst / 10}, tv=0.1 * (1 - sparsity))
        for way, sparsity, seed, worst in agents
    ]
    return Results("", "", records, {"CartPole-v1": 0.0}, len(records), [], 0.95, {}).frame


def lines(page, title):
    """The table of a comparison, without its head."""
    part = page.split(f"## {title}")[1].split("##")[0]
    return [[field.strip() for field in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("| C")]


def test_an_agent_is_compared_with_that_of_its_sparsity_and_seed():
    others = [(MAIN, 0.5, 3, 400.0), (MICRO, 0.5, 0, 45.0), (SAPPO, 0.9, 0, 99.0)]  # of no pair with SA-PPO at 0 or 0.5
    dense = [(MAIN, 0, 0, 20.0), (MAIN, 0, 1, 30.0), (SAPPO, 0, 0, 80.0), (SAPPO, 0, 1, 20.0)]
    pruned = [(MAIN, 0.5, 0, 40.0), (MAIN, 0.5, 1, 60.0), (SAPPO, 0.5, 1, 70.0), (SAPPO, 0.5, 0, 90.0)]
    page = ablations.write(frame([*others, *dense, *pruned]))
    found = lines(page, "SA-PPO against PPO")
    assert [line[1:8] for line in found[:2]] == [
        ["0.1", "0", "2", "100; 100", "25; 50", "20, 30; 80, 20", "1 of 2"],
        ["0.1", "0.5", "2", "100; 100", "50; 80", "40, 60; 90, 70", "2 of 2"],
    ]
    assert [line[1:6] for line in found[2:]] == [
        ["0.2", "0", "2", "100; 100", "2.5; 5"],
        ["0.2", "0.5", "2", "100; 100", "5; 8"],
    ]
    assert [line[8] for line in found] == ["0.1; 0.1", "0.05; 0.05", "0.2; 0.2", "0.1; 0.1"]
    assert [line[2:6] for line in lines(page, "Micro-pruning")] == [
        ["0.5", "1", "100; 100", "40; 45"],
        ["0.5", "1", "100; 100", "4; 4.5"],
    ]
    assert "No agent is finished yet" in page.split("## Random")[1].split("##")[0]


def test_two_agents_of_one_cell_are_refused():
    twice = [(MAIN, 0.5, 0, 40.0), (SAPPO, 0.5, 0, 90.0), (SAPPO, 0.5, 0, 80.0)]
    with pytest.raises(ValueError, match="not unique"):
        ablations.write(frame(twice))
