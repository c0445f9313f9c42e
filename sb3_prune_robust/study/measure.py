"""What is measured of a trained agent: returns clean and attacked, and certificates."""

from __future__ import annotations

import functools
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv

from sb3_prune_robust.certificates import certify
from sb3_prune_robust.evaluation.clean_play import known_rewards, play_clean
from sb3_prune_robust.evaluation.identity import digest, versions, victim_key
from sb3_prune_robust.evaluation.return_certificate import largest_certified_eps
from sb3_prune_robust.evaluation.rollouts import Episodes, rollout
from sb3_prune_robust.evaluation.worst_case import WorstCase, worst_case
from sb3_prune_robust.network import UnsupportedNetworkError, samples
from sb3_prune_robust.study.config import Attacks, Environment, Evaluation, Study
from sb3_prune_robust.study.store import StudyStore, Task, make_task
from sb3_prune_robust.study.training import Trained, make_entry, train

Array = npt.NDArray[Any]
Record = dict[str, Any]
Say = Callable[[str, float], object]

SEED = 100_000  # of the first held-out episode: none that training starts with
N_ENVS = 16
SHARE, CONFIDENCE = 0.5, 0.99  # of the certified return


def run_task(study: Study, store: StudyStore, task: Task, say: Say) -> Record:
    """
    Train an agent, unless it is trained, and measure it.

    :param study: the study
    :param store: its files
    :param task: the cell and stage
    :param say: told what is done, and its share
    :return: the record, as :mod:`sb3_prune_robust.study.results` reads it
    """
    key, software = study.key(task.cell), {"versions": versions(), "commit": commit()}
    with store.training(task) as folder:
        trained = train(key, folder, N_ENVS, say)
    agent = _digest(trained)
    if task.stage == "strong":
        _check_same(store, make_task(study, task.cell, "short"), agent)
    environment, evaluation = study.environments[task.cell.env], study.evaluation
    attacks = evaluation if task.stage == "short" else study.strong
    assert attacks is not None
    try:
        measured = measure(trained, environment, evaluation, attacks, store.pieces(task), task.stage == "short", say)
    finally:
        trained.venv.close()
    about = {"entry": make_entry(key), "agent": agent, **trained.about}
    seconds = {"train": trained.about["cpu_seconds"], **measured.pop("cpu_seconds")}
    return {
        "cell": task.cell.axes(),
        "stage": task.stage,
        "training": about,
        **measured,
        "cpu_seconds": {what: round(value, 1) for what, value in seconds.items()},
        **software,
        "host": platform.node(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _digest(trained: Trained) -> str:
    """Of the weights and the statistics of observations: that of the model's file is another each time it is written."""
    key = victim_key(trained.model.policy, trained.venv)
    return digest({name: key[name] for name in ("weights", "normalizer")})


def _check_same(store: StudyStore, short: Task, agent: str) -> None:
    """What both stages say must be of one agent; short files from before digests were kept do not tell."""
    measured = store.read(short)
    before = agent if measured is None else measured["training"].get("agent", agent)
    if before != agent:
        raise ValueError(
            f"the agent in {store.agent(short)} was trained again, and is not the one that {short.name} was measured of: "
            f"delete that file below {store.folder / 'cells'} to measure this agent by the short attacks as well"
        )


def measure(
    trained: Trained,
    environment: Environment,
    evaluation: Evaluation,
    attacks: Attacks,
    pieces: Path,
    certified: bool,
    say: Say,
) -> Record:
    """
    Play an agent clean and under attack at each eps, and certify it.

    :param trained: the agent
    :param environment: the radii, and the range of rewards
    :param evaluation: the norm, and what is certified
    :param attacks: the attacks, their budget and the number of episodes
    :param pieces: folder of finished episodes and fitted attacks
    :param certified: whether to certify
    :param say: told what is done, and its share
    :return: the parts ``clean``, ``attacked``, ``certificates``, ``certified_return`` and ``cpu_seconds`` of a record
    """
    worst = []
    for i, eps in enumerate(environment.eps):
        say("attacking", i / len(environment.eps))
        worst.append(_attacked(trained, eps, evaluation.norm, attacks, pieces))
    sampled = _sampled(trained, attacks.n_episodes)
    started = time.process_time()
    say("certifying", 0.0)
    own = [_certificate(trained, sampled, eps, evaluation) for eps in environment.eps] if certified else []
    returns = _certified_return(trained, environment, evaluation) if certified else {"not_certified": "not at this stage"}
    return {
        "clean": {
            "deterministic": _rounded(worst[0].clean.returns),
            "sampled": _rounded(sampled.returns) if samples(trained.model.policy) else [],
        },
        "attacked": [_record(one, eps, evaluation.norm) for one, eps in zip(worst, environment.eps, strict=True)],
        "certificates": [one for one in own if one],
        "certified_return": returns,
        "cpu_seconds": {"attack": sum(map(_seconds, worst)), "certify": time.process_time() - started},
    }


def _attacked(trained: Trained, eps: float, norm: str, attacks: Attacks, pieces: Path) -> WorstCase:
    how: dict[str, Any] = dict(norm=norm, deterministic=True, seed=SEED, budget=attacks.budget, folder=pieces)
    return worst_case(trained.model, trained.venv, attacks.attacks, eps, attacks.n_episodes, **how)


def _seconds(found: WorstCase) -> float:
    """Of fitting and playing, those of an earlier process that was killed included."""
    return sum(cost.seconds for cost in found.cost.values()) + sum(found.play_seconds.values())


def _record(found: WorstCase, eps: float, norm: str) -> Record:
    played = {
        name: {
            "returns": _rounded(one.returns),
            "perturbed": round(one.perturbed, 4),
            "cost": None if name not in found.cost else _cost(found.cost[name]),
        }
        for name, one in found.episodes.items()
    }
    return {"eps": eps, "norm": norm, "attacks": played, "skipped": found.skipped}


def _cost(cost: Any) -> Record:
    return {"steps": cost.steps, "cpu_seconds": round(cost.seconds, 1)}


def _sampled(trained: Trained, n_episodes: int) -> Episodes:
    """Episodes of the agent as it trained, sampling where it samples, with the states that it visited."""
    deterministic = not samples(trained.model.policy)
    return rollout(trained.model, trained.venv, n_episodes, deterministic=deterministic, seed=SEED, record=True)


def _certificate(trained: Trained, played: Episodes, eps: float, evaluation: Evaluation) -> Record | None:
    """Means over visited states, evenly spaced over all episodes; ``None`` for policies that no formula covers."""
    states = np.concatenate(played.observations)
    chosen = states[np.linspace(0, len(states) - 1, min(evaluation.n_states, len(states))).astype(int)]
    shaped = chosen.reshape(-1, *trained.model.observation_space.shape).astype(np.float32)
    try:
        found = certify(trained.model.policy, shaped, eps, evaluation.norm)
    except UnsupportedNetworkError:
        return None
    by_method = {**found.by_method, "best": found}
    tv = {name: float(one.tv.mean()) for name, one in by_method.items()}
    radius = {name: float(one.radius.max(axis=1).mean()) for name, one in by_method.items() if one.radius is not None}
    return {"eps": eps, "norm": evaluation.norm, "n_states": len(chosen), "tv": tv, "radius": radius}


def _certified_return(trained: Trained, environment: Environment, evaluation: Evaluation) -> Record:
    """The largest eps at which half of the clean return is certified, by the policy's own noise; or why there is none."""
    try:
        return _half(trained, trained.venv, environment, evaluation)
    except UnsupportedNetworkError as error:
        return {"not_certified": str(error)}


def _half(trained: Trained, venv: VecEnv, environment: Environment, evaluation: Evaluation) -> Record:
    clip = environment.clip_rewards
    rewards = known_rewards(venv, None, None, clip)
    if rewards.low is None:
        return {"not_certified": rewards.reason}
    n = evaluation.n_certified
    how: dict[str, Any] = dict(n_episodes=n, n_calibration=max(10, n // 4), clip_rewards=clip, seed=SEED)
    play = play_clean(trained.model, venv, **how)
    clean = play.mean_return(play.calibration)
    if clean <= 0:
        return {"not_certified": f"the mean clean return is {clean:g}: a share of it says nothing"}
    found = largest_certified_eps(play, SHARE, evaluation.norm, confidence=CONFIDENCE, clean=clean)
    method = None if found.bound is None else found.bound.method
    return {
        "half_eps": found.eps,
        "clean": found.clean,
        "method": method,
        "confidence": CONFIDENCE,
        "quantity": play.quantity,
        "n_episodes": n,
    }


def random_returns(venv: VecEnv, n_episodes: int) -> Array:
    """
    What uniformly random actions return, which normalised scores start from.

    :param venv: one environment
    :param n_episodes: how many episodes
    :return: raw returns, shape ``(n_episodes,)``
    """
    venv.seed(SEED)
    venv.action_space.seed(SEED)
    returns: list[float] = []
    venv.reset()
    total = 0.0
    while len(returns) < n_episodes:
        _, rewards, dones, _ = venv.step(np.array([venv.action_space.sample()]))
        total += float(rewards[0])
        if dones[0]:
            returns.append(total)
            total = 0.0
    return np.array(returns)


@functools.cache
def commit(package: Path = Path(__file__).parents[1]) -> str | None:
    """
    The git commit of the sources as this process first saw it: later ones are not what it has imported.

    :param package: the folder of the sources
    :return: twelve digits, with ``+`` if files of the package are changed; ``None`` for an installed package
    """
    how: dict[str, Any] = dict(cwd=package, capture_output=True, text=True, check=True)
    try:
        # A virtual environment may lie within the repository of something else, which does not track this file.
        subprocess.run(["git", "ls-files", "--error-unmatch", "__init__.py"], **how)
        told = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **how).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no", "--", "."], **how).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return told + "+" * bool(changed)


def _rounded(returns: Array) -> list[float]:
    return [round(float(one), 4) for one in returns]
