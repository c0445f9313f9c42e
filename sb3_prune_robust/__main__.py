"""``python -m sb3_prune_robust``: the command line."""

import sys

from sb3_prune_robust.cli import main

if __name__ == "__main__":
    sys.exit(main())
