"""What the tests of studies share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode puts no test folder on the path: for synthetic.py
