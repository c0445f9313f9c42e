"""The files of a study: whole or reported, whatever happens to them."""

import errno
import fcntl
import json
import multiprocessing
import os

import pytest
from small import SMALL, changed, first, hold, write_often

from sb3_prune_robust.study import worker
from sb3_prune_robust.study.files import DamagedFileError
from sb3_prune_robust.study.plan import read_references
from sb3_prune_robust.study.store import StudyStore, make_task

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def written(tmp_path):
    """A store with the first task's file, the task, and the file."""
    store = StudyStore(tmp_path)
    _, task = first()
    store.write(task, {"values": [1.5, 2.5]})
    (path,) = (tmp_path / "cells").iterdir()
    return store, task, path


def test_what_is_written_is_read(written):
    store, task, path = written
    assert store.read(task) == {"values": [1.5, 2.5]} and store.is_done(task)
    assert path.name == f"{task.name}.json" and task.name.startswith("CartPole-v1-ppo-plain-dense-seed0-short-")
    assert store.read(first(sparsity=0.5)[1]) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("2.5", "3.5"),
        lambda text: "",
        lambda text: "{}",
        lambda text: json.dumps({"sha256": "0", "record": [1]}),
    ],
    ids=["cut short", "a number changed", "empty", "nothing", "another kind"],
)
def test_a_damaged_file_is_never_used(written, spoil):
    store, task, path = written
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DamagedFileError, match=path.name):
        store.read(task)
    assert not store.is_done(task)


def test_a_file_of_another_cell_is_never_used(written):
    store, _, path = written
    _, other = first(sparsity=0.5)
    os.rename(path, path.with_name(f"{other.name}.json"))
    with pytest.raises(DamagedFileError, match="something else"):
        store.read(other)


def test_what_is_not_a_number_is_not_kept(tmp_path):
    store, (_, task) = StudyStore(tmp_path), first()
    with pytest.raises(ValueError):
        store.write(task, {"mean": float("nan")})
    assert not store.is_done(task)


def test_the_name_tells_all_that_a_cell_depends_on():
    _, task = first()
    others = [
        changed(evaluation={**SMALL["evaluation"], "n_episodes": 5}),
        changed(environments={"CartPole-v1": {**SMALL["environments"]["CartPole-v1"], "eps": [0.2]}}),
        changed(environments={"CartPole-v1": {"entry": {"n_timesteps": 2048}, "eps": [0.1]}}),
    ]
    names = [first(source)[1].name for source in others]
    assert len({task.name, *names}) == 4
    assert first(others[0])[1].agent == first(others[1])[1].agent == task.agent  # measured otherwise
    assert first(others[2])[1].agent != task.agent
    assert first(changed(grid=[{"sparsities": [0], "seeds": [0, 7]}]))[1] == task  # nor do other cells
    strong = make_task(first(changed(strong={"attacks": ["fgsm"]}))[0], task.cell, "strong")
    assert strong.name != task.name and strong.agent == task.agent
    other = {"evaluation": {**SMALL["evaluation"], "norm": "l2"}, "strong": {"attacks": ["fgsm"]}}
    assert make_task(first(changed(**other))[0], task.cell, "strong").name != strong.name


def test_equal_numbers_are_the_same_cell():
    _, task = first()
    environment = SMALL["environments"]["CartPole-v1"]
    same = {**environment, "eps": 0.1, "entry": {**environment["entry"], "n_timesteps": 1024.0}}
    source = changed(environments={"CartPole-v1": same}, grid=[{"sparsities": [0.0], "seeds": [0]}])
    assert first(source)[1].name == task.name


def test_a_damaged_or_renamed_reference_is_told_and_played_again(tmp_path, capsys):
    study, _ = first()
    store = StudyStore(tmp_path)
    worker.write_references(study, store)
    mean, path = store.reference("CartPole-v1"), tmp_path / "references" / "CartPole-v1.json"
    assert 15 < mean < 30
    other = path.with_name("Acrobot-v1.json")
    path.rename(other)
    with pytest.raises(DamagedFileError, match="CartPole-v1"):
        store.reference("Acrobot-v1")
    path.write_bytes(other.read_bytes()[:-30])
    assert read_references(study, store)[0] == {} and len(read_references(study, store)[1]) == 1
    worker.write_references(study, store)
    assert store.reference("CartPole-v1") == mean and "played again" in capsys.readouterr().err


def test_two_that_look_at_what_runs_do_not_take_each_other_for_workers(tmp_path):
    store, (_, task) = StudyStore(tmp_path), first()
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / f"{task.name}.json").write_text('{"what": "training"}')  # its worker was killed
    held = open(tmp_path / "running" / f"{task.name}.json")
    fcntl.flock(held, fcntl.LOCK_SH)  # as running() does
    assert store.running() == {}
    held.close()
    with store.claimed(task) as say:
        assert say is not None


def test_one_agent_is_trained_by_one_worker(tmp_path):
    _, task = first()
    other = first(changed(evaluation={**SMALL["evaluation"], "n_episodes": 5}))[1]
    store = StudyStore(tmp_path)
    assert store.agent(task) == store.agent(other) and task.name != other.name
    with store.training(task), open(f"{store.agent(other)}.lock") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_worker_comes_back_to_what_others_are_at(tmp_path, monkeypatch):
    answers = iter(["taken", "done", "taken", "done"])
    seen = []
    monkeypatch.setattr(worker, "attempt", lambda *task: seen.append(task[-1]) or next(answers))
    monkeypatch.setattr(worker, "_WAIT_SECONDS", 0.0)
    worker.finish(None, None, ["a", "b"])
    assert seen == ["a", "b", "a", "a"]


def test_many_writers_leave_a_whole_file(tmp_path):
    workers = [SPAWN.Process(target=write_often, args=(SMALL, tmp_path, number, 30)) for number in (1, 2, 3)]
    for process in workers:
        process.start()
    store, (_, task), seen = StudyStore(tmp_path), first(), 0
    while any(process.is_alive() for process in workers):
        record = store.read(task)  # raises if it is not whole
        if record is not None:
            seen += 1
            assert len(record["values"]) == 20_000 and len(set(record["values"])) == 1
    assert seen and all(process.exitcode == 0 for process in workers)
    assert len(list((tmp_path / "cells").iterdir())) == 1  # nothing half-written is left


def test_a_task_is_one_workers_until_it_dies(tmp_path):
    store, (_, task) = StudyStore(tmp_path), first()
    process = SPAWN.Process(target=hold, args=(SMALL, tmp_path, 600))
    process.start()
    while task.name not in store.running():
        assert process.is_alive()
    with store.claimed(task) as say:
        assert say is None
    process.kill()
    process.join()
    assert store.running() == {}
    with store.claimed(task) as say:
        say("training", 0.5)
    assert not list((tmp_path / "running").iterdir())


def test_a_full_disk_stops_the_worker_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    study, task = first()
    monkeypatch.setattr(worker, "run_task", lambda *_: {"values": [1.0]})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(worker.DiskFullError, match=r"no space is left.*make room"):
            worker.attempt(study, StudyStore(tmp_path), task)
    assert not list((tmp_path / "cells").iterdir()) and StudyStore(tmp_path).failure(task) is None
    assert worker.attempt(study, StudyStore(tmp_path), task) == "done"
    assert StudyStore(tmp_path).read(task) == {"values": [1.0]}


def test_a_full_disk_is_told_whatever_hides_it(tmp_path, monkeypatch):
    def torch_does(*_):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  as torch's zip writer does

    monkeypatch.setattr(worker, "run_task", torch_does)
    study, task = first()
    with pytest.raises(worker.DiskFullError):
        worker.attempt(study, StudyStore(tmp_path), task)


def test_an_error_is_kept_and_the_task_left_alone_until_the_next_run(tmp_path, monkeypatch):
    study, task = first()
    store = StudyStore(tmp_path)
    monkeypatch.setattr(worker, "run_task", lambda *_: 1 / 0)
    assert worker.attempt(study, store, task) == "failed"
    assert "ZeroDivisionError" in store.failure(task) and not store.is_done(task)
    monkeypatch.setattr(worker, "run_task", lambda *_: {"values": []})
    assert worker.attempt(study, store, task) == "failed"  # in the same run
    store.forget_failure(task)
    assert worker.attempt(study, store, task) == "done" and store.failure(task) is None
