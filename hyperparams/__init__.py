"""
RL Zoo hyperparameters that use the package, one YAML file per algorithm and a module beside it.

``--conf-file`` takes either: the path of ``ppo.yml``, or ``sb3_prune_robust.hyperparams.ppo``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
ALGORITHMS = tuple(sorted(path.stem for path in FOLDER.glob("*.yml")))


def load(algo: str) -> dict[str, dict[str, Any]]:
    """
    The entries of an algorithm.

    :param algo: its name in RL Zoo, one of :data:`ALGORITHMS`
    :return: the entries by environment id, read anew: the zoo changes what it is given
    :raises ValueError: for an algorithm without a file
    """
    if algo not in ALGORITHMS:
        raise ValueError(f"algo {algo!r} has no hyperparameters here; those that have: {', '.join(ALGORITHMS)}")
    entries: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / f"{algo}.yml").read_text())
    return entries


def module_attributes(algo: str) -> Callable[[str], Any]:
    """
    What a module with an algorithm's name has for ``__getattr__``: RL Zoo asks it for ``hyperparams``.

    :param algo: as :func:`load`
    :return: a function that gives the entries for ``"hyperparams"``, and raises ``AttributeError`` for other names
    """

    def attribute(name: str) -> Any:
        if name != "hyperparams":
            raise AttributeError(f"module {__name__}.{algo} has no attribute {name!r}")
        return load(algo)

    return attribute
