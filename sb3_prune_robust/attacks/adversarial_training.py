"""Training under attack: a callback that puts an adversary between the environments and the agent that learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EventCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_prune_robust.attacks.base import Attack
from sb3_prune_robust.attacks.registry import ATTACKS, is_fitted_attack, make_attack
from sb3_prune_robust.attacks.vec_env import AdversarialVecEnv
from sb3_prune_robust.observations import copied, rows

EPS_SCHEDULES = ("constant", "linear")
EVALUATIONS = ("clean", "attacked")
EPS_LEVELS = 100  # a linear schedule climbs in so many steps: each makes an attack anew
LINEAR_END = 0.75
# An attack that has changed none of so many observations in a row does not happen. One alone may stay as it is where the
# objective is flat, and off-policy algorithms call a single step a rollout.
MAX_UNCHANGED = 100


class TrainingAdversary(AdversarialVecEnv):
    """
    An adversary that training puts on an environment, and takes off again. Arguments as in :class:`AdversarialVecEnv`.

    ``terminal_observation`` is attacked too: there, SB3 asks the critic what an episode cut short was still worth, and
    replay buffers take it for the next observation.
    """

    true_obs: Any = None

    def attacked(self, obs: Any) -> Any:
        """
        Observations as an agent is to receive them that were made before this adversary was there.

        :param obs: true observations
        """
        return self._perturb(copied(obs))

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = super().step_wait()
        for i in np.flatnonzero(dones):
            if "terminal_observation" in infos[i]:
                last = self.attack(self.model, rows(copied(infos[i]["terminal_observation"]), None))
                infos[i]["terminal_observation"] = rows(last, 0)
        return obs, rewards, dones, infos

    def changed_nothing(self) -> bool:
        """Whether enough observations have passed to tell that no attack takes place; counts anew once enough have."""
        if self.n_observations < MAX_UNCHANGED:
            return False
        unchanged = self.n_perturbed == 0
        self.forget()
        return unchanged

    def _perturb(self, true_obs: Any) -> Any:
        self.true_obs = true_obs
        return super()._perturb(true_obs)


class _Unattacked(VecEnvWrapper):
    """Changes nothing: SB3 copies VecNormalize's statistics wrapper by wrapper, so that both environments need as many."""

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        return self.venv.step_wait()


class AdversarialTrainingCallback(BaseCallback):
    """
    Lets an agent learn under attack: what its policy receives is perturbed, at each step against its weights of the moment.

    The adversary is wrapped around the training environment when training starts, outermost (after ``VecNormalize``, whose
    statistics go on being those of true observations), and taken off when it ends. If ``learn()`` ends in an exception, it
    stays until the next training with this callback starts. Every observation that the agent learns from is attacked, the
    first and the last of an episode too.

    On-policy algorithms: any. Off-policy: without ``VecNormalize``, past which SB3's replay buffers store true observations.
    It is listed behind ``PruningCallback``, whose last evaluation comes at the end of training.
    ``EvalCallback`` beside it, the zoo's too, evaluates the agent clean, or under the attack at its full ``eps``.

    Logged: ``attack/eps`` (its largest entry), ``attack/mean_perturbation`` (in the attack's norm).

    :param attack: name of an attack that needs no learning: ``"mad"``, ``"critic"``, ``"random"``, ...
    :param eps: radius as in :class:`Attack`, in units of what the policy receives (after ``VecNormalize``, if there is one)
    :param norm: ``"linf"`` or ``"l2"``
    :param eps_schedule: ``"constant"``, or ``"linear"``: from 0 at ``start`` to ``eps`` at ``end``
    :param start: share of training that is done when the attack begins, in [0, 1)
    :param end: share of training that is done when a linear schedule reaches ``eps``, in (start, 1]; ``None``: 0.75
    :param evaluate: how an ``EvalCallback`` evaluates: ``"clean"`` or ``"attacked"``
    :param attack_kwargs: further arguments of the attack, e.g. ``{"steps": 5, "restarts": 1}``
    :param seed: of the attack's own random numbers; ``None``: the model's
    :param verbose: not used, as in SB3's callbacks
    :raises ValueError: for an unknown attack, or one that learns; for an eps of 0; for a value outside its range
    """

    def __init__(
        self,
        attack: str,
        eps: Any,
        norm: str = "linf",
        eps_schedule: str = "constant",
        start: float = 0.0,
        end: float | None = None,
        evaluate: str = "clean",
        attack_kwargs: Mapping[str, Any] | None = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if not isinstance(attack, str):
            raise TypeError(f"attack={attack!r} must be the name of one attack")
        self.attack, self.eps, self.norm, self.seed = attack, eps, norm, seed
        self.attack_kwargs = dict(attack_kwargs or {})
        self.eps_schedule, self.start, self.end = eps_schedule, start, LINEAR_END if end is None else end
        self.evaluate = evaluate
        _check_choice("eps_schedule", eps_schedule, EPS_SCHEDULES)
        _check_choice("evaluate", evaluate, EVALUATIONS)
        if end is not None and eps_schedule != "linear":
            raise ValueError(f"end={end!r} belongs to eps_schedule='linear', got eps_schedule={eps_schedule!r}")
        if not 0 <= start < 1 or (eps_schedule == "linear" and not start < self.end <= 1):
            raise ValueError(f"start={start!r} must lie in [0, 1) and end={self.end!r} in (start, 1]: shares of training")
        if not self._make(1.0, None).can_perturb:
            raise ValueError(f"eps={eps!r} is 0 everywhere: that is no attack; leave the callback out instead")
        if is_fitted_attack(attack):
            raise ValueError(
                f"attack {attack!r} learns on a victim that stays as it is, and this one learns itself; choose one of "
                f"{[name for name in ATTACKS if not is_fitted_attack(name)]}"
            )
        self._adversary: TrainingAdversary | None = None
        self._evaluations: list[TrainingAdversary] = []
        self._level = 0.0
        self._rng = np.random.default_rng()

    def _on_training_start(self) -> None:
        self._unwrap()
        self._check()
        self._rng = np.random.default_rng(self.model.seed if self.seed is None else self.seed)
        self._level = self._level_now()
        self._adversary = TrainingAdversary(self.training_env, self.model, self._attack(self._level), in_training=True)
        self._wrap_evaluations()
        # collect_rollouts is handed model.env anew each time; the first observations have been made already.
        self.model.env = self._adversary
        self.model._last_obs = self._adversary.attacked(self.model._last_obs)

    def _on_rollout_start(self) -> None:
        level = self._level_now()
        if self._adversary is not None and level != self._level:
            if not self._moves(self._level):
                self._adversary.forget()
            self._level, self._adversary.attack = level, self._attack(level)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert self._adversary is not None
        self.logger.record("attack/eps", self._level * _largest(self.eps))
        self.logger.record("attack/mean_perturbation", self._adversary.mean_perturbation)
        for adversary in [self._adversary] * self._moves(self._level) + self._evaluations:
            if adversary.changed_nothing():
                raise RuntimeError(
                    f"attack {self.attack!r} has left {MAX_UNCHANGED} observations and more unchanged although eps is "
                    f"{adversary.attack.eps!r}: no attack takes place, so this is no training under attack"
                )

    def _on_training_end(self) -> None:
        if hasattr(self, "model"):  # the zoo tells of the end of a training that failed before it began, too
            self._unwrap()

    def _check(self) -> None:
        model = self.model
        if not isinstance(model, OnPolicyAlgorithm | OffPolicyAlgorithm):
            raise TypeError(
                f"{type(model).__name__} plays perturbed copies of its policy: training under attack does not cover it"
            )
        if isinstance(model, OffPolicyAlgorithm) and model.get_vec_normalize_env() is not None:
            raise ValueError(
                f"the training environment has a VecNormalize, and {type(model).__name__}'s replay buffer stores what was "
                "observed before it: the agent would act under attack but learn from true observations; train it without "
                "VecNormalize (normalize: false)"
            )
        callbacks = list(_callbacks(self.locals.get("callback")))
        if sum(isinstance(one, AdversarialTrainingCallback) for one in callbacks) > 1:
            raise ValueError("callback holds more than one AdversarialTrainingCallback: attacks would add up to more than eps")
        later = [type(one).__name__ for one in callbacks[callbacks.index(self) :] if getattr(one, "evaluates_at_end", False)]
        if later:  # its evaluation would come when the attack has been taken off, and pass for an attacked one
            raise ValueError(f"callback lists AdversarialTrainingCallback before {later[0]}; list it behind")

    def _wrap_evaluations(self) -> None:
        for callback in self._eval_callbacks():
            env = callback.eval_env
            if self.evaluate == "attacked":
                env = TrainingAdversary(env, self.model, self._attack(1.0, deterministic=callback.deterministic))
                self._evaluations.append(env)
            else:
                env = _Unattacked(env)
            callback.eval_env = env

    def _unwrap(self) -> None:
        """What this callback, or another like it whose training did not end well, has put on environments."""
        outermost = self.model.env
        if isinstance(outermost, TrainingAdversary):
            if self.model._last_obs is not None and outermost.true_obs is not None:
                self.model._last_obs = outermost.true_obs
            self.model.env = without_adversary(outermost)
        for callback in self._eval_callbacks():
            callback.eval_env = without_adversary(callback.eval_env)
        self._adversary, self._evaluations = None, []

    def _eval_callbacks(self) -> list[EvalCallback]:
        return [one for one in _callbacks(self.locals.get("callback")) if isinstance(one, EvalCallback)]

    def _level_now(self) -> float:
        """Share of ``eps`` that is due."""
        done = self.model.num_timesteps / max(self.model._total_timesteps, 1)
        if self.eps_schedule == "constant":
            return float(done >= self.start)
        ramp = (done - self.start) / (self.end - self.start)
        return float(np.floor(EPS_LEVELS * np.clip(ramp, 0.0, 1.0)) / EPS_LEVELS)

    def _moves(self, level: float) -> bool:
        """Whether a share of ``eps`` can move an observation: images move by whole pixels, and not at all below one."""
        space = self.model.observation_space
        attacked = [space[key] for key in self.eps] if isinstance(space, spaces.Dict) else [space]
        least = 1.0 if all(part.dtype == np.uint8 for part in attacked) else 0.0
        return level > 0 and level * _largest(self.eps) >= least

    def _attack(self, level: float, **settings: Any) -> Attack:
        return self._make(level, int(self._rng.integers(2**31)), **settings)

    def _make(self, level: float, seed: int | None, **settings: Any) -> Attack:
        return make_attack(self.attack, _scaled(self.eps, level), self.norm, seed, **{**self.attack_kwargs, **settings})


def _scaled(eps: Any, level: float) -> Any:
    if isinstance(eps, Mapping):
        return {key: _scaled(part, level) for key, part in eps.items()}
    return eps if level == 1.0 or isinstance(eps, str) else level * np.asarray(eps, dtype=np.float64)


def _largest(eps: Any) -> float:
    return max(map(_largest, eps.values())) if isinstance(eps, Mapping) else float(np.max(eps))


def _callbacks(callback: BaseCallback | None) -> Iterator[BaseCallback]:
    """A callback and those that it calls."""
    if callback is None:
        return
    yield callback
    inner = callback.callbacks if isinstance(callback, CallbackList) else [getattr(callback, "callback", None)]
    if isinstance(callback, CallbackList | EventCallback):
        for one in inner:
            yield from _callbacks(one)


def without_adversary(env: VecEnv) -> VecEnv:
    """
    The environment that training under attack has put an adversary on, as it was before.

    :param env: a training or evaluation environment, attacked or not
    """
    while isinstance(env, TrainingAdversary | _Unattacked):
        env = env.venv
    return env


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {list(choices)}")
