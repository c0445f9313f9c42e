"""What the commands share: the parser, and types of arguments."""

from __future__ import annotations

import argparse
from typing import NoReturn

from sb3_prune_robust.attacks import ATTACKS, SUITES

PROGRAM = "sb3-prune-robust"
CODE_WARNING = (
    "Loading a model file from somebody else runs their pickled code; so do a VecNormalize file and a run's config.yml. Load\n"
    "those of people you trust."
)
MAX_ENVS = 32  # a larger batch hardly speeds up the policy any more


class Parser(argparse.ArgumentParser):
    """Errors in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help explains)\n")


def sparsities(text: str) -> tuple[float, ...]:
    """Sparsities in [0, 1), separated by commas."""
    numbers = floats(text)
    if not all(0 <= number < 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"every sparsity must lie in [0, 1), got {text!r}")
    return numbers


def floats(text: str) -> tuple[float, ...]:
    """Numbers, separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 0.001,0.01") from None


def pair(text: str) -> tuple[float, float]:
    """Two numbers, separated by a comma."""
    numbers = floats(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"two numbers are needed, like 0,5; got {text!r}")
    return numbers[0], numbers[1]


def radii(text: str) -> tuple[float, ...]:
    """Positive radii, separated by commas."""
    numbers = floats(text)
    if not all(0 < radius < float("inf") for radius in numbers):
        raise argparse.ArgumentTypeError(f"every radius must be positive and finite, got {text!r}")
    return numbers


def positive(text: str) -> float:
    """A positive number."""
    numbers = floats(text)
    if len(numbers) != 1 or not 0 < numbers[0] < float("inf"):
        raise argparse.ArgumentTypeError(f"a positive number is needed, got {text!r}")
    return numbers[0]


def positive_int(text: str) -> int:
    """A positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, got {text!r}")
    return int(text)


def suites() -> str:
    """The suites of attacks, for help texts."""
    return "; ".join(f"'{name}', which stands for {', '.join(attacks)}" for name, attacks in SUITES.items())


def names(text: str) -> tuple[str, ...]:
    """Names, separated by commas."""
    return tuple(part.strip() for part in text.split(","))


def attacks_help() -> str:
    """What ``--attacks`` may be."""
    default = "random,fgsm,mad,critic, but critic where there is no critic to attack by"
    return f"of {', '.join(ATTACKS)} (with #2 behind it: another seed), and {suites()} (default: {default})"
