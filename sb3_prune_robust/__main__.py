"""``python -m sb3_prune_robust``: the command line."""

import sys

from sb3_prune_robust.cli import main

if __name__ == "__main__":
    code = main()
    # A KeyboardInterrupt that left the code of an exec or eval on its way, that of a dataclass being made, say, is noted by
    # CPython, which then, with -m, dies of SIGINT whatever code is given here. The next exec makes it forget.
    exec("")
    sys.exit(code)
