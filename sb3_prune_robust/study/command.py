"""What ``sb3-prune-robust study`` does: run, status, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sb3_prune_robust.evaluation.report import prepare_folder, write_files
from sb3_prune_robust.study.cluster import CONFIG, OnRay
from sb3_prune_robust.study.config import Study, check_environments, read_study
from sb3_prune_robust.study.estimate import estimated
from sb3_prune_robust.study.plan import Estimate, State, all_tasks, collect, left, read_references, state, tasks
from sb3_prune_robust.study.report import cell_page, to_html, write_report
from sb3_prune_robust.study.runner import Local, WorkersDiedError, default_workers, run_stages
from sb3_prune_robust.study.store import StudyStore
from sb3_prune_robust.study.training import check_kinds
from sb3_prune_robust.study.worker import DiskFullError, full_disk_told


class UnfinishedError(RuntimeError):
    """A run came to its end before the study did."""


def run(
    config: str, folder: Path, workers: int | None, address: str | None, environments: Sequence[str] | None = None
) -> None:
    """
    Run what is missing of a study.

    :param config: the YAML file
    :param folder: of the study
    :param workers: processes; ``None``: as many as there are processors
    :param address: of a Ray cluster; ``None``: on this machine
    :param environments: ids of those to run now; ``None``: all
    :raises ValueError: if the file is wrong, or the folder another study's
    :raises UnfinishedError: if not all is done at the end
    """
    study = _read(config, environments)
    try:
        with full_disk_told(folder):
            store = _open(study, folder)
            now = run_stages(study, store, Local(workers or default_workers()) if address is None else OnRay(address))
    except (DiskFullError, WorkersDiedError) as error:
        raise UnfinishedError(str(error)) from error
    print(_counts(now))
    if now.failed:
        raise UnfinishedError(
            f"{len(now.failed)} cells failed: 'study status {folder}' says why; the next run tries them again"
        )
    if now.missing:
        raise UnfinishedError(f"{len(now.missing)} cells are at work in another run, or were when it ended: run this again")


def _read(config: str, environments: Sequence[str] | None) -> Study:
    """The study, or its part in some environments, each kind of training and attack tried."""
    study = read_study(config)
    study = study if environments is None else study.only(environments)
    check_environments(study)
    check_kinds(study)
    return study


def _open(study: Study, folder: Path) -> StudyStore:
    """The store, with the study's file in its folder."""
    kept = folder / CONFIG
    if kept.exists() and _kept(folder).name != study.name:
        raise ValueError(
            f"out {folder} is of the study {_kept(folder).name!r}, this one is {study.name!r}; give another folder"
        )
    write_files(prepare_folder(folder), {CONFIG: yaml.safe_dump(dict(study.source), sort_keys=False).encode()})
    return StudyStore(folder)


def _kept(folder: Path) -> Study:
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is no folder of a study: it has no {CONFIG}, which 'study run' writes")
    return read_study(folder / CONFIG)


def dry_run(config: str, folder: Path, workers: int | None, environments: Sequence[str] | None = None) -> None:
    """
    Print what would be run, and how long it may take.

    :param config: the YAML file
    :param folder: of the study
    :param workers: processes; ``None``: as many as there are processors
    :param environments: ids of those that would be run; ``None``: all
    """
    study, store = _read(config, environments), StudyStore(folder)
    known = tasks(study, store)
    now = state(store, known)
    for task in now.missing:
        print(task.stage, task.cell.name)
    estimate = Estimate(store)
    estimate.learn(now.done)
    seconds, probed = estimated(study, store, now.missing, estimate)
    workers = workers or default_workers()
    hours, of = seconds / 3600, f"{len(now.missing)} of {len(known)}"
    print(f"{of} to do: {hours:.1f} CPU hours, on {workers} workers {left(seconds, workers)}")
    if probed:
        print(f"{probed} kinds of cells were timed by seconds of training and play: right within a factor of two at best")
    if study.strong is not None and any(task.stage == "short" for task in now.missing):
        print("strong attacks on dense agents and candidates come on top: these are known when the rest is finished")


def status(folder: Path) -> None:
    """
    Print how far a study is.

    :param folder: of the study
    """
    study, store = _kept(folder), StudyStore(folder)
    now = state(store, tasks(study, store))
    print(f"{study.name}: {_counts(now)}")
    for name, one in store.running().items():
        print(f"  running: {name}: {one['what']} {one['share']:.0%} (process {one['pid']})")
    for fault in [*now.damaged.values(), *read_references(study, store)[1]]:
        print(f"  damaged, to be done again: {fault}")
    for name, error in now.failed.items():
        print(f"  failed: {name}\n    " + "\n    ".join(error.rstrip().splitlines()))
    known = {task.name for task in all_tasks(study)}
    strange = sum(path.stem not in known for path in (folder / "cells").glob("*.json"))
    if strange:
        print(f"  {strange} files of cells that {CONFIG} does not ask for are left alone, and in no report")
    estimate = Estimate(store)
    estimate.learn(now.done)
    if now.missing:
        print(f"  {left(estimate.total(now.missing), 1)} for one worker")


def _counts(now: State) -> str:
    return f"{len(now.done)} of {len(now.done) + len(now.missing)} done, {len(now.damaged)} damaged, {len(now.failed)} failed"


def report(folder: Path) -> None:
    """
    Write what a study found.

    :param folder: of the study
    :raises ValueError: if no cell is finished
    """
    study, store = _kept(folder), StudyStore(folder)
    results = collect(study, store)
    if not results.records:
        raise ValueError(f"{folder}: no cell is finished yet, so there is nothing to report")
    results.frame.to_parquet(folder / "cells.parquet")
    names = write_report(results, folder)
    print(f"Written to {folder}: {', '.join([*names, 'cells.parquet'])}")


def show_cell(folder: Path, name: str) -> None:
    """
    Write a page that shows one cell in full, and print it.

    :param folder: of the study
    :param name: of a cell, or a part of one that no other finished cell has
    :raises ValueError: if there is none, or more than one
    """
    study, store = _kept(folder), StudyStore(folder)
    done = state(store, all_tasks(study)).done
    found = [task for task in done if name == task.name] or [task for task in done if name in task.name]
    if len(found) != 1:
        which = ", ".join(task.name for task in found[:10]) or "none"
        raise ValueError(f"cell {name!r} must be (a part of) the name of one finished cell, these have it: {which}")
    record: dict[str, Any] | None = store.read(found[0])
    assert record is not None
    page, folder = cell_page(record), prepare_folder(folder / "pages")
    files = {f"{found[0].name}.md": page, f"{found[0].name}.html": to_html(page, found[0].cell.name)}
    write_files(folder, {name: text.encode() for name, text in files.items()})
    print(page)
    print(f"Written to {folder}: {', '.join(files)}")
