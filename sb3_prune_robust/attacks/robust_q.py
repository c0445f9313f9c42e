"""Robust Sarsa's Q: the return of the victim from a state after an action, learned from its own play (Zhang et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from torch import nn

from sb3_prune_robust.attacks.fitting import NothingToLearnError
from sb3_prune_robust.attacks.transitions import Transitions
from sb3_prune_robust.network import TANH, Network

Array = npt.NDArray[Any]
HIDDEN = 64
CLIP = 5.0  # standardised states are clipped to this: an outlier would saturate the network
_BATCH = 256
_LEARNING_RATE, _LAST_RATE = 1e-3, 1e-5  # falls in a line
_FOLLOW = 0.005  # share of Q that the target network takes over at each update


@dataclass(frozen=True)
class QFunction:
    """
    What was learned, as arrays. In units of the spread of the returns: ``offset + scale * q`` is the discounted return.

    For ``Box`` actions the network takes state and action and gives one value. For categorical ones it takes the state and
    gives a value for each choice; ``Q(s, a)`` is the sum of those chosen.

    :param network: of standardised states (and actions, as they are)
    :param mean: of the states, shape ``(d,)``
    :param spread: of the states, shape ``(d,)``; infinite where a state never varied
    :param scale: of the returns
    :param offset: of the returns
    """

    network: Network
    mean: Array
    spread: Array
    scale: float
    offset: float

    def standardised(self, states: Array) -> Array:
        """
        States as the network takes them.

        :param states: shape ``(n, d)``
        """
        return standardise(states, self.mean, self.spread)

    def __call__(self, states: Array, actions: Array) -> Array:
        """
        Discounted returns of the victim.

        :param states: true observations, flattened, shape ``(n, d)``
        :param actions: as in :class:`Transitions`, shape ``(n, k)``
        :return: shape ``(n,)``
        """
        inputs = self.standardised(states)
        if self.network.n_outputs == 1 and self.network.n_inputs > inputs.shape[1]:
            values = self.network(np.concatenate([inputs, actions], axis=1))[:, 0]
        else:
            values = (self.network(inputs) * actions).sum(axis=1)
        return self.offset + self.scale * values

    def arrays(self) -> dict[str, Array]:
        """By name, for files."""
        layers = enumerate(zip(self.network.weights, self.network.biases, strict=True))
        named = {name: array for i, (w, b) in layers for name, array in ((f"W{i}", w), (f"b{i}", b))}
        return {**named, "mean": self.mean, "spread": self.spread, "returns": np.array([self.scale, self.offset])}

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> QFunction:
        """
        What :meth:`arrays` gave.

        :raises ValueError: if shapes do not fit together
        """
        weights, biases = ([arrays[f"{letter}{i}"] for i in range(3)] for letter in "Wb")
        for before, after, bias in zip([None, *weights], weights, biases, strict=False):
            if bias.shape != after.shape[:1] or (before is not None and after.shape[1:] != before.shape[:1]):
                raise ValueError(f"these arrays are no Q: {[w.shape for w in weights]} and {[b.shape for b in biases]}")
        network = Network(tuple(weights), tuple(biases), (TANH, TANH))
        return cls(network, arrays["mean"], arrays["spread"], *map(float, arrays["returns"]))


def standardise(states: Array, mean: Array, spread: Array) -> Array:
    """States ``(n, d)`` with mean 0 and spread 1, clipped to :data:`CLIP`, float32."""
    return np.clip((states - mean) / spread, -CLIP, CLIP).astype(np.float32)


@dataclass(frozen=True)
class Recipe:
    """
    How a Q is learned.

    :param q_eps: radius of the l_inf ball of actions, in standard deviations of the victim's actions; for categorical
        actions the probability that another choice is made
    :param reg: weight of the bound on how far Q changes in that ball
    :param gamma: discount
    :param updates: gradient steps
    :param legacy: the next row of a shuffled batch as the successor, as in the references: learns little but the reward
    """

    q_eps: float
    reg: float
    gamma: float
    updates: int
    legacy: bool


class QLearning:
    """
    Sarsa on a fixed set of the victim's transitions.

    :param data: the transitions
    :param nvec: number of choices of each categorical; empty for ``Box`` actions
    :param recipe: how
    :param seed: of the first weights and of the batches
    :raises NothingToLearnError: if rewards never differ and no episode terminates: any two actions would be worth the same
    """

    def __init__(self, data: Transitions, nvec: tuple[int, ...], recipe: Recipe, seed: int) -> None:
        self.recipe, self.nvec = recipe, nvec
        self.mean, self.spread = _moments(data.states)
        self.action_mean, self.action_spread = _moments(data.actions)
        self.rng = np.random.default_rng(seed)
        self.scale = float(data.returns(recipe.gamma).std())
        if not data.informative(recipe.gamma):
            raise NothingToLearnError(
                f"all {len(data.rewards)} transitions paid {data.rewards[0]} and no episode terminated, under MAD, too: every "
                "action is worth the same; give a longer budget or a larger eps"
            )
        self.offset = float(data.rewards.mean()) / (1.0 - recipe.gamma)
        self.n_states, self.n_actions = data.states.shape[1], data.actions.shape[1]
        sizes = (self.n_states, self.n_actions) if nvec else (self.n_states + self.n_actions, 1)
        with th.random.fork_rng(devices=[]):
            th.manual_seed(seed)
            self.body, self.target = _body(*sizes), _body(*sizes)
        self.target.load_state_dict(self.body.state_dict())
        self.optimizer = th.optim.Adam(self.body.parameters())
        self.inputs, self.actions = self._inputs(data.states, data.actions)
        self.next_inputs, self.next_actions = self._inputs(data.next_states, data.next_actions)
        self.rewards = th.as_tensor((data.rewards - data.rewards.mean()) / self.scale, dtype=th.float32)
        self.terminal = th.as_tensor(data.terminal)

    def update(self, done: float) -> None:
        """
        One step.

        :param done: share of the learning that is over, in [0, 1]
        """
        for group in self.optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1.0 - done) + _LAST_RATE
        rows = th.as_tensor(self.rng.integers(0, len(self.inputs), _BATCH))
        values = self.values(self.body, self.inputs[rows], self.actions[rows])
        loss = nn.functional.smooth_l1_loss(values, self._targets(rows))
        radius = self.recipe.q_eps * min(1.0, max(0.0, 3.0 * done - 1.0))  # grows over the middle third
        if radius > 0 and self.recipe.reg > 0:
            loss = loss + self.recipe.reg * self.change_bound(self.inputs[rows], self.actions[rows], radius).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with th.no_grad():
            for follower, leader in zip(self.target.parameters(), self.body.parameters(), strict=True):
                follower.lerp_(leader, _FOLLOW)

    def values(self, body: nn.Sequential, inputs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Q as the network has it, shape ``(n,)``."""
        outputs: th.Tensor = body(inputs)
        return (outputs * actions).sum(dim=1) if self.nvec else outputs[:, 0]

    def change_bound(self, inputs: th.Tensor, actions: th.Tensor, radius: float) -> th.Tensor:
        """
        An upper bound on ``|Q(s, a') - Q(s, a)|`` over the ball of ``a'`` around ``a``, shape ``(n,)``.

        Intervals for ``Box``. Exact for categoricals: in each group ``a'`` is another choice with probability ``radius``.
        """
        if self.nvec:
            return _mixing_bound(self.body(inputs), actions, self.nvec, radius)
        spread = th.zeros(inputs.shape[1])
        spread[self.n_states :] = radius
        return _interval_bound(self.body, inputs, spread)

    def function(self) -> QFunction:
        """Q as of now, its actions in the victim's units."""
        weights, biases = zip(
            *((_array(m.weight), _array(m.bias)) for m in self.body if isinstance(m, nn.Linear)), strict=True
        )
        if not self.nvec:
            columns = weights[0][:, self.n_states :]
            columns /= self.action_spread.astype(np.float32)
            biases[0][:] -= columns @ self.action_mean.astype(np.float32)
        network = Network(weights, biases, (TANH, TANH))
        return QFunction(network, self.mean, self.spread, self.scale, self.offset)

    def _targets(self, rows: th.Tensor) -> th.Tensor:
        with th.no_grad():
            if self.recipe.legacy:
                following = self.values(self.target, self.inputs[rows], self.actions[rows]).roll(-1)
            else:
                following = self.values(self.target, self.next_inputs[rows], self.next_actions[rows])
        # A return of 0 after termination, centred and scaled as all are.
        following = th.where(self.terminal[rows], th.tensor(-self.offset / self.scale), following)
        return self.rewards[rows] + self.recipe.gamma * following

    def _inputs(self, states: Array, actions: Array) -> tuple[th.Tensor, th.Tensor]:
        """What the network takes, and the actions."""
        inputs, acted = th.as_tensor(standardise(states, self.mean, self.spread)), th.as_tensor(actions, dtype=th.float32)
        if self.nvec:
            return inputs, acted
        scaled = (actions - self.action_mean) / self.action_spread
        return th.cat([inputs, th.as_tensor(scaled, dtype=th.float32)], dim=1), acted


def _moments(rows: Array) -> tuple[Array, Array]:
    """Mean and spread of each column; the spread of one that never varied is infinite, which leaves it out."""
    mean, spread = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    return mean, np.where(spread > 1e-6 * (1.0 + np.abs(mean)), spread, np.inf)


def _body(n_inputs: int, n_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, n_outputs)
    )


def _array(tensor: th.Tensor) -> Array:
    result: Array = tensor.detach().numpy().copy()
    return result


def _interval_bound(body: nn.Sequential, inputs: th.Tensor, spread: th.Tensor) -> th.Tensor:
    """How far a network's one output can get from that at ``inputs``, each input moving by its ``spread``, by intervals."""
    center, radius = inputs, spread.expand_as(inputs)
    for module in body:
        if isinstance(module, nn.Linear):
            center, radius = module(center), radius @ module.weight.abs().T
        else:
            low, high = module(center - radius), module(center + radius)
            center, radius = (high + low) / 2, (high - low) / 2
    return ((center - body(inputs)).abs() + radius)[:, 0]


def _mixing_bound(values: th.Tensor, actions: th.Tensor, nvec: tuple[int, ...], radius: float) -> th.Tensor:
    """``radius`` times the largest difference that other choices make."""
    parts = zip(values.split(nvec, dim=1), actions.split(nvec, dim=1), strict=True)
    changes = [value - (value * chosen).sum(dim=1, keepdim=True) for value, chosen in parts]
    high, low = (th.stack([pick(change, dim=1) for change in changes]).sum(dim=0) for pick in (th.amax, th.amin))
    return radius * th.maximum(high, -low)
