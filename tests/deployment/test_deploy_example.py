"""``examples/deploy.py``, run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "deploy.py"


def test_example_runs() -> None:
    pytest.importorskip("onnxruntime")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run([sys.executable, SCRIPT], check=True, capture_output=True, text=True, env=environment).stdout
    found = re.search(r"90% zeros; .* 64, 64 -> \[(\d+), (\d+)\]", output)
    assert found and int(found[1]) < 64
    assert "ActorCriticPolicy and the ONNX file choose the same actions as the agent trained: True True" in output
