"""The command line as a user runs it."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_prune_robust.attacks import FittedAttack
from sb3_prune_robust.cli import evaluate as cli_evaluate
from sb3_prune_robust.cli import main
from sb3_prune_robust.evaluation import held_out, make_env

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / name for name in ("a.zip", "b.zip", "cut.zip", "text.zip", "stats.pkl", "other.pkl")}
    venv = VecNormalize(make_vec_env("InvertedPendulum-v5"))
    for name, seed in (("a.zip", 0), ("b.zip", 1)):
        A2C("MlpPolicy", venv, seed=seed, device="cpu").learn(300).save(paths[name])
    venv.save(str(paths["stats.pkl"]))
    VecNormalize(make_vec_env("CartPole-v1")).save(str(paths["other.pkl"]))
    paths["cut.zip"].write_bytes(paths["a.zip"].read_bytes()[:5000])
    paths["text.zip"].write_text("not a model")
    return paths


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sb3_prune_robust", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def audited(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "report"
    before = {name: (path.read_bytes(), path.stat().st_mtime_ns) for name, path in files.items()}
    options = ["--env", "InvertedPendulum-v5", "--vec-normalize", files["stats.pkl"], "--eps", 0.05, "--attacks", "random,mad"]
    result = run("audit", files["a.zip"], files["b.zip"], *options, "--sparsities", "0.5,0.9", "--episodes", 5, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "certified TV" in result.stdout and len(result.stdout.splitlines()) == 7
    assert before == {name: (path.read_bytes(), path.stat().st_mtime_ns) for name, path in files.items()}
    return out


def test_audit_writes_whole_files(audited: Path) -> None:
    names = ["certified.png", "frontier.png", "progress", "report.json", "report.md"]
    assert sorted(path.name for path in audited.iterdir()) == names
    assert all((audited / name).read_bytes().startswith(b"\x89PNG") for name in ("frontier.png", "certified.png"))
    page = (audited / "report.md").read_text()
    for phrase in (
        "## The threat",
        "own units",
        "Sweet spots",
        "## Certified",
        "### Certified returns",
        "### How tight the bounds are",
        "sb3-prune-robust audit",
        "stable-baselines3 2",
    ):
        assert phrase in page
    assert "nan" not in page.lower().replace("gymnasium", "")


def documented_fields() -> set[str]:
    text = (Path(__file__).parents[1] / "docs" / "report_schema.md").read_text()
    return set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))


def paths_of(value: Any, prefix: str = "") -> set[str]:
    """The fields of a record as the documentation writes them: list items `[]`, keys that are names or levels `*`."""
    if isinstance(value, list):
        found = {path for item in value for path in paths_of(item, prefix + "[]")}
        return found or {prefix}
    if not isinstance(value, dict):
        return {prefix}
    any_key = prefix.rsplit(".", 1)[-1] in ("modes", "attacks", "by_method", "versions") and prefix != "settings.attacks"
    return {p for k, v in value.items() for p in paths_of(v, ".".join(filter(None, (prefix, "*" if any_key else k))))}


def test_every_field_of_the_report_is_documented_and_the_other_way_round(audited: Path) -> None:
    documented = documented_fields()
    record = strict(audited / "report.json")
    written = {path.replace("[]", "") for path in paths_of(record)}

    def is_documented(path: str) -> bool:
        parts = path.split(".")
        return any(".".join(parts[:n]) in documented for n in range(len(parts), 0, -1))

    assert [path for path in sorted(written) if not is_documented(path)] == []
    assert [path for path in sorted(documented) if not any((p + ".").startswith(path + ".") for p in written)] == []


def test_the_record_holds_what_was_played(audited: Path) -> None:
    record = strict(audited / "report.json")
    assert record["schema_version"] == 2 and len(record["models"]) == 2
    assert len(record["models"][0]["eps_raw"]) == 4 and len(record["models"][0]["sha256"]) == 64
    points = record["modes"]["stochastic"]["points"]
    assert [point["sparsity"] for point in points] == [0.0, 0.5, 0.9]
    for point in points:
        assert np.shape(point["clean"]["episodes"]["returns"]) == (2, 5)
        assert point["clean"]["mean"] == pytest.approx(np.mean(point["clean"]["episodes"]["returns"]))
        assert point["attacks"]["mad"]["perturbed"] > 0.99
        for at in point["certificate"]["certified_return"]["curve"]:
            assert len(at["attack_by_agent"]) == len(point["worst"]["by_agent"]) == 2
        assert point["certificate"]["agents"][1]["attack_loss"]["bound"] > 0


def test_the_same_command_gives_the_same_numbers(audited: Path, files: Files, tmp_path: Path) -> None:
    options = [
        "--env",
        "InvertedPendulum-v5",
        "--vec-normalize",
        str(files["stats.pkl"]),
        "--eps",
        "0.05",
        "--out",
        str(tmp_path),
    ]
    options += ["--attacks", "random,mad", "--sparsities", "0.5,0.9", "--episodes", "5", "--stochastic"]
    assert main(["audit", str(files["a.zip"]), str(files["b.zip"]), *options]) == 0
    again, first = (strict(folder / "report.json")["modes"]["stochastic"] for folder in (tmp_path, audited))
    assert again == first


BAD: dict[str, tuple[list[str], str]] = {
    "smoothing of no samples": (["--smoothing-std", "0.1", "--deterministic"], "smoothing-std was given, but no return is"),
    "radii of no samples": (["--eps-grid", "0.1", "--deterministic"], "eps-grid was given, but no return is certified"),
    "clipping for nothing": (["--clip-rewards", "0,1", "--deterministic"], "clip-rewards was given, but no return is"),
    "radii without a radius": (["--eps", "0", "--eps-grid", "0.1"], "eps-grid was given, but no return is .*: eps is 0"),
    "radii of one episode": (["--eps-grid", "0.1", "--episodes", "1"], "eps-grid was given, but .*: one episode cannot both"),
    "negative eps": (["--eps", "-1"], "eps must be a finite number of at least 0, got -1.0"),
    "NaN eps": (["--eps", "nan"], "eps must be a finite number"),
    "sparsity 1": (["--sparsities", "0,1"], r"--sparsities: every sparsity must lie in \[0, 1\)"),
    "sparsities not numbers": (["--sparsities", "half"], "--sparsities: 'half' is not a list of numbers"),
    "attack": (["--attacks", "random,laser"], "attacks: 'laser' is unknown; known: random, fgsm, pgd, mad"),
    "norm": (["--norm", "l7"], "--norm: invalid choice: 'l7'.*linf.*l2"),
    "env": (["--env", "InvertedPendulumm-v5"], "env 'InvertedPendulumm-v5' cannot be made: .*InvertedPendulum"),
    "another env": (["--env", "CartPole-v1"], "vec-normalize .*stats.pkl holds statistics of another environment"),
    "other statistics": (
        ["--vec-normalize", "{other.pkl}"],
        "vec-normalize .*other.pkl holds statistics of another environment",
    ),
    "no statistics": (["--vec-normalize", "{text.zip}"], "vec-normalize .*text.zip is not a VecNormalize file"),
    "missing statistics": (["--vec-normalize", "/nowhere.pkl"], "vec-normalize /nowhere.pkl does not exist"),
    "rewards": (["--reward-min", "2", "--reward-max", "1"], "reward_min must be at most reward_max, got 2.0 and 1.0"),
    "a reward outside": (["--reward-min", "0", "--reward-max", "0.5"], "reward_max: a reward of 1 was seen outside"),
    "episodes": (["--episodes", "0"], "episodes must be at least 1, got 0"),
    "n-envs": (["--n-envs", "0"], "n_envs must be at least 1, got 0"),
    "gamma": (["--gamma", "2"], "gamma must lie in"),
    "attack-seconds": (["--attack-seconds", "0"], "--attack-seconds: a positive number is needed, got '0'"),
    "a budget for nothing": (
        ["--attacks", "mad,fgsm", "--attack-seconds", "9"],
        "attack-steps was given, but none of mad, fgsm",
    ),
    "attack-steps": (["--attack-steps", "1.5"], "--attack-steps: a positive whole number is needed, got '1.5'"),
    "seeds of fitting": (["--seed", str(2**30)], "seed must be at least 0, and seed . episodes at most 2"),
    "algo": (["--algo", "ppo2"], "--algo: invalid choice: 'ppo2'.*ppo"),
    "out": (["--out", "{text.zip}"], "out .*text.zip exists and is not a folder"),
}
BAD_MODELS = {
    "cut.zip": "model .*cut.zip is not an SB3 model file, or is cut short",
    "text.zip": "model .*text.zip is not an SB3 model file, or is cut short",
    "none.zip": "model .*none.zip does not exist",
}


def audit_arguments(files: Files, out: Path, model: str, changes: list[str]) -> list[str]:
    defaults = ["--env", "InvertedPendulum-v5", "--vec-normalize", str(files["stats.pkl"]), "--eps", "0.05"]
    defaults += ["--episodes", "2", "--sparsities", "0", "--attacks", "random", "--out", str(out)]
    named = [re.sub(r"\{(.*)\}", lambda match: str(files[match[1]]), change) for change in changes]
    return ["audit", str(files.get(model, out / model)), *defaults, *named]


def check_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own
        code = int(stop.code or 0)
    error = capsys.readouterr().err.strip()
    assert code == 2 and re.search(message, error), error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_named(case: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = BAD[case]
    check_refused(audit_arguments(files, tmp_path / "out", "a.zip", changes), message, capsys)
    assert not list(tmp_path.glob("out/*"))


def test_certified_returns_are_not_asked_of_an_agent_without_noise_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[4]), buffer_size=10).save(tmp_path / "sac.zip")
    options = ["--env", "Pendulum-v1", "--eps", "0.1", "--episodes", "2", "--sparsities", "0", "--attacks", "random"]
    options += ["--out", str(tmp_path / "out"), "--clip-rewards=-5,0"]
    message = "clip-rewards was given, but no return is certified: SACPolicy plays without noise of its own"
    check_refused(["audit", str(tmp_path / "sac.zip"), *options], message, capsys)


@pytest.mark.parametrize(("flag", "mode"), [("--stochastic", None), ("--deterministic", True), ("--n-envs=2", True)])
def test_samples_are_not_asked_of_a_policy_that_never_samples(
    flag: str, mode: bool | None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TD3("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[4]), buffer_size=10)
    run = SimpleNamespace(model=model, env=make_env("Pendulum-v1", 2), path=tmp_path / "model.zip")
    monkeypatch.setattr(cli_evaluate, "_loaded", lambda args: run)
    monkeypatch.setattr("sb3_prune_robust.zoo.plays_mode", lambda env: False)
    arguments = ["evaluate", "--algo", "td3", "--env", "Pendulum-v1", "--eps", "0.1", "--episodes", "2", "--attacks", "random"]
    out = tmp_path / "evaluation.json"
    if mode is None:
        check_refused([*arguments, flag], "stochastic: TD3 plays without sampling", capsys)
    else:
        assert main([*arguments, flag, "--out", str(out)]) == 0
        assert strict(out)["settings"]["deterministic"] is mode


@pytest.mark.parametrize("model", BAD_MODELS)
def test_bad_models_are_named(model: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(audit_arguments(files, tmp_path / "out", model, []), BAD_MODELS[model], capsys)


def test_the_folder_is_checked_before_the_work(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = audit_arguments(files, files["text.zip"], "a.zip", ["--episodes", "100000"])
    check_refused(arguments, "out .*text.zip exists and is not a folder", capsys)


def test_an_error_is_one_line_and_no_traceback(files: Files, tmp_path: Path) -> None:
    result = run(*audit_arguments(files, tmp_path / "out", "cut.zip", []))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and result.stderr.startswith("sb3-prune-robust audit: error: model")


HELP = {
    "": "hyperparams",
    "audit": "--out",
    "demo": "--out",
    "evaluate": "--out",
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "tune": "kappa",
    "hyperparams": "ppo",
}


@pytest.mark.parametrize("command", HELP)
def test_help_explains(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and HELP[command] in shown
    if command in ("audit", "evaluate"):
        assert "Loading a model file from somebody else runs their pickled code" in shown


def test_unknown_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["audit", "a.zip", "--env", "CartPole-v1", "--eps", "1"], ["hyperparams", "ppo"]):
        check_refused([*command, "--laser"], "unrecognized arguments: --laser", capsys)


def test_hyperparams_prints_where_the_files_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hyperparams"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert main(["hyperparams", "a2c"]) == 0
    file = Path(capsys.readouterr().out.strip())
    assert file.parent == folder and file.read_text().startswith("#") and "CartPole-v1:" in file.read_text()
    check_refused(["hyperparams", "ppo2"], "argument ALGO: invalid choice: 'ppo2' .*a2c.*ppo.*trpo", capsys)


def launched(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """What the zoo is started with."""
    seen: list[str] = []
    zoo: Any = importlib.import_module("rl_zoo3.train")
    monkeypatch.setattr(zoo, "train", lambda: seen.extend(sys.argv[1:]))
    before = list(sys.argv)
    assert main(["train", *arguments]) == 0
    assert sys.argv == before
    return seen


def test_train_starts_the_zoo_with_our_hyperparameters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = launched(monkeypatch, "--algo", "a2c", "--env", "Hopper-v5")
    assert seen[:4] == ["--algo", "a2c", "--env", "Hopper-v5"]
    assert seen[4:8] == ["--conf-file", "sb3_prune_robust.hyperparams.a2c", "--num-threads", "1"]
    assert seen[8:] == ["--gym-packages", "sb3_prune_robust.zoo"]


def test_train_hands_every_other_flag_on(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["-n", "500", "-P", "--eval-freq", "-1", "-params", "n_steps:64", "gamma:0.9", "-i", "a.zip", "-optimize"]
    own = ["--num-threads", "2", "-conf", "mine.yml", "--gym-packages", "one", "two"]
    seen = launched(monkeypatch, *flags, *own, "--env", "Nowhere-v0")  # not ours to refuse: another file was given
    assert [flag for flag in seen if flag in flags] == flags
    assert seen[-4:] == ["--gym-packages", "sb3_prune_robust.zoo", "one", "two"]
    assert seen[:8] == ["--algo", "ppo", "--env", "Nowhere-v0", "--conf-file", "mine.yml", "--num-threads", "2"]


def test_train_names_what_it_has_no_hyperparameters_for(capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(["train", "--algo", "ppo2"], "algo 'ppo2' has no hyperparameters here; those that have: a2c, .*ppo", capsys)
    check_refused(
        ["train", "--env", "Acrobot-v1"], "env 'Acrobot-v1' has no entry for ppo; those that have: CartPole-v1", capsys
    )


def test_errors_of_the_zoo_itself_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("deep inside")

    zoo: Any = importlib.import_module("rl_zoo3.train")
    monkeypatch.setattr(zoo, "train", fail)
    with pytest.raises(SystemExit) as stop:
        main(["train"])
    shown = capsys.readouterr().err
    assert stop.value.code == 1 and "Traceback" in shown and "deep inside" in shown


def interrupt_when(condition: Callable[[], bool], process: subprocess.Popen[str]) -> tuple[int, str]:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    return process.returncode, error


def test_interrupting_says_so_in_one_line_and_leaves_nothing(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = audit_arguments(files, out, "a.zip", ["--episodes", "100000"])
    command = [sys.executable, "-m", "sb3_prune_robust", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs in the background
    )
    code, error = interrupt_when(out.exists, process)
    assert code == 130, error
    assert len(error.strip().splitlines()) == 1 and "interrupted" in error
    assert f"kept in {out / 'progress'}: run the same command again to continue" in error
    assert list(out.iterdir()) == []


def test_an_interrupt_inside_evaluated_code_ends_with_the_same_code(tmp_path: Path) -> None:
    (tmp_path / "interrupting.py").write_text("exec('raise KeyboardInterrupt')")  # as dataclasses and namedtuples are made
    arguments = ["audit", "a.zip", "--env", "interrupting:Never-v0", "--eps", "0.1"]
    command = [sys.executable, "-m", "sb3_prune_robust", *arguments]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, "PYTHONPATH": path})
    assert done.returncode == 130, done.stderr
    assert "audit: interrupted" in done.stderr


class Counted:
    """What a run in this process did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rollouts, self.fits, self.certificates = 0, 0, 0
        frontier: Any = importlib.import_module("sb3_prune_robust.evaluation.frontier")
        rollout, fit, certify = held_out.rollout, FittedAttack.fit, frontier.certified_record

        def rollout_counted(*args: Any, **kwargs: Any) -> Any:
            self.rollouts += 1
            return rollout(*args, **kwargs)

        def fit_counted(*args: Any, **kwargs: Any) -> Any:
            self.fits += 1
            return fit(*args, **kwargs)

        def certified_counted(*args: Any, **kwargs: Any) -> Any:
            self.certificates += 1
            return certify(*args, **kwargs)

        monkeypatch.setattr(frontier, "certified_record", certified_counted)
        monkeypatch.setattr(held_out, "rollout", rollout_counted)
        monkeypatch.setattr(FittedAttack, "fit", fit_counted)


def without_times(record: Any) -> Any:
    """A record's numbers but for CPU seconds."""
    for mode in record["modes"].values():
        for point in mode["points"]:
            for cell in point["attacks"].values():
                for cost in cell["cost"] or []:
                    del cost["seconds"]
    return record["modes"]


LEARNED = ["--attacks", "random,pa-ad", "--attack-steps", "500", "--sparsities", "0.5", "--episodes", "4"]


def test_a_killed_audit_is_continued_and_nothing_finished_is_done_again(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = audit_arguments(files, tmp_path / "killed", "a.zip", LEARNED)
    process = subprocess.Popen([sys.executable, "-m", "sb3_prune_robust", *arguments], env=ENVIRONMENT)
    progress = tmp_path / "killed" / "progress"
    while len(list(progress.glob("attack-*.npz"))) < 3:  # in the second mode
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "report.json").exists()
    finished = {kind: len(list(progress.glob(f"{kind}-*.npz"))) for kind in ("episodes", "attack", "record")}

    counted, did = Counted(monkeypatch), []
    for run_arguments in (audit_arguments(files, tmp_path / "whole", "a.zip", LEARNED), arguments, arguments):
        counted.rollouts = counted.fits = counted.certificates = 0
        assert main(run_arguments) == 0
        did.append((counted.rollouts, counted.fits, counted.certificates))
    assert did[0] == (2 * 2 * 3 + 2 * 4, 4, 2)  # modes, sparsities, clean and two attacks; further radii
    assert did[1] == tuple(n - finished[kind] for n, kind in zip(did[0], finished, strict=True)) and did[2] == (0, 0, 0)
    records = [without_times(strict(tmp_path / name / "report.json")) for name in ("killed", "whole")]
    assert records[0] == records[1]


def test_demo_trains_prunes_and_reports(tmp_path: Path) -> None:
    arguments = ["--timesteps", "30000", "--episodes", "2", "--out", str(tmp_path)]
    assert main(["demo", *arguments]) == 0
    record = strict(tmp_path / "report.json")
    points = record["modes"]["stochastic"]["points"]
    levels = [point["sparsity"] for point in points]
    assert levels[0] == 0.0 and levels[-1] == pytest.approx(0.95, abs=1e-3) and len(levels) >= 4
    assert [point["reached"]["actor"] for point in points] == pytest.approx(levels)
    assert all(point["certificate"]["tv"]["mean"] > 0 for point in points)
    assert record["models"][0]["policy"] == "LipschitzGaussianPolicy"
    assert {path.name for path in tmp_path.iterdir()} == {"certified.png", "frontier.png", "report.json", "report.md"}


def test_models_trained_with_other_discounts_need_one_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for gamma in (0.9, 0.99):
        PPO("MlpPolicy", "CartPole-v1", gamma=gamma, device="cpu").save(tmp_path / f"{gamma}.zip")
    models = [str(tmp_path / "0.9.zip"), str(tmp_path / "0.99.zip")]
    options = ["--env", "CartPole-v1", "--eps", "0.1", "--episodes", "1", "--out", str(tmp_path / "out")]
    check_refused(["audit", *models, *options], "gamma: the models were trained with different discounts", capsys)
