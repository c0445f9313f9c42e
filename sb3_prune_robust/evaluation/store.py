"""Finished pieces of an evaluation in a folder: a killed run continues, and nothing that was finished is done again."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sb3_prune_robust.attacks import FittedAttack
from sb3_prune_robust.attacks.fitting import read_arrays, write_arrays
from sb3_prune_robust.evaluation.identity import attack_key, digest, normal_form
from sb3_prune_robust.evaluation.rollouts import Episodes

Array = npt.NDArray[Any]
Key = Mapping[str, Any]

_PER_EPISODE = ("returns", "discounted", "lengths", "terminated")
_PER_STEP = ("rewards", "observations", "samples")
_OF_ALL = ("reward_min", "reward_max", "perturbed")
_DIGITS = 20  # of a digest, in the names of files


class DamagedPieceWarning(UserWarning):
    """A kept piece could not be read, or is of something else; it is made again."""


@dataclass(frozen=True)
class Piece:
    """
    Episodes that were played.

    :param episodes: the episodes; ``None`` if an attack changed no observation
    :param seconds: CPU seconds that playing them took
    :param no_attack: why there are no episodes
    """

    episodes: Episodes | None
    seconds: float
    no_attack: str | None = None


class Store:
    """
    A folder of finished pieces, each in a file named by a digest of everything that the piece depends on.

    Files appear whole or not at all, hold plain arrays, and may be deleted at any time: what is missing is made again.

    :param folder: the folder, made when there is something to keep; ``None``: nothing is kept
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def _path(self, kind: str, key: Key, suffix: str = ".npz") -> Path | None:
        return None if self.folder is None else self.folder / f"{kind}-{digest(key)[:_DIGITS]}{suffix}"

    def read(self, key: Key) -> Piece | None:
        """
        Episodes, if they are kept and whole.

        :param key: what they depend on
        :return: the piece, or ``None``
        """
        path = self._path("episodes", key)
        if path is None or not path.exists():
            return None
        try:
            header, arrays = read_arrays(path)
            _check("key", header.get("key"), normal_form(key))
            episodes = None if header["no_attack"] is not None else _unpacked(arrays)
            return Piece(episodes, float(header["seconds"]), header["no_attack"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            _warn(path, error)
            return None

    def write(self, key: Key, piece: Piece) -> None:
        """
        Keep episodes.

        :param key: what they depend on
        :param piece: the episodes
        """
        path = self._path("episodes", key)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            arrays = {} if piece.episodes is None else _packed(piece.episodes)
            header = {"key": normal_form(key), "seconds": piece.seconds, "no_attack": piece.no_attack}
            write_arrays(path, header, arrays)

    def record(self, key: Key, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """
        What was computed from episodes, computed if it is not kept.

        :param key: what it depends on
        :param make: computes it: what JSON can hold, and numpy arrays
        :return: the record; as JSON gives it back if it is kept
        """
        path = self._path("record", key)
        if path is None:
            return make()
        if path.exists():
            try:
                header, _ = read_arrays(path)
                _check("key", header.get("key"), normal_form(key))
                return dict(header["record"])
            except (ValueError, KeyError, TypeError) as error:
                _warn(path, error)
        path.parent.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = normal_form(make())
        write_arrays(path, {"key": normal_form(key), "record": record}, {})
        return record

    def read_attack(self, key: Key, attack: FittedAttack) -> FittedAttack | None:
        """
        A fitted attack, if it is kept and whole.

        :param key: what it depends on
        :param attack: the same, not fitted
        :return: the fitted one, or ``None``
        """
        path = self._path("attack", key)
        if path is None or not path.exists():
            return None
        try:
            return _loaded(path, attack)
        except ValueError as error:
            _warn(path, error)
            return None

    def write_attack(self, key: Key, attack: FittedAttack) -> FittedAttack:
        """
        Keep a fitted attack, and drop its checkpoint.

        :param key: what it depends on
        :param attack: the fitted attack
        :return: the same as a later run reads it, its random numbers not yet drawn
        """
        path = self._path("attack", key)
        if path is None:
            with tempfile.TemporaryDirectory() as folder:
                attack.save(Path(folder) / "attack.npz")
                return _loaded(Path(folder) / "attack.npz", attack)
        path.parent.mkdir(parents=True, exist_ok=True)
        attack.save(path)
        checkpoint = self._path("fit", key, "")
        shutil.rmtree(checkpoint, ignore_errors=True)  # type: ignore[arg-type]
        return _loaded(path, attack)

    def checkpoint(self, key: Key) -> Path | None:
        """
        The folder for the checkpoint of a fit; emptied if what is in it is damaged.

        :param key: what the fitted attack depends on
        :return: the folder, ``None`` if nothing is kept
        """
        path = self._path("fit", key, "")
        if path is not None and path.exists():
            try:
                for file in path.glob("[!.]*.npz"):
                    read_arrays(file)
            except ValueError as error:
                _warn(path, error)
                shutil.rmtree(path)
        return path


def _warn(path: Path, error: Exception) -> None:
    text = f"{path} is damaged or of something else, so it is made again: {error}"
    warnings.warn(text, DamagedPieceWarning, stacklevel=3)


def _check(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise ValueError(f"its {what} is {found!r}, expected {expected!r}")


def _loaded(path: Path, attack: FittedAttack) -> FittedAttack:
    """The attack in a file, if it is of the class and has the settings of the one given."""
    loaded = FittedAttack.load(path)
    for what in ("class", "settings"):
        _check(what, normal_form(attack_key(loaded))[what], normal_form(attack_key(attack))[what])
    return loaded


def _packed(episodes: Episodes) -> dict[str, Array]:
    """Episodes as arrays by name; what has one entry for each step, all episodes in one array."""
    arrays = {name: np.asarray(getattr(episodes, name)) for name in (*_PER_EPISODE, *_OF_ALL)}
    return arrays | {name: np.concatenate(steps) for name in _PER_STEP if (steps := getattr(episodes, name))}


def _unpacked(arrays: Mapping[str, Array]) -> Episodes:
    """What :func:`_packed` was given."""
    lengths = arrays["lengths"]
    steps = {}
    for name in _PER_STEP:
        if name in arrays or name == "rewards":
            _check(f"number of {name}", len(arrays[name]), int(lengths.sum()))
            steps[name] = tuple(np.split(arrays[name], np.cumsum(lengths)[:-1]))
    whole = {name: float(arrays[name]) for name in _OF_ALL}
    return Episodes(**{name: arrays[name] for name in _PER_EPISODE}, **whole, **steps)  # type: ignore[arg-type]
