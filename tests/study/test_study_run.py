"""A tiny study from end to end, on this machine and on Ray; and what befalls runs."""

import contextlib
import io
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter

import pandas as pd
import pytest
import yaml
from small import SMALL, changed, die_at_once, die_at_seed_0, first, full_disk
from synthetic import record

from sb3_prune_robust.cli import main
from sb3_prune_robust.study import cluster, runner
from sb3_prune_robust.study.config import make_study
from sb3_prune_robust.study.measure import commit
from sb3_prune_robust.study.plan import Estimate, collect, left, short_tasks, state, strong_tasks, tasks
from sb3_prune_robust.study.runner import Local, run_stages
from sb3_prune_robust.study.store import StudyStore, make_task
from sb3_prune_robust.study.worker import DiskFullError, attempt


def study(*arguments):
    """Exit code and output of a command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(["study", *map(str, arguments)])
        except SystemExit as stopped:
            code, text = 1, stopped.code
            out.write(str(text))
    return code, out.getvalue()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Writes a study's file."""
    folder = tmp_path_factory.mktemp("config")

    def write(**sections):
        path = folder / "study.yml"
        path.write_text(yaml.safe_dump(changed(**sections)))
        return path

    return write


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The folder of the small study, run by two workers, and what was printed."""
    out = tmp_path_factory.mktemp("study") / "out"
    code, text = study("run", config(), "--out", out, "--workers", 2)
    assert code == 0, text
    return out, text


def files(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}


def test_a_study_from_end_to_end(finished):
    out, text = finished
    assert "4 of 4 done, 0 damaged, 0 failed" in text and text.count(" done; ") == 4
    code, text = study("report", out)
    assert code == 0 and "cells.parquet" in text
    frame = pd.read_parquet(out / "cells.parquet")
    assert sorted(frame["sparsity"]) == [0, 0, 0.5, 0.5] and sorted(frame["seed"]) == [0, 0, 1, 1]
    assert (frame["reached"].round(2) == frame["sparsity"]).all() and (frame["worst"] <= frame["attack:mad"]).all()
    assert frame["tv:crown"].between(0, frame["tv:abs"]).all() and (frame["tv:crown"] > 0).all()
    for path in (out / "cells").iterdir():  # an attack happened, and its returns are not the clean ones under its name
        record = json.loads(path.read_text())["record"]
        mad = record["attacked"][0]["attacks"]["mad"]
        assert mad["perturbed"] == 1 and mad["returns"] != record["clean"]["deterministic"]
    report = (out / "report.md").read_text()
    assert "CartPole-v1" in report and "not shown" in report
    assert (out / "report.html").read_text().count("<table") >= 3


def test_one_cell_in_full(finished):
    out, _ = finished
    code, text = study("report", out, "--cell", "dense-seed1")
    assert code == 0 and "mad" in text and "n_timesteps" in text
    (page,) = (out / "pages").glob("*dense-seed1*.html")
    assert "<table" in page.read_text() and page.name in text
    code, text = study("report", out, "--cell", "seed1")
    assert code == 2 and "dense-seed1" in text and "0.5-seed1" in text


def test_a_finished_study_runs_nothing_and_new_seeds_only_themselves(finished, config):
    out, _ = finished
    before = files(out)
    code, text = study("run", config(), "--out", out, "--workers", 1)
    assert code == 0 and " done; " not in text and files(out) == before
    more = [{"sparsities": [0, 0.5], "seeds": [0, 1, 2]}]
    code, text = study("run", config(grid=more), "--out", out, "--workers", 2)
    assert code == 0 and text.count(" done; ") == 2 and "6 of 6 done" in text
    assert before.items() <= files(out).items() and len(files(out)) == 6


def test_a_damaged_cell_is_reported_and_done_again(finished, config):
    out, _ = finished
    path = next((out / "cells").glob("*dense-seed0*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    code, text = study("status", out)
    assert code == 0 and "1 damaged" in text and path.name in text
    code, text = study("report", out)
    assert code == 0 and path.name in (out / "report.md").read_text()
    code, text = study("run", config(**yaml.safe_load((out / "study.yml").read_text())), "--out", out, "--workers", 1)
    assert code == 0 and text.count(" done; ") == 1 and "0 damaged" in text
    again, old = (json.loads(content)["record"] for content in (path.read_bytes(), whole))
    assert all(again[part] == old[part] for part in ("clean", "attacked", "certificates", "certified_return"))


def test_another_study_does_not_get_into_the_folder(finished, config):
    out, _ = finished
    code, text = study("run", config(name="other"), "--out", out)
    assert code == 2 and "is of the study 'small'" in text


def test_a_dry_run_prints_the_cells_and_runs_nothing(config, tmp_path):
    code, text = study("run", config(), "--out", tmp_path / "out", "--dry-run", "--workers", 2)
    assert code == 0 and "4 of 4 to do" in text and "CPU hours, on 2 workers less than a minute left" in text
    assert "short CartPole-v1-ppo-plain-magnitude-erk-polynomial-0.5-seed1" in text and not (tmp_path / "out").exists()


def test_the_strong_attacks_meet_the_dense_agents_and_the_candidates(finished, config, monkeypatch):
    out, _ = finished
    strong = make_study(changed(strong={"attacks": ["fgsm"], "n_episodes": 3}))
    store = StudyStore(out)
    later = [task for task in tasks(strong, store) if task.stage == "strong"]
    assert {task.cell.seed for task in later if task.cell.sparsity == 0} == {0, 1}
    spots = [{"env": "CartPole-v1", **cell.axes()} for cell in strong.cells if cell.sparsity]
    monkeypatch.setattr("sb3_prune_robust.study.plan.best_sparsities", lambda *_: pd.DataFrame(spots))
    assert len([task for task in tasks(strong, store) if task.stage == "strong"]) == 4
    monkeypatch.setattr("sb3_prune_robust.study.plan.best_sparsities", lambda *_: pd.DataFrame(spots).assign(sparsity=0.0))
    now = run_stages(strong, store, Local(2))
    assert len(now.done) == 6 and not now.missing
    frame = collect(strong, store).frame
    assert sorted(frame["stage"]) == ["short"] * 4 + ["strong"] * 2
    weak = frame[frame["stage"] == "strong"]
    assert weak["attack:fgsm"].notna().all() and weak["attack:mad"].isna().all()


def test_candidates_wait_for_their_variant_and_its_dense_agents_and_for_no_other(tmp_path):
    blocks = [
        {"sparsities": [0, 0.5], "seeds": [0, 1]},
        {"scores": ["random"], "sparsities": [0, 0.5], "seeds": [0]},
        {"policies": ["lipschitz"], "sparsities": [0.5], "seeds": [0]},
    ]
    policies = {"plain": {}, "lipschitz": {"lipschitz": 4.0}}
    both = make_study(changed(grid=blocks, policies=policies, strong={"attacks": ["fgsm"]}))
    assert [cell.seed for cell in both.cells] == [0, 0, 1, 1, 0, 0]  # blocks in turn, first seeds first
    store, todo = StudyStore(tmp_path), short_tasks(both)
    for i in (0, 1, 3, 5):  # all pruned agents of the first block, one dense one; those with a Lipschitz bound have none
        store.write(todo[i], record(todo[i].cell.axes(), worst={0.1: 80.0 if todo[i].cell.sparsity else 50.0}))
    assert strong_tasks(both, store) == []
    store.write(todo[2], record(todo[2].cell.axes()))
    found = [task.cell for task in strong_tasks(both, store)]
    assert [cell.seed for cell in found] == [0, 0, 1, 1] and {cell.scores for cell in found} == {"none", "magnitude"}


def test_what_was_attacked_stays_in_the_report(tmp_path):
    plan = make_study(changed(strong={"attacks": ["fgsm"]}))
    store, todo = StudyStore(tmp_path), short_tasks(plan)
    for task in todo:
        store.write(task, record(task.cell.axes(), worst={0.1: 80.0 if task.cell.sparsity else 50.0}))
    for task in strong_tasks(plan, store):
        store.write(task, record(task.cell.axes(), "strong"))
    assert Counter(collect(plan, store).frame["stage"]) == {"short": 4, "strong": 4}
    seeds = make_study(changed(strong={"attacks": ["fgsm"]}, grid=[{"sparsities": [0, 0.5, 0.9], "seeds": [0, 1, 2]}]))
    assert strong_tasks(seeds, store) == []  # nobody knows the candidates before the new cells are finished
    assert Counter(collect(seeds, store).frame["stage"]) == {"short": 4, "strong": 4}


def test_strong_attacks_on_another_agent_than_the_short_ones_are_refused(tmp_path):
    plan = make_study(changed(strong={"attacks": ["fgsm"], "n_episodes": 2}))
    store, cell = StudyStore(tmp_path), plan.cells[0]
    short, strong = (make_task(plan, cell, stage) for stage in ("short", "strong"))
    assert attempt(plan, store, short) == attempt(plan, store, strong) == "done"
    kept = store.read(short)
    assert kept["training"]["agent"] == store.read(strong)["training"]["agent"]
    (tmp_path / "cells" / f"{strong.name}.json").unlink()
    store.write(short, {**kept, "training": {**kept["training"], "agent": "0"}})
    assert attempt(plan, store, strong) == "failed" and "trained again" in store.failure(strong)


def test_the_commit_is_that_of_the_sources_as_they_were_imported(tmp_path):
    def git(*what):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *who, *what], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("package", "other", "changed", "later"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    assert commit(tmp_path / "other") is None
    git("init"), git("add", "package", "changed"), git("commit", "-m", "one")
    (tmp_path / "changed" / "__init__.py").write_text("x = 1")
    before = git("rev-parse", "--short=12", "HEAD")
    assert commit(tmp_path / "package") == before and commit(tmp_path / "changed") == before + "+"
    assert commit(tmp_path / "later") is None  # not tracked
    git("commit", "-am", "two")
    assert commit(tmp_path / "package") == before


def test_an_environment_at_a_time_with_both_stages(config, tmp_path):
    one = {**SMALL["environments"]["CartPole-v1"], "eps": [0.1]}
    sections = {
        "environments": {"Acrobot-v1": one, "CartPole-v1": one},
        "grid": [{"sparsities": [0], "seeds": [0, 1]}],
        "strong": {"attacks": ["fgsm"], "n_episodes": 2},
    }
    asked = ("run", config(**sections), "--out", tmp_path, "--environments")
    code, text = study(*asked, "CartPole-v1", "--workers", 1)
    assert code == 0 and "4 of 4 done" in text
    assert all(name.startswith("CartPole-v1") for name in files(tmp_path)) and len(files(tmp_path)) == 4
    code, text = study("status", tmp_path)
    assert code == 0 and "4 of 6 done" in text
    frame = collect(make_study(changed(**sections)), StudyStore(tmp_path)).frame
    assert sorted(frame["stage"]) == ["short"] * 2 + ["strong"] * 2
    code, text = study(*asked, "Acrobot-v1", "--dry-run")
    assert code == 0 and "2 of 2 to do" in text and "come on top" in text and "CartPole" not in text
    code, text = study(*asked, "Carpole-v1")
    assert code == 2 and "'Carpole-v1' is unknown, maybe you meant CartPole-v1" in text


def test_a_cell_that_fails_does_not_stop_the_others(config, tmp_path):
    sections = {
        "environments": {"CartPole-v1": {"entry": {"n_envs": 2, "n_timesteps": 500}, "eps": [0.1]}},
        "algorithms": {"ppo": {}, "a2c": {"learning_rate": 1e30}},
        "grid": [{"algorithms": ["a2c", "ppo"], "sparsities": [0], "seeds": [0]}],
    }
    code, text = study("run", config(**sections), "--out", tmp_path, "--workers", 1)
    assert code == 1 and "1 of 2 done, 0 damaged, 1 failed" in text and "study status" in text
    code, text = study("status", tmp_path)
    assert code == 0 and "a2c-plain-dense-seed0" in text and "Traceback" in text and "nan" in text


def test_a_full_disk_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "work", full_disk)
    small, _ = first()
    with pytest.raises(DiskFullError, match="make room"):
        Local(2)(small, StudyStore(tmp_path), short_tasks(small), Estimate(StudyStore(tmp_path)))


def test_a_cell_that_kills_its_workers_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "work", die_at_seed_0)
    monkeypatch.setattr(runner, "_DEATHS_AT_ONE", 2)  # each takes a new process, with torch
    monkeypatch.setattr(runner, "_DEATHS", 3)
    plan, store = make_study(changed(grid=[{"sparsities": [0], "seeds": [0, 1]}])), StudyStore(tmp_path)
    now = run_stages(plan, store, Local(1))
    (error,) = now.failed.values()
    assert len(now.done) == 1 and "2 workers died" in error and "exit code 9" in error and "seed0" in error
    everywhere = make_study(changed(grid=[{"sparsities": [0, 0.5, 0.9], "seeds": [0]}]))
    with pytest.raises(runner.WorkersDiedError, match=r"3 workers in a row.*at CartPole"):
        run_stages(everywhere, store, Local(1))


def test_workers_that_die_are_replaced_but_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "work", die_at_once)
    small, _ = first()
    with pytest.raises(runner.WorkersDiedError, match="4 workers in a row"):
        Local(1)(small, StudyStore(tmp_path), short_tasks(small), Estimate(StudyStore(tmp_path)))


def kill_one(store, killed):
    """Kill the first worker that is seen training."""
    while not killed:
        for one in store.running().values():
            if one["what"] == "training":
                os.kill(one["pid"], signal.SIGKILL)
                killed.append(one["pid"])
                break
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["local", "ray"])
def test_a_worker_killed_in_the_middle_costs_no_cell(how, tmp_path):
    entry = {**SMALL["environments"]["CartPole-v1"]["entry"], "n_timesteps": 8192}
    source = changed(environments={"CartPole-v1": {"entry": entry, "eps": [0.1]}})
    small, store, killed = make_study(source), StudyStore(tmp_path), []
    (tmp_path / cluster.CONFIG).write_text(yaml.safe_dump(source))
    thread = threading.Thread(target=kill_one, args=(store, killed), daemon=True)
    thread.start()
    now = run_stages(small, store, Local(2) if how == "local" else cluster.OnRay("local"))
    assert killed and len(now.done) == 4 and not now.missing and not now.failed
    assert set(collect(small, store).frame["timesteps"]) == {8192}


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path):
    _, task = first()
    with pytest.raises(ValueError, match="share its file system"):
        cluster.do(SMALL, str(tmp_path / "elsewhere"), task)


def test_the_time_left_is_that_of_cells_alike(finished):
    out, _ = finished
    store, small = StudyStore(out), make_study(SMALL)
    done = state(store, short_tasks(small)).done
    estimate = Estimate(store)
    assert estimate.total(done) is None and left(None, 1) == "time left unknown until a cell is finished"
    estimate.learn(done)
    taken = [sum(store.read(task)["cpu_seconds"].values()) for task in done]
    assert estimate.seconds(done[0]) == pytest.approx(sum(taken) / 4)
    assert estimate.total(done[:2]) == pytest.approx(sum(taken) / 2)
    assert left(7260, 2) == "about 1 h 00 min left" and left(300, 1) == "about 5 min left"
