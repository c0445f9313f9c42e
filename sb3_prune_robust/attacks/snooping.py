"""A black-box attack: what the victim does is watched, a copy is trained to do the same, and the copy is attacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_prune_robust.actor import Actor, action_masks
from sb3_prune_robust.attacks.balls import Ball
from sb3_prune_robust.attacks.base import Array
from sb3_prune_robust.attacks.fitting import Budget, Fit, FittedAttack, Meter
from sb3_prune_robust.attacks.gradient import MAD
from sb3_prune_robust.attacks.transitions import choices

_LEARNING_RATE = 1e-3  # at the start; falls in a line to 0
_BATCH = 256
_HELD_OUT = 0.1  # share of the pairs, the last in time, that the copy is judged on
_FEWEST = 20  # pairs
_WATCHING_SHARE = 0.4  # of the seconds, at most; the others are for learning
_SAVE_EVERY = 0.1  # of the fit
_NOTHING: dict[str, Array] = {"observations": np.zeros((0, 0), np.float32), "actions": np.zeros((0, 0))}
OnProgress = Callable[[float], object]


class Snooping(FittedAttack):
    """
    Snooping (Inkawhich et al. 2020): :class:`MAD` on a behaviour-cloned copy of the victim, transferred to the victim.

    What it knows of the victim are the observations it receives and the actions it takes, as an eavesdropper sees them, never
    its weights, gradients or distribution (they are hashed, to tell checkpoints apart, and a plain network plays faster by
    its arrays: the same actions). The copy is a 64x64 tanh network: the mean action by mean squared error with a constant
    standard deviation (``Box``), or logits by cross-entropy (``Discrete``, ``MultiDiscrete``). An observation that never
    varied is left alone. Watching takes at most 40 % of a budget's seconds. Other arguments as in :class:`Attack`.

    :param pairs: number of observations and actions to collect, if the budget lets it
    :param epochs: passes over them
    :param steps: as in :class:`PGD`, on the copy
    :param restarts: as in :class:`PGD`
    :param step_size: as in :class:`PGD`
    :ivar fidelity: how good the copy is on held-out pairs: R^2 of the actions (1: perfect, 0: as a constant; a victim that
        samples has noise that nobody predicts), or share of choices that are the copy's most likely ones; NaN before ``fit``
    """

    default_budget = Budget(seconds=240.0)

    def __init__(
        self,
        eps: float | npt.ArrayLike,
        norm: str = "linf",
        mask: npt.ArrayLike | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        *,
        pairs: int = 50_000,
        epochs: int = 100,
        steps: int = 20,
        restarts: int = 5,
        step_size: float = 0.25,
    ) -> None:
        super().__init__(eps, norm, mask, seed, deterministic)
        for name, value, least in (("pairs", pairs, _FEWEST), ("epochs", epochs, 1)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
        self.pairs, self.epochs = int(pairs), int(epochs)
        self._mad = MAD(eps, norm, mask, seed, deterministic, steps=steps, restarts=restarts, step_size=step_size)
        self._copy: ActorCriticPolicy | None = None
        self.fidelity = float("nan")

    def perturb(self, policy: Any, ball: Ball) -> Array:
        self._check_fitted()
        assert self._copy is not None
        expected = int(np.prod(self._copy.observation_space.shape or ()))
        if ball.center.shape[1] != expected:
            raise ValueError(f"obs has {ball.center.shape[1]} entries; the copy was made of a victim that has {expected}")
        return self._mad.perturb(self._copy, ball)

    def _check_policy(self, policy: Any) -> None:
        choices(policy.action_space)

    def _fit(self, policy: Any, env: VecEnv, meter: Meter, checkpoint: Path | None, on_progress: OnProgress) -> None:
        nvec = choices(policy.action_space)
        fit = Fit(meter, checkpoint, self._identity(policy, env), on_progress)
        seeds = self._fit_seeds(2)
        observations, actions = self._watch(policy, env, fit, seeds[0])
        if len(observations) < _FEWEST:
            raise ValueError(f"{meter.budget} gave {len(observations)} pairs to learn from; at least {_FEWEST} are needed")
        held = max(1, round(_HELD_OUT * len(observations)))
        cloning = _Cloning(observations[:-held], actions[:-held], nvec, seeds[1])
        self._clone(cloning, fit)
        self._copy = cloning.policy(observations[-held:], actions[-held:])
        self.fidelity = cloning.fidelity(observations[-held:], actions[-held:])

    def _watch(self, policy: Any, env: VecEnv, fit: Fit, seed: int) -> tuple[Array, Array]:
        """Observations ``(n, d)`` as the victim received them, float32, and its actions ``(n, k)``, in order of time."""
        pairs = (fit.load("pairs") or ({}, _NOTHING))[1]
        seen, saved, count = [pairs], 0.0, len(pairs["actions"])
        playing = _play(policy, env, self.deterministic, seed + count)  # after an interruption: other episodes
        while count + env.num_envs <= self.pairs and _may_watch(fit.meter, env.num_envs):
            seen.append(next(playing))
            fit.meter.add(env.num_envs)
            count += env.num_envs
            done = max(count / self.pairs, fit.meter.progress)
            if done >= saved + _SAVE_EVERY:
                saved, seen = done, [_joined(seen)]
                fit.save("pairs", {}, seen[0])
                fit.on_progress(done / 2)
        pairs = _joined(seen)
        if len(seen) > 1:
            fit.save("pairs", {}, pairs)
        return pairs["observations"], pairs["actions"]

    def _clone(self, cloning: _Cloning, fit: Fit) -> None:
        """Train, as long as there is time."""
        header, weights = fit.load("copy") or ({"epoch": 0}, None)
        if weights is not None:
            cloning.restore(weights)
        for epoch in range(header["epoch"], self.epochs):
            done = max(epoch / self.epochs, _seconds_used(fit.meter))
            if done >= 1:
                break
            cloning.epoch(epoch, _LEARNING_RATE * (1.0 - done))
            if (epoch + 1) % max(1, round(_SAVE_EVERY * self.epochs)) == 0:
                fit.save("copy", {"epoch": epoch + 1}, cloning.weights())
            fit.on_progress((1.0 + done) / 2)

    def _settings(self) -> dict[str, Any]:
        search = dict(steps=self._mad.steps, restarts=self._mad.restarts, step_size=self._mad.step_size)
        return dict(pairs=self.pairs, epochs=self.epochs, **search)

    def _arrays(self) -> dict[str, Array]:
        assert self._copy is not None
        named = {"fidelity": np.array(self.fidelity), "nvec": np.array(choices(self._copy.action_space), np.int64)}
        for i, layer in enumerate(_layers(self._copy)):
            named |= {f"W{i}": layer.weight.detach().numpy(), f"b{i}": layer.bias.detach().numpy()}
        if hasattr(self._copy, "log_std"):
            named["log_std"] = self._copy.log_std.detach().numpy()
        return named

    def _restore(self, arrays: Mapping[str, Array]) -> None:
        nvec = tuple(int(n) for n in arrays["nvec"])
        copy = _new_policy(arrays["W0"].shape[1], arrays["b2"].size, nvec)
        with th.no_grad():
            for i, layer in enumerate(_layers(copy)):
                _fill(f"W{i}", layer.weight, arrays[f"W{i}"])
                _fill(f"b{i}", layer.bias, arrays[f"b{i}"])
            if not nvec:
                _fill("log_std", copy.log_std, arrays["log_std"])
        self._copy, self.fidelity = copy, float(arrays["fidelity"])


class _Cloning:
    """
    Supervised learning of a victim's actions, on standardised observations and actions.

    :param observations: shape ``(n, d)``
    :param actions: shape ``(n, k)``
    :param nvec: number of choices of each categorical; empty for real-valued actions
    :param seed: of the first weights and of the order of the pairs
    """

    def __init__(self, observations: Array, actions: Array, nvec: tuple[int, ...], seed: int) -> None:
        self.nvec, self.seed = nvec, seed
        self.mean, spread = observations.mean(axis=0, dtype=np.float64), observations.std(axis=0, dtype=np.float64)
        self.spread = np.where(spread > 1e-6 * (1.0 + np.abs(self.mean)), spread, np.inf)  # never varied: left out
        self.center = np.zeros(sum(nvec)) if nvec else actions.mean(axis=0)
        self.scale = np.ones(sum(nvec)) if nvec else actions.std(axis=0)
        with th.random.fork_rng(devices=[]):
            th.manual_seed(seed)
            self.network = _new_policy(observations.shape[1], len(self.scale), nvec)
        self.body = nn.Sequential(*self.network.mlp_extractor.policy_net, self.network.action_net)
        self.optimizer = th.optim.Adam(self.body.parameters())
        self.inputs, self.targets = self._inputs(observations), self._targets(actions)

    def epoch(self, number: int, learning_rate: float) -> None:
        """One pass over the pairs."""
        self.optimizer.param_groups[0]["lr"] = learning_rate
        order = np.random.default_rng([self.seed, number]).permutation(len(self.inputs))
        for rows in th.as_tensor(order).split(_BATCH):
            self.optimizer.zero_grad()
            self._loss(self.body(self.inputs[rows]), self.targets[rows]).backward()
            self.optimizer.step()

    def weights(self) -> dict[str, Array]:
        """As arrays by name; not what the optimiser remembers, which it finds back in a few steps."""
        return {name: tensor.detach().numpy() for name, tensor in self.body.state_dict().items()}

    def restore(self, weights: Mapping[str, Array]) -> None:
        """What :meth:`weights` gave."""
        self.body.load_state_dict({name: th.as_tensor(array) for name, array in weights.items()})

    def policy(self, observations: Array, actions: Array) -> ActorCriticPolicy:
        """The copy, in the victim's units; its standard deviation is that of what held-out actions leave unexplained."""
        copy = _new_policy(len(self.mean), len(self.scale), self.nvec)
        copy.load_state_dict(self.network.state_dict())
        first, last = _layers(copy)[0], _layers(copy)[-1]
        with th.no_grad():
            first.weight.div_(_tensor(self.spread))
            first.bias.sub_(first.weight @ _tensor(self.mean))
            last.weight.mul_(_tensor(self.scale)[:, None])
            last.bias.mul_(_tensor(self.scale)).add_(_tensor(self.center))
            if not self.nvec:
                errors = (self._outputs(observations) - self._targets(actions)).square().mean(dim=0).sqrt()
                copy.log_std.copy_((errors * _tensor(self.scale)).clamp(min=1e-6).log())
        return copy

    def fidelity(self, observations: Array, actions: Array) -> float:
        """See :class:`Snooping`."""
        outputs, targets = self._outputs(observations), self._targets(actions)
        if self.nvec:
            chosen = th.stack([part.argmax(dim=1) for part in outputs.split(self.nvec, dim=1)], dim=1)
            return float((chosen == targets).double().mean())
        unexplained, total = (outputs - targets).square().sum(), (targets - targets.mean(dim=0)).square().sum()
        return float(1.0 - unexplained / total) if total > 0 else float(unexplained == 0)

    def _loss(self, outputs: th.Tensor, targets: th.Tensor) -> th.Tensor:
        if not self.nvec:
            return nn.functional.mse_loss(outputs, targets)
        parts = zip(outputs.split(self.nvec, dim=1), targets.T, strict=True)
        return th.stack([nn.functional.cross_entropy(logits, chosen) for logits, chosen in parts]).sum()

    def _outputs(self, observations: Array) -> th.Tensor:
        with th.no_grad():
            result: th.Tensor = self.body(self._inputs(observations))
        return result

    def _inputs(self, observations: Array) -> th.Tensor:
        return _tensor((observations - self.mean) / self.spread)

    def _targets(self, actions: Array) -> th.Tensor:
        if self.nvec:
            return th.as_tensor(actions.astype(np.int64))
        return _tensor((actions - self.center) / np.where(self.scale > 0, self.scale, 1.0))


def _play(policy: Any, env: VecEnv, deterministic: bool, seed: int) -> Iterator[dict[str, Array]]:
    """What an eavesdropper sees, step by step."""
    act, streams = Actor(policy, deterministic), [np.random.default_rng(seed)] * env.num_envs
    env.seed(seed)
    observations = np.array(env.reset())
    while True:
        actions = act(observations, streams, action_masks(policy, env))[0]
        rows = observations.reshape(len(observations), -1).astype(np.float32)
        yield {"observations": rows, "actions": actions.reshape(len(actions), -1).astype(np.float64)}
        observations = np.array(env.step(actions)[0])


def _may_watch(meter: Meter, n_envs: int) -> bool:
    limit = meter.budget.steps
    return (limit is None or meter.cost.steps + n_envs <= limit) and _seconds_used(meter) < _WATCHING_SHARE


def _seconds_used(meter: Meter) -> float:
    """Share of the budget's seconds."""
    return 0.0 if meter.budget.seconds is None else meter.cost.seconds / meter.budget.seconds


def _joined(pieces: list[dict[str, Array]]) -> dict[str, Array]:
    pieces = [piece for piece in pieces if len(piece["actions"])] or pieces[:1]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in ("observations", "actions")}


def _new_policy(n_inputs: int, n_outputs: int, nvec: tuple[int, ...]) -> ActorCriticPolicy:
    """An untrained copy, from flattened observations."""
    seen = spaces.Box(-np.inf, np.inf, (n_inputs,), np.float32)
    done = spaces.MultiDiscrete(list(nvec)) if nvec else spaces.Box(-np.inf, np.inf, (n_outputs,), np.float32)
    network: dict[str, Any] = dict(activation_fn=nn.Tanh, net_arch=dict(pi=[64, 64], vf=[]))
    with th.random.fork_rng(devices=[]):  # the first weights are random, and replaced in every use but one, which seeds
        policy = ActorCriticPolicy(seen, done, lambda _: _LEARNING_RATE, **network)
    policy.set_training_mode(False)
    return policy


def _layers(policy: ActorCriticPolicy) -> list[nn.Linear]:
    modules = [*policy.mlp_extractor.policy_net, policy.action_net]
    return [module for module in modules if isinstance(module, nn.Linear)]


def _fill(name: str, parameter: th.Tensor, array: Array) -> None:
    if array.shape != tuple(parameter.shape):
        raise ValueError(f"{name} has shape {array.shape}, expected {tuple(parameter.shape)}")
    parameter.copy_(th.as_tensor(array))


def _tensor(array: Array) -> th.Tensor:
    return th.as_tensor(np.asarray(array, np.float32))
