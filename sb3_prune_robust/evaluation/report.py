"""Files of a report: whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA_VERSION = 2


def prepare_folder(path: str | Path) -> Path:
    """
    Make sure, before any work, that the output folder can be written: by writing into it.

    :param path: the folder; made, with its parents, if missing
    :return: the folder
    :raises ValueError: if it is a file, or nothing can be written in it
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out {folder} exists and is not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"out {folder} cannot be written: {error.strerror or error}") from error
    return folder


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """
    Write files so that each is there as a whole or not at all, whenever the process is interrupted.

    All are written and flushed under temporary names first, then renamed one after the other.

    :param folder: where
    :param files: content by name
    """
    written: dict[str, Path] = {}
    try:
        for name, content in files.items():
            written[name] = folder / f".{name}.{os.getpid()}.tmp"
            with open(written[name], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name, temporary in written.items():
            os.replace(temporary, folder / name)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def to_json(record: Any) -> bytes:
    """
    Strict JSON: numpy becomes plain, keys stay in order, and what JSON has no word for is refused.

    :param record: dictionaries, lists, numbers, strings, ``None``, numpy arrays and scalars
    :return: the encoded text
    :raises ValueError: for NaN or an infinity (what is not known must be ``None``)
    """
    return (json.dumps(plain(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def plain(value: Any) -> Any:
    """Numpy and tuples made plain Python."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def finite(value: float | None) -> float | None:
    """The number, or ``None`` where it is not known or not finite."""
    return None if value is None or not math.isfinite(value) else float(value)
