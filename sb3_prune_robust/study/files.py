"""JSON files that say their own checksum: whole, or known to be damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sb3_prune_robust.evaluation.identity import normal_form
from sb3_prune_robust.evaluation.report import write_files


class DamagedFileError(ValueError):
    """A file of a study is cut short, changed, or of something else."""


def write_checked(path: Path, content: Mapping[str, Any]) -> None:
    """
    Write a file that is there whole or not at all, and its folder if it is missing.

    :param path: the file
    :param content: what JSON can hold, and numpy arrays
    :raises ValueError: for NaN or an infinity
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = normal_form(content)
    text = json.dumps({"sha256": _sum(plain), "record": plain}, allow_nan=False)
    write_files(path.parent, {path.name: text.encode()})


def read_checked(path: Path) -> dict[str, Any]:
    """
    What :func:`write_checked` wrote.

    :param path: the file
    :raises DamagedFileError: if it is not whole, or no such file
    """
    try:
        found = json.loads(path.read_bytes())
        content, expected = found["record"], found["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{path} is cut short or no file of a study: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or _sum(content) != expected:
        raise DamagedFileError(f"{path} is damaged: its content does not have the checksum that it states")
    return content


def _sum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
