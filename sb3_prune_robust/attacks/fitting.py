"""Attacks that are learned on the victim before they can be used: budget, fitting, files."""

from __future__ import annotations

import hashlib
import json
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import torch as th
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_normalize, unwrap_vec_wrapper
from typing_extensions import Self

from sb3_prune_robust.actor import action_masks
from sb3_prune_robust.attacks.base import Array, Attack
from sb3_prune_robust.attacks.observations import check_obs
from sb3_prune_robust.attacks.vec_env import AdversarialVecEnv
from sb3_prune_robust.network import UnsupportedNetworkError

FIRST_SEED_OF_FITTING = (
    2**30
)  # evaluations count their episodes' seeds from small numbers: fitting must not see those episodes
FORMAT = 1  # of the files


LONGEST_EPISODE = 100_000  # steps; an agent that an attack keeps from its goal may never come to an end


class NothingToLearnError(ValueError):
    """The victim's play taught the attack nothing: there is no attack, and no attacked return to report."""


class NotFittedError(RuntimeError):
    """A learned attack was used before ``fit`` or ``load``: there is no attack yet."""


@dataclass(frozen=True)
class Cost:
    """
    What fitting took.

    :param steps: environment steps, those of choosing among candidates included
    :param seconds: CPU seconds of the process
    """

    steps: int
    seconds: float


@dataclass(frozen=True)
class Budget:
    """
    What fitting may take; with both limits, whichever is reached first. An episode that has begun is played to its end, so a
    budget of a few episodes is exceeded; :attr:`FittedAttack.cost` tells.

    :param steps: environment steps; reproducible
    :param seconds: CPU seconds of the process (not of the children of a ``SubprocVecEnv``); how far one gets depends on the
        machine
    :raises ValueError: if neither is given, or one is not positive
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise ValueError("budget needs steps or seconds, got neither")
        for name in ("steps", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"budget: {name}={value!r} must be positive and finite")


class Meter:
    """
    How much of a budget is used.

    :param budget: the budget
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._steps, self._start = 0, time.process_time()

    def resume(self, before: Cost) -> None:
        """Go on from what an interrupted fit had used."""
        self._steps, self._start = before.steps, time.process_time() - before.seconds

    def add(self, steps: int) -> None:
        """Count environment steps."""
        self._steps += steps

    @property
    def cost(self) -> Cost:
        """What was used so far."""
        return Cost(self._steps, time.process_time() - self._start)

    @property
    def progress(self) -> float:
        """Share of the budget that is used, in [0, 1]."""
        used = self.cost
        pairs = ((used.steps, self.budget.steps), (used.seconds, self.budget.seconds))
        return min(1.0, max(have / limit for have, limit in pairs if limit is not None))


@dataclass(frozen=True)
class Fit:
    """
    A fit under way.

    :param meter: what it may use
    :param folder: where it saves as it goes; ``None``: nowhere
    :param identity: what tells it from other fits: a checkpoint must agree with it
    :param on_progress: called with the share of the budget that is used
    """

    meter: Meter
    folder: Path | None
    identity: Mapping[str, Any]
    on_progress: Callable[[float], object]

    def save(self, name: str, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Write a checkpoint, if there is a folder for it."""
        if self.folder is not None:
            whole = {**header, "identity": dict(self.identity), "cost": asdict(self.meter.cost)}
            write_arrays(self.folder / f"{name}.npz", whole, arrays)

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """
        The checkpoint of this name, the meter set to what had been used; ``None`` if there is none.

        :raises ValueError: if it is damaged, or of another fit
        """
        if self.folder is None or not (path := self.folder / f"{name}.npz").exists():
            return None
        header, arrays = read_arrays(path)
        if header.get("identity") != dict(self.identity):
            raise ValueError(f"checkpoint {path} is of another fit (other victim, settings or budget); use another folder")
        self.meter.resume(Cost(**header["cost"]))
        return header, arrays


class FittedAttack(Attack):
    """
    An attack that is learned: ``attack.fit(model, env)`` first, then ``attack(policy, obs)`` as any other.

    Whatever ``fit`` chooses (a checkpoint, a parameter) it chooses on episodes of its own, whose seeds no evaluation uses.
    Files hold plain arrays and no code, so that a fitted attack can be shared. Arguments as in :class:`Attack`.

    :ivar cost: what fitting took; ``None`` before
    """

    _classes: ClassVar[dict[str, type[FittedAttack]]] = {}
    default_budget: ClassVar[Budget]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        FittedAttack._classes[cls.__name__] = cls

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
    ) -> None:
        if isinstance(eps, Mapping):
            raise ValueError(f"eps={eps!r} is by key; attacks that learn are for Box observations")
        super().__init__(eps, norm, mask, seed, deterministic)
        self.seed = seed
        self.cost: Cost | None = None

    @final
    def fit(
        self,
        model: Any,
        env: VecEnv,
        budget: Budget | None = None,
        *,
        checkpoint: str | Path | None = None,
        on_progress: Callable[[float], object] | None = None,
    ) -> Self:
        """
        Learn to attack a victim; its weights and the statistics of a VecNormalize stay as they are.

        :param model: the victim: an SB3 policy, or an algorithm that has one
        :param env: environments as the victim was trained in, with VecNormalize where it was used; several at a time are
            faster (8 to 32)
        :param budget: what it may take; ``None``: the class's ``default_budget``
        :param checkpoint: a folder in which to save as it goes; if it holds a checkpoint of this fit (same attack, victim and
            environments), it is continued, with a larger budget as well. ``None``: none. Checkpoints hold SB3's own files,
            which run code when they are loaded: keep them to yourself, and share what :meth:`save` writes
        :param on_progress: called now and then with the share of the budget that is used
        :return: the attack itself
        :raises ValueError: if environment and victim do not fit together, or the checkpoint is of another fit
        :raises UnsupportedNetworkError: if the victim is recurrent
        """
        self.check(model, env)
        policy = getattr(model, "policy", model)
        folder = None if checkpoint is None else Path(checkpoint)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        policy.set_training_mode(False)
        with frozen(env):
            meter = Meter(budget or self.default_budget)
            self._fit(policy, env, meter, folder, on_progress or _nothing)
        self.cost = meter.cost
        return self

    def check(self, model: Any, env: VecEnv) -> None:
        """
        Refuse a victim that :meth:`fit` would refuse; the environments are reset, and nothing is learned.

        :param model: the victim
        :param env: environments, as :meth:`fit` takes them
        :raises TypeError: if ``env`` is no VecEnv, or ``model`` no model
        :raises ValueError: if environment and victim do not fit together
        :raises UnsupportedNetworkError: if the victim is recurrent, or sees something other than vectors of floats
        """
        policy = getattr(model, "policy", model)
        if not isinstance(env, VecEnv):
            raise TypeError(f"env must be a VecEnv, got {type(env).__name__}; see make_vec_env or DummyVecEnv")
        if hasattr(policy, "lstm_actor"):
            raise UnsupportedNetworkError(f"{type(policy).__name__} has a memory; attacks are fitted on victims without one")
        with frozen(env):
            AdversarialVecEnv(env, model, self)  # refuses what does not fit together
            _check_vectors(policy, env.reset())
        self._check_policy(policy)

    def _check_policy(self, policy: Any) -> None:
        """Refuse what this attack does not cover."""

    @abstractmethod
    def _fit(
        self, policy: Any, env: VecEnv, meter: Meter, checkpoint: Path | None, on_progress: Callable[[float], object]
    ) -> None:
        """The learning itself; ``env`` is frozen and pays raw rewards."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """The keyword arguments of this class's constructor beyond those of :class:`Attack`, for JSON."""

    @abstractmethod
    def _arrays(self) -> dict[str, Array]:
        """What was learned, as arrays by name."""

    @abstractmethod
    def _restore(self, arrays: Mapping[str, Array]) -> None:
        """Take what was learned from :meth:`_arrays`."""

    def _identity(self, policy: Any, env: VecEnv) -> dict[str, Any]:
        """What tells one fit from another, as JSON gives it back."""
        parts = [tensor.detach().cpu().numpy() for tensor in policy.state_dict().values()]
        normalizer = unwrap_vec_normalize(env)
        if normalizer is not None and normalizer.norm_obs:
            statistics: Any = normalizer.obs_rms
            parts += [statistics.mean, statistics.var]
        digest = hashlib.sha256(b"".join(part.tobytes() for part in parts))
        fit = {"attack": type(self).__name__, "victim": digest.hexdigest(), "env": _describe(env)}
        identity: dict[str, Any] = json.loads(json.dumps({**fit, **self._common(), **self._settings()}))
        return identity

    def _common(self) -> dict[str, Any]:
        """The arguments of :class:`Attack`, for JSON."""
        mask = None if self._mask is None else self._mask.tolist()
        common = {"eps": self._eps.tolist(), "norm": self.norm, "mask": mask}
        return {**common, "seed": self.seed, "deterministic": self.deterministic}

    def _check_fitted(self) -> None:
        if self.cost is None:
            raise NotFittedError(f"{type(self).__name__} was not fitted; call fit(model, env), or load a fitted one")

    def _fit_seeds(self, n: int) -> list[int]:
        """``n`` seeds for environments, from this attack's own, that no evaluation uses."""
        rng = np.random.default_rng(self.seed)
        return [FIRST_SEED_OF_FITTING + int(number) for number in rng.integers(0, 2**29, size=n)]

    def save(self, path: str | Path) -> None:
        """
        Write the fitted attack as one ``.npz`` file of plain arrays, whole or not at all.

        :param path: the file
        :raises NotFittedError: before :meth:`fit`
        """
        self._check_fitted()
        assert self.cost is not None
        header = {"format": FORMAT, "attack": type(self).__name__, "common": self._common(), "cost": asdict(self.cost)}
        write_arrays(Path(path), {**header, "settings": self._settings()}, self._arrays())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """
        Read a fitted attack. Nothing in the file is executed.

        :param path: a file that :meth:`save` wrote
        :return: the attack, of the class that saved it
        :raises ValueError: if the file is missing or damaged, or holds another attack than ``cls``
        """
        header, arrays = read_arrays(Path(path))
        found = FittedAttack._classes.get(header.get("attack", ""))
        if found is None or header.get("format") != FORMAT:
            raise ValueError(f"{path} is no attack that this version knows; known: {sorted(FittedAttack._classes)}")
        if not issubclass(found, cls):
            raise ValueError(f"{path} holds a {found.__name__}, not a {cls.__name__}")
        try:
            attack = found(**header["common"], **header["settings"])
            attack._restore(arrays)
            attack.cost = Cost(**header["cost"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error!r} where a fitted {found.__name__} was expected") from error
        return attack


def _check_vectors(policy: Any, obs: Any) -> None:
    check_obs(policy, obs)
    if isinstance(obs, Mapping) or obs.dtype == np.uint8:
        raise UnsupportedNetworkError(
            f"observations are {policy.observation_space}: attacks that learn are for vectors of floats"
        )


def _describe(env: VecEnv) -> str:
    """What is known of environments from outside: wrappers, how many, ids and arguments."""
    chain, one = [], env
    while isinstance(one, VecEnvWrapper):
        settings = {name: getattr(one, name) for name in ("clip_obs", "epsilon", "norm_obs") if name in vars(one)}
        chain.append(f"{type(one).__name__}{settings}")
        one = one.venv
    specs = [None if spec is None else (spec.id, spec.kwargs) for spec in env.get_attr("spec")]
    return f"{chain} {env.num_envs} {env.env_method('__str__')[:1]} {specs[:1]}"


def _nothing(progress: float) -> None:
    """No progress to show."""


def write_arrays(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """
    Arrays and a JSON header in one ``.npz`` file, whole or not at all.

    :param path: the file
    :param header: what JSON can hold
    :param arrays: by name
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """
    What :func:`write_arrays` wrote.

    :param path: the file
    :return: header and arrays
    :raises ValueError: if the file is missing, damaged or of another kind
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header: dict[str, Any] = dict(json.loads(str(arrays.pop("header"))))
    except Exception as error:  # whatever a broken file makes zipfile, numpy and json raise
        raise ValueError(f"{path} is missing, damaged or not a file of a fitted attack: {error}") from error
    return header, arrays


@contextmanager
def frozen(env: VecEnv) -> Iterator[None]:
    """
    While in use, a VecNormalize below is frozen and rewards are raw.

    :param env: the environments
    :raises ValueError: if they are attacked already
    """
    if unwrap_vec_wrapper(env, AdversarialVecEnv) is not None:
        raise ValueError("env already holds an AdversarialVecEnv; an attack is fitted on the environment below it")
    normalizer = unwrap_vec_normalize(env)
    settings = None if normalizer is None else (normalizer.training, normalizer.norm_reward)
    try:
        if normalizer is not None:
            normalizer.training = normalizer.norm_reward = False
        yield
    finally:
        if normalizer is not None and settings is not None:
            normalizer.training, normalizer.norm_reward = settings


def attacked_returns(
    attack: Attack, policy: Any, env: VecEnv, n_episodes: int, *, deterministic: bool, seed: int, meter: Meter | None = None
) -> Array:
    """
    Raw returns of a few episodes under an attack, for choosing among candidates while fitting.

    :param attack: the candidate
    :param policy: the victim
    :param env: environments, frozen
    :param n_episodes: how many
    :param deterministic: the victim plays its mode
    :param seed: of the environments
    :param meter: counts the steps
    :return: returns, shape ``(n_episodes,)``
    """
    env.seed(seed)
    attacked = AdversarialVecEnv(env, policy, attack)

    def check_length(running: dict[str, Any], _: Any) -> None:
        check_episode(int(running["current_lengths"].max()))

    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)  # of the victim's own noise
        evaluate = evaluate_policy if action_masks(policy, env) is None else evaluate_masked
        returns, _ = evaluate(
            policy,
            attacked,
            n_episodes,
            deterministic=deterministic,
            callback=check_length,
            return_episode_rewards=True,
            warn=False,
        )
    if meter is not None:
        meter.add(attacked.n_observations - env.num_envs)
    return np.array(returns)


def check_episode(length: int) -> None:
    """
    Refuse an episode that does not end.

    :param length: steps so far
    :raises ValueError: above :data:`LONGEST_EPISODE`
    """
    if length > LONGEST_EPISODE:
        raise ValueError(f"env: an episode under attack went on for more than {LONGEST_EPISODE} steps; give env a time limit")
