"""Soundness by attack: no point of a ball exceeds a bound. Not a test: run it by hand, some three minutes on one core.

    python benchmarks/soundness.py

At least ten million points - random ones, corners, every iterate of projected gradient ascent, the points that branch and
bound finds - on random, trained and pruned networks, and on published victims where ``../shared/victims`` is at hand. Checked
are the change of each output, ``delta`` or ``omega``, and the lead of the greedy choice. Writes
``benchmarks/results/soundness.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy loads its BLAS

import gymnasium as gym
import numpy as np
import scipy
import stable_baselines3 as sb3
import torch as th
from stable_baselines3 import PPO
from torch import nn
from tqdm import tqdm

from sb3_prune_robust.bounds import METHODS, NORMS, ActionChange, Ball
from sb3_prune_robust.bounds.action import groups, inverse_std
from sb3_prune_robust.bounds.exact import exact_change
from sb3_prune_robust.bounds.local import alpha_change
from sb3_prune_robust.evaluation import pruned_copies
from sb3_prune_robust.network import TANH, ActionNetwork, Array, action_network, activation_of

HERE = Path(__file__).resolve().parent
VICTIMS = HERE.parent.parent / "shared" / "victims"
BOUNDS = {**METHODS, "alpha": alpha_change}
EPS = (0.003, 0.03, 0.1, 0.4)
N_STATES, STARTS, STEPS, N_RANDOM = 16, 128, 16, 200
SPARSITIES = (0.5, 0.8, 0.95)
ACTIVATIONS: dict[str, nn.Module] = {
    **{type(m).__name__: m for m in (nn.Tanh(), nn.ReLU(), nn.Sigmoid(), nn.Softplus(), nn.ELU(), nn.SELU(), nn.GELU())},
    **{type(m).__name__: m for m in (nn.SiLU(), nn.Mish(), nn.Hardswish())},
    **{f"LeakyReLU({slope})": nn.LeakyReLU(slope) for slope in (0.1, -0.4, 2.0)},
}
# The points are rounded, and so is the network at them: this share of the outputs' size is no violation.
ROUNDING = 1e-12


@dataclass
class Tally:
    """What was checked of one bound: ratios of the largest attacked to the bounded quantity, and violations."""

    checks: int = 0
    violations: int = 0
    ratios: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, reached: Array, bound: Array, slack: Array) -> None:
        finite = np.isfinite(bound) & (bound > 1e3 * slack)
        self.checks += bound.size
        self.violations += int(np.sum(~(reached <= bound + slack)))
        ratio = float(np.max(np.where(finite, reached / np.where(finite, bound, 1.0), 0.0)))
        self.ratios[name] = max(self.ratios.get(name, 0.0), ratio)


def random_subjects() -> Iterator[tuple[str, ActionNetwork, Array]]:
    """One network for each activation and kind of policy; every other one with four weights of five at zero."""
    for a, (name, module) in enumerate(ACTIVATIONS.items()):
        for k, nvec in enumerate(((), (4,), (3, 1, 2))):
            rng = np.random.default_rng(10 * a + k)
            widths = [4, *[(24,), (16, 16), (12, 12, 12)][(a + k) % 3], sum(nvec) or 3]
            shapes = list(zip(widths[1:], widths[:-1], strict=True))
            scale = rng.choice([0.5, 1.0, 2.0])
            weights = [scale * rng.normal(size=shape) / np.sqrt(shape[1]) for shape in shapes]
            pruned = bool((a + k) % 2)
            weights = [np.where(rng.random(w.shape) < 0.8 * pruned, 0.0, w) for w in weights]
            biases = tuple(rng.normal(size=width) for width in widths[1:])
            std = None if nvec else np.exp(rng.normal(size=widths[-1]))
            activations = (activation_of(module),) * (len(weights) - 1)
            network = ActionNetwork(tuple(weights), biases, activations, std, nvec)
            yield f"random/{name}/{nvec or 'gaussian'}{'/pruned' if pruned else ''}", network, rng.normal(size=(N_STATES, 4))


def trained_subjects() -> Iterator[tuple[str, ActionNetwork, Array]]:
    """PPO for seconds, and pruned copies, at the last states it saw."""
    for env_id, module in (("InvertedPendulum-v5", nn.Tanh), ("CartPole-v1", nn.Tanh), ("CartPole-v1", nn.ReLU)):
        kwargs: dict[str, Any] = dict(activation_fn=module)
        model = PPO("MlpPolicy", env_id, n_steps=512, batch_size=128, seed=0, device="cpu", policy_kwargs=kwargs)
        model.learn(4096)
        states = model.rollout_buffer.observations.reshape(-1, 4)[:: 512 // N_STATES].astype(np.float64)
        for sparsity, policy in pruned_copies(model, SPARSITIES).items():
            yield f"{env_id}/{module.__name__}/sparsity {sparsity:g}", action_network(policy).astype(np.float64), states


def victim_subjects() -> Iterator[tuple[str, ActionNetwork, Array]]:
    reference = VICTIMS / "reference_bounds.npz"
    if not reference.exists():
        print(f"skipped: no published victims at {VICTIMS}")
        return
    states = np.load(reference)
    for path in sorted(VICTIMS.glob("*_*ppo.npz")):
        data = np.load(path)
        weights, biases = ([data[f"{letter}{i}"].astype(np.float64) for i in range(3)] for letter in "Wb")
        std = np.exp(data["log_std"].astype(np.float64)).ravel()
        for share in (0.0, 0.8):
            kept = [np.where(np.abs(w) < np.quantile(np.abs(w), share), 0.0, w) for w in weights]
            network = ActionNetwork(tuple(kept), tuple(biases), (TANH, TANH), std)
            yield f"{path.stem}/sparsity {share:g}", network, states[f"{path.stem}/states"][:N_STATES].astype(np.float64)


def project(ball: Ball, unit: Array) -> Array:
    if ball.norm == "linf":
        return np.clip(unit, -1.0, 1.0)
    return unit / np.maximum(np.linalg.norm(unit, axis=-1, keepdims=True), 1.0)


def forward(network: ActionNetwork, points: Array) -> tuple[Array, list[Array]]:
    """Outputs and the activations' derivatives."""
    slopes, hidden = [], points
    for weight, bias, activation in zip(network.weights, network.biases, network.activations, strict=False):
        z = hidden @ weight.T + bias
        hidden = activation.function(z)
        slopes.append(activation.derivative(z, hidden))
    return hidden @ network.weights[-1].T + network.biases[-1], slopes


def gradient(network: ActionNetwork, slopes: list[Array], direction: Array) -> Array:
    back = direction @ network.weights[-1]
    for slope, weight in zip(reversed(slopes), reversed(network.weights[:-1]), strict=True):
        back = (back * slope) @ weight
    return back


def attack(network: ActionNetwork, states: Array, ball: Ball, rng: Any) -> Iterator[tuple[Array, Array]]:
    """Points and outputs, each of shape ``(n, k, ...)``."""
    n, d = states.shape
    unit = rng.normal(size=(n, N_RANDOM, d))
    unit[:, ::2] = np.sign(unit[:, ::2]) if ball.norm == "linf" else 9.0 * unit[:, ::2]
    unit[:, ::4] *= rng.random((n, unit[:, ::4].shape[1], 1))
    points = states[:, None] + project(ball, unit) * ball.eps
    yield points, network(points)
    clean = network(states)[:, None]
    scale = inverse_std(network) if network.is_gaussian else np.ones(network.n_outputs)
    unit = project(ball, rng.normal(size=(n, STARTS, d)))
    fixed = directions(network, n, rng)
    for step in range(STEPS):
        points = states[:, None] + unit * ball.eps
        outputs, slopes = forward(network, points)
        yield points, outputs
        change = (outputs - clean) * scale**2
        joint = np.arange(STARTS)[None, :, None] % 2 == 0
        ascent = gradient(network, slopes, np.where(joint & network.is_gaussian, change, fixed)) * ball.eps
        if ball.norm == "linf":
            unit = project(ball, unit + (0.6 if step < STEPS // 2 else 0.1) * np.sign(ascent))
        else:
            unit = project(ball, unit + 0.5 * ascent / (np.linalg.norm(ascent, axis=-1, keepdims=True) + 1e-300))


def directions(network: ActionNetwork, n: int, rng: Any) -> Array:
    """Single outputs and differences of two of one categorical, both ways."""
    identity = np.eye(network.n_outputs)
    rows = [identity]
    for group in groups(network):
        own = identity[group]
        rows.append((own[:, None] - own[None]).reshape(-1, network.n_outputs))
    table = np.concatenate(rows)
    table = np.concatenate([table, -table])[np.abs(np.concatenate([table, table])).sum(axis=1) > 0]
    return table[rng.integers(len(table), size=(n, STARTS))]


def distances(network: ActionNetwork, change: Array) -> Array:
    if network.is_gaussian:
        return np.linalg.norm(change / network.std, axis=-1)[..., None]
    return np.stack([np.ptp(change[..., group], axis=-1) for group in groups(network)], axis=-1)


def losses_of_lead(network: ActionNetwork, clean: Array, outputs: Array) -> tuple[Array, Array]:
    """The lead of the greedy choices at the states, ``(n, n_groups)``, and the least lead at the points."""
    leads = []
    for values in (clean, outputs):
        columns = []
        for group in groups(network):
            top = clean[..., group].argmax(axis=-1)[..., None] + np.zeros((*values.shape[:-1], 1), dtype=int)
            others = values[..., group].copy()
            np.put_along_axis(others, top, -np.inf, axis=-1)
            columns.append(np.take_along_axis(values[..., group], top, axis=-1)[..., 0] - others.max(axis=-1))
        leads.append(np.stack(columns, axis=-1).min(axis=1))
    return leads[0], leads[1]


def check(network: ActionNetwork, states: Array, ball: Ball, tallies: dict[str, Tally], rng: Any) -> int:
    """Attack the states, compare the worst of all points with every bound; the number of points."""
    clean = network(states)[:, None]
    radius, distance, lead, size, n_points = 0.0, 0.0, np.inf, 1.0, 0
    for points, outputs in attack(network, states, ball, rng):
        change = outputs - clean
        radius = np.maximum(radius, np.abs(change).max(axis=1))
        distance = np.maximum(distance, distances(network, change).max(axis=1))
        if not network.is_gaussian:
            lead = np.minimum(lead, losses_of_lead(network, clean, outputs)[1])
        size = np.maximum(size, np.abs(outputs).max())
        n_points += points.shape[0] * points.shape[1]
    slack = np.asarray(ROUNDING * size)
    whitened = slack * (np.linalg.norm(1.0 / network.std) if network.std is not None else 2.0)
    clean_lead = None if network.is_gaussian else losses_of_lead(network, clean, clean)[0]
    for name, bound in BOUNDS.items():
        result = bound(network, states, ball)
        compare(tallies[name], result, (radius, distance, lead), clean_lead, (slack, whitened))
    return n_points


def compare(tally: Tally, bound: ActionChange, reached: tuple[Any, Any, Any], clean_lead: Any, slack: tuple[Any, Any]) -> None:
    tally.add("radius", reached[0], bound.radius, slack[0])
    tally.add("distance", reached[1], bound.distance, slack[1])
    if bound.margin is not None:
        several = np.isfinite(clean_lead)  # a categorical of one choice has no lead to lose
        tally.add("margin", clean_lead[several] - reached[2][several], clean_lead[several] - bound.margin[several], slack[1])


def branch_and_bound(subjects: list[tuple[str, ActionNetwork, Array]], tallies: dict[str, Tally]) -> int:
    """The largest of the points that branch and bound tries (two for each box) against every bound."""
    n_points = 0
    for _, network, states in tqdm(subjects, desc="branch and bound", mininterval=5):
        for norm in NORMS:
            ball = Ball.create(0.2, norm, (network.n_inputs,))
            found = exact_change(network, states[0], ball, tolerance=0.05, max_boxes=4000)
            n_points += 2 * found.n_boxes
            for name, bound in {**BOUNDS, "exact.upper": None}.items():
                limit = found.upper if bound is None else bound(network, states[:1], ball).distance.max()
                tallies.setdefault(name, Tally()).add(
                    "distance", np.array([found.lower]), np.array([limit]), np.array([ROUNDING * (1 + found.lower)])
                )
    return n_points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "soundness.json", help="where the record goes")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    start, tallies = time.perf_counter(), {name: Tally() for name in BOUNDS}
    subjects = [*random_subjects(), *trained_subjects(), *victim_subjects()]
    configurations = [(subject, norm, eps) for subject in subjects for norm in NORMS for eps in EPS]
    rng, n_points = np.random.default_rng(0), 0
    for (name, network, states), norm, eps in tqdm(configurations, desc="attacks", mininterval=5):
        before = sum(tally.violations for tally in tallies.values())
        n_points += check(network, states, Ball.create(eps, norm, (network.n_inputs,)), tallies, rng)
        if sum(tally.violations for tally in tallies.values()) > before:
            print(f"VIOLATION: {name}, {norm}, eps {eps}")
    n_exact = branch_and_bound([s for s in subjects if s[1].n_inputs <= 4][::4], tallies)
    report(arguments.output, tallies, n_points, n_exact, len(subjects), time.perf_counter() - start)


def report(path: Path, tallies: dict[str, Tally], n_points: int, n_exact: int, n_subjects: int, seconds: float) -> None:
    print(f"{n_points:,} attacked points and {n_exact:,} of branch and bound, {n_subjects} networks, {seconds:.0f} s")
    print("largest attacked / bounded, at most 1:")
    print(f"{'bound':12s} {'output':>9s} {'joint':>9s} {'lead':>9s} {'checks':>9s} {'violations':>10s}")
    for name, t in tallies.items():
        columns = (t.ratios.get(quantity) for quantity in ("radius", "distance", "margin"))
        ratios = " ".join(" " * 8 + "-" if ratio is None else f"{ratio:9.6f}" for ratio in columns)
        print(f"{name:12s} {ratios} {t.checks:9,d} {t.violations:10d}")
    modules = {m.__name__: m.__version__ for m in (np, scipy, th, sb3, gym)}
    record = {
        "points": n_points,
        "branch_and_bound_points": n_exact,
        "networks": n_subjects,
        "seconds": round(seconds),
        "versions": modules | {"python": platform.python_version()},
        "bounds": {n: dict(checks=t.checks, violations=t.violations, largest_ratio=t.ratios) for n, t in tallies.items()},
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
