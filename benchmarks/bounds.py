"""
Speed of the bounds and of ``certify``, and agreement with an independent tool's bounds. Not a test: run it by hand.

    python benchmarks/bounds.py

Times are CPU time of one thread, medians of interleaved rounds. CROWN is also compared with :class:`PlainCrown`, CROWN as one
writes it first. Writes ``benchmarks/results/bounds.json``. The reference, ``../shared/victims/reference_bounds.npz``, holds
auto_LiRPA's bounds on published agents (``<net>/<norm>/eps<e>/<IBP|CROWN>/<lower|upper>``); without it that part is skipped,
and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy loads its BLAS

import gymnasium as gym
import numpy as np
import scipy
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_prune_robust.bounds import METHODS, Ball, output_interval
from sb3_prune_robust.bounds.crown import linear_change
from sb3_prune_robust.bounds.interval import interval_radius
from sb3_prune_robust.certificates import certify
from sb3_prune_robust.network import RELU, TANH, Activation, Array, Network

HERE = Path(__file__).resolve().parent
VICTIMS = HERE.parent.parent / "shared" / "victims"
N_STATES, N_INPUTS, EPS = 1024, 11, 0.05
# auto_LiRPA, milliseconds for such a network, as measured before on 2 cores (one thread); its release does not run on numpy 2.
AUTO_LIRPA = {"Tanh": (151.0, 161.0), "ReLU": (71.0, 104.0)}
TARGET_CROWN_TANH = 20_000


class PlainCrown:
    """CROWN on values as one writes it first: all states at once, a product for each state, bisection for tangents."""

    def __init__(self, network: Network, ball: Ball) -> None:
        self.network, self.ball = network, ball

    def __call__(self, states: Array) -> tuple[Array, Array]:
        lines: list[tuple[Array, Array, Array, Array]] = []
        for weight, bias, activation in zip(self.network.weights, self.network.biases, self.network.activations, strict=False):
            lower, upper = self.bounds(states, lines, weight, bias)
            lines.append(plain_relu(lower, upper) if activation is RELU else plain_tanh(lower, upper))
        return self.bounds(states, lines, self.network.weights[-1], self.network.biases[-1])

    def bounds(self, states: Array, lines: list[Any], weight: Array, bias: Array) -> tuple[Array, Array]:
        results = []
        for sign in (-1.0, 1.0):
            rows = np.repeat(sign * weight[None], len(states), axis=0)
            constant = np.repeat(sign * bias[None], len(states), axis=0)
            for layer in range(len(lines) - 1, -1, -1):
                low_slope, low, high_slope, high = lines[layer]
                negative, positive = np.minimum(rows, 0.0), np.maximum(rows, 0.0)
                constant = constant + np.einsum("nij,nj->ni", positive, high) + np.einsum("nij,nj->ni", negative, low)
                rows = positive * high_slope[:, None] + negative * low_slope[:, None]
                constant = constant + rows @ self.network.biases[layer]
                rows = rows @ self.network.weights[layer]
            results.append(sign * (np.einsum("nij,nj->ni", rows, states) + constant + np.abs(rows) @ self.ball.eps))
        return results[0], results[1]


def plain_relu(lower: Array, upper: Array) -> tuple[Array, Array, Array, Array]:
    crossing = (lower < 0) & (upper > 0)
    secant = np.where(crossing, upper / np.where(crossing, upper - lower, 1.0), upper > 0)
    below = np.where(crossing, upper > -lower, upper > 0).astype(np.float64)
    return below, np.zeros_like(below), secant, np.where(crossing, -secant * lower, 0.0)


def plain_tanh(lower: Array, upper: Array) -> tuple[Array, Array, Array, Array]:
    high_slope, high = plain_tanh_above(lower, upper)
    low_slope, low = plain_tanh_above(-upper, -lower)
    return low_slope, -low, high_slope, high


def plain_tanh_above(lower: Array, upper: Array) -> tuple[Array, Array]:
    secant = (np.tanh(upper) - np.tanh(lower)) / (upper - lower)
    is_secant = (upper <= 0) | ((lower < 0) & (secant < 1 - np.tanh(upper) ** 2))
    left, right = np.maximum(lower, 0.0), np.maximum(upper, 0.0)
    for _ in range(40):
        middle = 0.5 * (left + right)
        above = np.tanh(middle) + (1 - np.tanh(middle) ** 2) * (lower - middle) > np.tanh(lower)
        left, right = np.where(above, left, middle), np.where(above, middle, right)
    touch = np.maximum(right, 0.5 * (lower + upper))
    slope = np.where(is_secant, secant, 1 - np.tanh(touch) ** 2)
    return slope, np.where(is_secant, np.tanh(lower) - slope * lower, np.tanh(touch) - slope * touch)


def hopper_sized_policy() -> ActorCriticPolicy:
    th.manual_seed(0)
    box = spaces.Box(-np.inf, np.inf, (N_INPUTS,), dtype=np.float32)
    return ActorCriticPolicy(box, spaces.Box(-1.0, 1.0, (3,)), lambda _: 1e-3, activation_fn=th.nn.Tanh, ortho_init=False)


def interleaved(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Medians of CPU time, all functions in turn; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    return {name: {"milliseconds": 1e3 * m, "states_per_second": N_STATES / m} for name, m in medians.items()}


def random_network(activation: Activation) -> Network:
    rng = np.random.default_rng(0)
    shapes = [(64, N_INPUTS), (64, 64), (3, 64)]
    weights = tuple(rng.normal(size=shape) / np.sqrt(shape[1]) for shape in shapes)
    return Network(weights, tuple(0.1 * rng.normal(size=shape[0]) for shape in shapes), (activation, activation))


def bound_speeds(repeats: int) -> dict[str, dict[str, float]]:
    """Bounds alone, on a 64x64 network, ours and plain ones."""
    states = np.random.default_rng(1).normal(size=(N_STATES, N_INPUTS))
    ball, functions = Ball.create(EPS, "linf", (N_INPUTS,)), {}
    for activation in (TANH, RELU):
        network = random_network(activation)
        plain = PlainCrown(network, ball)
        check_plain(network, states[:64], ball, plain)
        functions[f"interval {activation.name}"] = lambda n=network: interval_radius(n, states, ball)
        functions[f"CROWN {activation.name}"] = lambda n=network: linear_change(n, states, ball, np.eye(3)).bounds(ball)
        functions[f"plain CROWN {activation.name}"] = lambda p=plain: p(states)
    return interleaved(functions, repeats)


def check_plain(network: Network, states: Array, ball: Ball, plain: PlainCrown) -> None:
    """Same bounds, or the comparison of times means nothing."""
    below, above = linear_change(network, states, ball, np.eye(3)).bounds(ball)
    lower, upper = plain(states)
    widest = (upper - lower).max()
    assert np.abs(below + network(states) - lower).max() <= 1e-3 * widest, "plain CROWN differs"
    assert np.abs(above + network(states) - upper).max() <= 1e-3 * widest, "plain CROWN differs"


def certify_speeds(repeats: int) -> dict[str, dict[str, float]]:
    """``certify`` of a policy, checks and float32 margins included."""
    policy = hopper_sized_policy()
    observations = np.random.default_rng(0).normal(size=(N_STATES, N_INPUTS)).astype(np.float32)
    return interleaved(
        {m: lambda m=m: certify(policy, observations, eps=EPS, method=m) for m in (*METHODS, "alpha", "best")}, repeats
    )


def read_network(name: str, reference: Any) -> Network:
    source = reference if name == "relu" else np.load(VICTIMS / f"{name}.npz")
    prefix = "relu/" if name == "relu" else ""
    weights = tuple(source[f"{prefix}W{i}"].astype(np.float64) for i in range(3))
    biases = tuple(source[f"{prefix}b{i}"].astype(np.float64) for i in range(3))
    return Network(weights, biases, ((RELU if name == "relu" else TANH),) * 2)


def reference_differences() -> dict[str, dict[str, Any]] | None:
    """Ours against the reference's: intervals and ReLU within 1e-5, CROWN of tanh looser by at most 1e-3 of the width."""
    path = VICTIMS / "reference_bounds.npz"
    if not path.exists():
        print(f"skipped: no reference bounds at {path}")
        return None
    reference = np.load(path)
    return {key.removesuffix("/lower"): compare(reference, key) for key in reference if key.endswith("/lower")}


def compare(reference: Any, key: str) -> dict[str, Any]:
    name, norm, eps, kind, _ = key.split("/")
    network, states = read_network(name, reference), reference[f"{name}/states"].astype(np.float64)
    ball = Ball.create(float(eps[3:]), norm, (states.shape[1],))
    if kind == "IBP":
        lower, upper = output_interval(network, states, ball)
    else:
        below, above = linear_change(network, states, ball, np.eye(network.n_outputs)).bounds(ball)
        lower, upper = network(states) + below, network(states) + above
    theirs = reference[key], reference[key.replace("lower", "upper")]
    width = theirs[1] - theirs[0]
    looser = float((np.maximum(theirs[0] - lower, upper - theirs[1]) / width).max())
    largest = float(max(np.abs(lower - theirs[0]).max(), np.abs(upper - theirs[1]).max()))
    agrees = largest <= 1e-5 if kind == "IBP" or name == "relu" else looser <= 1e-3
    return {
        "largest_difference": largest,
        "looser_share_of_width": looser,
        "mean_width": float(width.mean()),
        "mean_width_ratio": float((upper - lower).mean() / width.mean()),
        "agrees": bool(agrees),
    }


def print_speeds(speeds: dict[str, dict[str, float]]) -> None:
    for name, row in speeds.items():
        print(f"  {name:18s} {row['milliseconds']:8.2f} ms   {row['states_per_second']:12,.0f} states/s")


def print_ratios(speeds: dict[str, dict[str, float]]) -> dict[str, float]:
    ratios = {}
    for name, (low, high) in AUTO_LIRPA.items():
        ours = speeds[f"CROWN {name}"]["milliseconds"]
        ratios[name] = speeds[f"plain CROWN {name}"]["milliseconds"] / ours
        print(
            f"  CROWN {name}: {ratios[name]:.1f}x of plain CROWN; auto_LiRPA took {low:.0f}-{high:.0f} ms on another machine"
        )
    reached = speeds["CROWN Tanh"]["states_per_second"]
    print(f"  CROWN Tanh target {TARGET_CROWN_TANH:,} states/s: {'reached' if reached >= TARGET_CROWN_TANH else 'MISSED'}")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="rounds of each measurement")
    repeats = parser.parse_args().repeats
    th.set_num_threads(1)
    record: dict[str, Any] = {"n_states": N_STATES, "n_inputs": N_INPUTS, "hidden": [64, 64], "eps": EPS}
    record["load_average"] = os.getloadavg()  # above the number of cores: run it again on a quieter machine
    modules = {m.__name__: m.__version__ for m in (np, scipy, th, sb3, gym)}
    record["versions"] = modules | {"python": platform.python_version()}
    print(f"bounds of {N_STATES} states, {N_INPUTS} inputs, 64x64, one thread:")
    record["speeds"] = bound_speeds(repeats)
    print_speeds(record["speeds"])
    record["speedup_over_plain_crown"] = print_ratios(record["speeds"])
    print("certify:")
    record["certify"] = certify_speeds(max(3, repeats // 5))
    print_speeds(record["certify"])
    record["reference"] = reference_differences()
    for key, row in (record["reference"] or {}).items():
        verdict = "ok" if row["agrees"] else "DIFFERS"
        figures = f"difference {row['largest_difference']:.1e}, looser {row['looser_share_of_width']:8.1e} of the width"
        print(f"{key:38s} {figures}, width {row['mean_width_ratio']:.4f} of theirs  {verdict}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "bounds.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
