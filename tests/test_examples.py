"""Every example, run as a script, for as short as it says something."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
# Arguments, and what the output must say.
EXAMPLES: dict[str, tuple[list[int], str]] = {
    "train_lipschitz_pruned": (
        [6000],
        r"sparsity of the actor's hidden layers: 0\.700[\s\S]*certified total variation on 808 states",
    ),
    "prune_existing_project": ([1500], r"sparsity 0\.\d+ +certified TV [\s\S]*\n\{'actor': 0\.8"),
    "off_policy": ([400], r"zeros: actor 70%, critics 30%[\s\S]*by at most 0\.\d+[\s\S]*under MAD of eps 0\.3 -\d+"),
    "camera_and_state": ([512], r"zeros: actor 80%[\s\S]*attacked in \{'camera': 20, 'state': 0\.5\}: \d"),
    "certify_returns": ([4000, 40], r"Lipschitz and pruned: clean \d+; under every attack of eps 0\.001 at least \d+"),
    "strongest_attack": ([4000, 1500], r"pa-ad-search: \d+, Cost[\s\S]*the agent now sees \[\["),
    "robust_training": (
        [4096],
        r"PPO: \d+ clean, \d+ under \w+ at eps=0\.1\nSA-PPO, pruned: \d+ clean, \d+ under \w+ at eps=0\.1",
    ),
    "deploy": ([8000], r"90% zeros; .* 64, 64 -> \[\d+, \d+\][\s\S]*as the agent trained: True True"),
    "zoo_run": ([4096], r"ppo\.yml[\s\S]*worst[\s\S]*--load-best[\s\S]*worst"),
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_example(name: str, tmp_path: Path) -> None:
    arguments, expected = EXAMPLES[name]
    command = [sys.executable, FOLDER / f"{name}.py", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert re.search(expected, ran.stdout), ran.stdout
    assert not list(tmp_path.iterdir())  # nothing is left behind
