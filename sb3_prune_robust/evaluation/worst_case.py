"""The lowest return of one agent over several attacks, learned ones among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv

from sb3_prune_robust.attacks import AdversarialVecEnv, Attack, Budget, Cost, FittedAttack, RandomAttack, make_attack
from sb3_prune_robust.attacks.fitting import NothingToLearnError, frozen
from sb3_prune_robust.attacks.registry import expand
from sb3_prune_robust.evaluation.bars import bars
from sb3_prune_robust.evaluation.held_out import HeldOut, Played, Watch, check_attacks, check_seeds, size_of
from sb3_prune_robust.evaluation.identity import can_perturb, is_learned, named_key
from sb3_prune_robust.evaluation.rollouts import Episodes, NoAttackError
from sb3_prune_robust.evaluation.statistics import Interval, mean_interval
from sb3_prune_robust.evaluation.store import Store


@dataclass(frozen=True)
class WorstCase:
    """
    What attacks did to an agent, on the same held-out episodes.

    :param mean: the minimum over the attacks of the mean return: an upper bound on the true worst case
    :param attack: name of the attack that attained it
    :param clean: the episodes without attack
    :param episodes: by attack, with raw returns
    :param cost: by attack that learns, what fitting took: environment steps and CPU seconds
    :param play_seconds: by attack, CPU seconds of playing the held-out episodes
    :param attacks: by attack, the attack itself, fitted: to be saved, shared, or given to another call
    :param skipped: by attack that changed no observation, or found nothing to learn, why
    """

    mean: float
    attack: str
    clean: Episodes
    episodes: dict[str, Episodes]
    cost: dict[str, Cost]
    play_seconds: dict[str, float]
    attacks: dict[str, Any]
    skipped: dict[str, str]

    def interval(self, confidence: float = 0.95) -> Interval:
        """
        Interval of the mean return under the worst attack, over episodes; not corrected for the choice among attacks.

        :param confidence: level
        """
        return mean_interval(self.episodes[self.attack].returns, confidence)


def worst_case(
    model: Any,
    env: VecEnv,
    attacks: str | Callable[..., Any] | Sequence[Any] = "strong",
    eps: float | npt.ArrayLike = 0.05,
    n_episodes: int = 50,
    *,
    norm: str = "linf",
    deterministic: bool = True,
    seed: int = 0,
    budget: Budget | None = None,
    folder: str | Path | None = None,
    progress_bar: bool = False,
) -> WorstCase:
    """
    The lowest mean return of a model over several attacks, on the same fixed episodes.

    What an attack learns or chooses, it does on episodes of its own; its return is that of held-out episodes.

    :param model: an SB3 model or policy
    :param env: environments as the model was trained in, with VecNormalize where it was used, built on ``DummyVecEnv``
    :param attacks: names of attacks or suites, or attack objects (one, or several): an object's own eps and norm then hold,
        and a learned one is fitted if it is not
    :param eps: radius in units of the observation that the network receives; for the attacks given by name
    :param n_episodes: episodes for each attack
    :param norm: ``"linf"`` or ``"l2"``; for the attacks given by name
    :param deterministic: the mode of the policy's distribution rather than samples of it
    :param seed: seed of the first episode, of the attacks and of their learning
    :param budget: what fitting each learned attack may take; ``None``: the default of its class, some CPU minutes
    :param folder: where finished episodes and fitted attacks are kept, so that the same call after a kill continues; attack
        objects other than learned ones are played again. ``None``: nothing is kept
    :param progress_bar: show what is done and the time left
    :return: the minimum, and every attack's own episodes, cost and fitted attack
    :raises NoAttackError: if no attack changed an observation (one that did not is in ``skipped``)
    :raises ValueError: for an unknown attack, or none, or one made for the other ``deterministic``; for an eps of 0;
        for seeds that fitting uses; if model and env do not fit together
    """
    check_seeds(seed, n_episodes)
    todo = _attacks(attacks, eps, norm, seed, deterministic)
    with frozen(env):
        AdversarialVecEnv(env, model, RandomAttack(0.0))  # refuses what does not fit together
    with ExitStack() as stack:
        watch = Watch()
        if progress_bar:
            sizes = [size_of(budget or attack.default_budget) for attack, _ in todo.values() if is_learned(attack)]
            watch = stack.enter_context(bars((1 + len(todo)) * n_episodes, sum(sizes)))
        policy = getattr(model, "policy", model)
        episodes = HeldOut(policy, env, n_episodes, deterministic, seed, budget=budget, store=Store(folder), watch=watch)
        return _worst(episodes, todo)


def _worst(episodes: HeldOut, todo: dict[str, tuple[Any, Any]]) -> WorstCase:
    clean = episodes.clean().episodes
    played: dict[str, Played] = {}
    skipped: dict[str, str] = {}
    for name, (attack, key) in todo.items():
        try:
            played[name] = episodes.under(attack, name, key)
        except (NoAttackError, NothingToLearnError) as error:
            skipped[name] = str(error)
    if not played:
        raise NoAttackError(f"no attack changed any observation: {'; '.join(skipped.values())}")
    means = {name: float(one.episodes.returns.mean()) for name, one in played.items()}
    worst = min(means, key=lambda name: means[name])
    return WorstCase(
        means[worst],
        worst,
        clean,
        {name: one.episodes for name, one in played.items()},
        {name: one.cost for name, one in played.items() if one.cost is not None},
        {name: one.seconds for name, one in played.items()},
        {name: one.attack for name, one in played.items()},
        skipped,
    )


def _attacks(
    attacks: str | Callable[..., Any] | Sequence[Any], eps: float | npt.ArrayLike, norm: str, seed: int, deterministic: bool
) -> dict[str, tuple[Any, Any]]:
    """By name: each attack, and what tells it from others (``None``: not known)."""
    given: list[Any] = list(attacks) if isinstance(attacks, Iterable) and not isinstance(attacks, str) else [attacks]
    names = [attack for attack in given if isinstance(attack, str)]
    if names or not given:
        check_attacks(names)
    found: dict[str, tuple[Any, Any]] = {}
    for attack in given:
        if isinstance(attack, str):
            for name in expand([attack]):
                made = make_attack(name, eps, norm, seed=seed, deterministic=deterministic)
                found[name] = made, named_key(name, made)
        elif isinstance(attack, type):
            raise ValueError(f"attacks must be names or attack objects, got the class {attack.__name__}; make one of it")
        elif callable(attack):
            found[f"{type(attack).__name__}-{len(found)}"] = attack, None
        else:
            raise ValueError(f"attacks must be names or attacks, got {attack!r}")
    for name, (attack, _) in found.items():
        _check_can_be_reported(name, attack, deterministic)
    return found


def _check_can_be_reported(name: str, attack: Any, deterministic: bool) -> None:
    if isinstance(attack, Attack) and not can_perturb(attack):
        raise ValueError(
            f"eps of {name} is 0 everywhere, got {attack.eps!r}: that is no attack; clean episodes are played anyway"
        )
    is_fitted = isinstance(attack, FittedAttack) and attack.cost is not None
    aims = isinstance(attack, Attack) and not isinstance(attack, RandomAttack) and not is_fitted
    if aims and attack.deterministic != deterministic:  # it would maximise what does not move this victim most
        raise ValueError(
            f"attacks: {name} is made for a victim with deterministic={attack.deterministic}, the call's is "
            f"deterministic={deterministic}; give both the same"
        )
