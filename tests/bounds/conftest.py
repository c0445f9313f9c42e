import sys
from pathlib import Path

import pytest
import torch as th

# pytest's importlib mode puts no test folder on the path: the helpers in random_networks.py are imported by both test files.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def one_thread():
    th.set_num_threads(1)
