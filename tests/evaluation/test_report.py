from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sb3_prune_robust.evaluation.report import prepare_folder, to_json, write_files


def test_files_are_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    write_files(tmp_path, {"a": b"new", "b": b"x"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"x"}


def test_a_file_is_replaced_never_overwritten_in_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    os.link(tmp_path / "a", tmp_path / "reader")  # as a reader that had the file open keeps it
    write_files(tmp_path, {"a": b"new"})
    assert (tmp_path / "reader").read_bytes() == b"old" and (tmp_path / "a").read_bytes() == b"new"


def test_a_failure_on_the_way_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    calls: list[int] = []

    def interrupted(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_files(tmp_path, {"a": b"new", "b": b"x"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_reader_and_a_kill_find_whole_files_only(tmp_path: Path) -> None:
    code = (
        "import itertools, pathlib, sys\n"
        "from sb3_prune_robust.evaluation.report import write_files\n"
        "for i in itertools.count():\n"
        "    write_files(pathlib.Path(sys.argv[1]), {'a': bytes([i % 256]) * 3_000_000})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        while not (tmp_path / "a").exists():
            assert process.poll() is None
            time.sleep(0.05)
        seen = [(tmp_path / "a").read_bytes() for _ in range(300)]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    seen.append((tmp_path / "a").read_bytes())
    assert len(set(seen)) > 3
    assert all(content == content[:1] * 3_000_000 for content in seen)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("nan"), np.array([1.0, np.inf])])
def test_json_is_strict(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"x": value})


def test_json_makes_numpy_plain() -> None:
    record = {"a": np.arange(3), "b": np.float32(0.5), "c": (np.bool_(True), None), 0.5: [np.array([[1.5]])]}
    assert json.loads(to_json(record)) == {"a": [0, 1, 2], "b": 0.5, "c": [True, None], "0.5": [[[1.5]]]}


def test_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    assert list(prepare_folder(tmp_path / "new" / "deep").iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"out .*file"):
            prepare_folder(path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def denied(*args: object, **kwargs: object) -> None:  # root, who runs tests in containers, may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", denied)
    with pytest.raises(ValueError, match=r"out .* cannot be written: Permission denied"):
        prepare_folder(tmp_path)
