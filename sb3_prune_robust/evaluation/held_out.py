"""
The held-out episodes of a victim: clean and attacked, on fixed seeds that no fitting uses.

Whatever an attack learns or chooses, it does on episodes of its own (``FittedAttack.fit``); its return is that of the episodes
here. Finished episodes and fitted attacks are kept in a store.
"""

from __future__ import annotations

import copy
import functools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_prune_robust.attacks import ATTACKS, SUITES, Budget, Cost, FittedAttack, make_attack
from sb3_prune_robust.attacks.fitting import FIRST_SEED_OF_FITTING, NothingToLearnError
from sb3_prune_robust.attacks.registry import is_known
from sb3_prune_robust.evaluation.clean_play import ObservationNoise
from sb3_prune_robust.evaluation.identity import attack_key, is_learned, named_key, versions, victim_key
from sb3_prune_robust.evaluation.rollouts import Episodes, NoAttackError, rollout
from sb3_prune_robust.evaluation.store import Key, Piece, Store


def check_seeds(seed: int, n_episodes: int) -> None:
    """
    Held-out episodes are none that an attack is fitted on.

    :param seed: of the first
    :param n_episodes: how many
    :raises ValueError: if a seed is negative, or one of those that fitting uses
    """
    if seed < 0 or seed + n_episodes > FIRST_SEED_OF_FITTING:
        raise ValueError(
            f"seed must be at least 0, and seed + episodes at most 2**30 (attacks are fitted on the seeds from there on), got "
            f"{seed!r} and {n_episodes!r} episodes"
        )


def check_attacks(names: Sequence[str]) -> None:
    """
    :param names: of attacks and suites
    :raises ValueError: if there is none, one is not known, or one is given twice
    """
    unknown = [name for name in names if not is_known(name) and name not in SUITES]
    if unknown or not names or len(set(names)) != len(names):
        what = f"{unknown[0]!r} is unknown" if unknown else f"each at most once and at least one, got {list(names)!r}"
        raise ValueError(
            f"attacks: {what}; known: {', '.join(ATTACKS)} (with #2, #3, ... behind it: with another seed), and the suites "
            f"{', '.join(SUITES)}"
        )


@dataclass(frozen=True)
class Watch:
    """
    Who is told of progress.

    :param on_episode: called after each episode, also for those that were kept
    :param on_fit: called while an attack is fitted, with what is fitted and by how much more of the budget is used, in CPU
        seconds (in steps for a budget in steps alone)
    """

    on_episode: Callable[[], object] = lambda: None
    on_fit: Callable[[str, float], object] = lambda what, amount: None


def size_of(budget: Budget) -> float:
    """
    A budget as one number, for progress bars.

    :param budget: the budget
    :return: its CPU seconds; its steps if it has no others
    """
    return float(budget.steps if budget.seconds is None else budget.seconds)  # type: ignore[arg-type]


def budget_of(name: str, budget: Budget | None) -> Budget:
    """
    What fitting an attack may take.

    :param name: name of a learned attack
    :param budget: as asked for; ``None``: the default of its class
    """
    if budget is not None:
        return budget
    attack = make_attack(name, 1.0)
    assert isinstance(attack, FittedAttack)
    return attack.default_budget


@dataclass(frozen=True)
class Played:
    """
    Episodes under an attack.

    :param episodes: the episodes
    :param attack: the attack, fitted if it is one that learns; ``None``: no attack
    :param seconds: CPU seconds of playing
    """

    episodes: Episodes
    attack: Any
    seconds: float

    @property
    def cost(self) -> Cost | None:
        """What fitting took; ``None`` for an attack that does not learn."""
        return self.attack.cost if isinstance(self.attack, FittedAttack) else None


@dataclass(frozen=True)
class HeldOut:
    """
    The episodes of one policy in one mode.

    :param policy: an SB3 policy
    :param venv: environments on ``DummyVecEnv``, with VecNormalize where the policy was trained with it
    :param n_episodes: episodes for each attack
    :param deterministic: the policy plays its mode
    :param seed: seed of the first episode
    :param gamma: discount of the discounted returns
    :param reward_range: checked at every step; ``None``: not checked
    :param budget: of each attack that is fitted; ``None``: the default of its class
    :param store: where finished pieces are kept
    :param watch: who is told of progress
    :param label: what is being fitted on, for progress and messages
    :raises ValueError: for seeds that fitting uses
    """

    policy: Any
    venv: VecEnv
    n_episodes: int
    deterministic: bool
    seed: int = 0
    gamma: float = 0.99
    reward_range: tuple[float, float] | None = None
    budget: Budget | None = None
    store: Store = field(default_factory=lambda: Store(None))
    watch: Watch = field(default_factory=Watch)
    label: str = ""

    def __post_init__(self) -> None:
        check_seeds(self.seed, self.n_episodes)

    @functools.cached_property
    def _victim(self) -> dict[str, Any]:
        return victim_key(self.policy, self.venv)

    def clean(self, record: bool = False) -> Played:
        """
        Without attack.

        :param record: keep what the policy observed and drew
        """
        return self._play(None, {"attack": None}, record=record)

    def smoothed(self, std: float) -> Episodes:
        """
        The mode played on observations with noise added, recorded.

        :param std: of the noise
        """
        noise = ObservationNoise(std, self.seed)
        key = {"attack": "noise", "std": std}
        return self._play(noise, key, record=True, deterministic=True).episodes

    def named(self, name: str, eps: Any, norm: str) -> Played:
        """
        Under an attack by name.

        :param name: as :func:`~sb3_prune_robust.attacks.make_attack` takes
        :param eps: radius
        :param norm: ``"linf"`` or ``"l2"``
        :raises NoAttackError: if it changed no observation
        :raises NothingToLearnError: if it is learned, and there was nothing to learn
        """
        attack = make_attack(name, eps, norm, seed=self.seed, deterministic=self.deterministic)
        return self.under(attack, name, named_key(name, attack))

    def under(self, attack: Any, name: str, key: Key | None = None) -> Played:
        """
        Under an attack, which is fitted first if it must be.

        :param attack: an attack, or a function of policy and observations
        :param name: its name, for progress
        :param key: what tells it from others, unless it is learned; ``None``: not known, so that its episodes are not kept
        :raises NoAttackError: if it changed no observation
        :raises NothingToLearnError: if it is learned, and there was nothing to learn
        """
        if is_learned(attack):
            attack = self._fitted(attack, name)
        return self._play(attack, attack_key(attack) if isinstance(attack, FittedAttack) else key)

    def _fitted(self, attack: FittedAttack, name: str) -> FittedAttack:
        budget = self.budget or attack.default_budget
        key = {"victim": self._victim, "attack": attack_key(attack), "budget": asdict(budget), "versions": versions()}
        label, told = f"{name}{self.label and ' on '}{self.label}", [0.0]

        def tell(share: float) -> None:
            self.watch.on_fit(label, (share - told[0]) * size_of(budget))
            told[0] = share

        tell(0.0)
        fitted, nothing = self.store.read_attack(key, attack), self.store.read(key)
        if fitted is None and nothing is None:
            attack, start, checkpoint = copy.deepcopy(attack), time.process_time(), self.store.checkpoint(key)
            try:
                with th.random.fork_rng(devices=[]):
                    th.manual_seed(
                        attack.seed or 0
                    )  # what is learned depends on the attack's seed, not on what was run before
                    attack.fit(self.policy, self.venv, budget, checkpoint=checkpoint, on_progress=tell)
                fitted = self.store.write_attack(key, attack)
            except NothingToLearnError as error:
                nothing = Piece(None, time.process_time() - start, str(error))
                self.store.write(key, nothing)
                if checkpoint is not None:
                    shutil.rmtree(checkpoint, ignore_errors=True)
        tell(1.0)
        if fitted is None:
            assert nothing is not None
            for _ in range(self.n_episodes):  # that are not played
                self.watch.on_episode()
            raise NothingToLearnError(nothing.no_attack)
        return fitted

    def _play(self, attack: Any, key: Key | None, record: bool = False, deterministic: bool | None = None) -> Played:
        mode = self.deterministic if deterministic is None else deterministic
        full = None if key is None else self._key(key, record, mode)
        piece = None if full is None else self.store.read(full)
        if piece is None:
            piece = self._rolled_out(attack, record, mode)
            if full is not None:
                self.store.write(full, piece)
        else:
            for _ in range(self.n_episodes):
                self.watch.on_episode()
        if piece.episodes is None:
            raise NoAttackError(piece.no_attack)
        return Played(piece.episodes, attack, piece.seconds)

    def _key(self, attack: Key, record: bool, deterministic: bool) -> dict[str, Any]:
        played = {"n_episodes": self.n_episodes, "seed": self.seed, "gamma": self.gamma, "reward_range": self.reward_range}
        mode = {"deterministic": deterministic, "record": record}
        return {"victim": self._victim, **played, **mode, "attack": dict(attack), "versions": versions()}

    def _rolled_out(self, attack: Any, record: bool, deterministic: bool) -> Piece:
        start = time.process_time()
        try:
            episodes = rollout(
                self.policy,
                self.venv,
                self.n_episodes,
                attack=attack,
                deterministic=deterministic,
                gamma=self.gamma,
                seed=self.seed,
                record=record,
                reward_range=self.reward_range,
                on_episode=self.watch.on_episode,
            )
        except NoAttackError as error:
            return Piece(None, time.process_time() - start, str(error))
        return Piece(episodes, time.process_time() - start)
