"""
An activation between two lines over an interval: the linear relaxation that CROWN propagates.

Zhang et al. 2018 (arXiv 1811.00866). Lines are written for CHANGES from a centre ``z``: over ``x`` in ``[lower, upper]``,

    lower_slope (x - z) + lower_offset  <=  phi(x) - phi(z)  <=  upper_slope (x - z) + upper_offset

and kept as mean and half difference, upper = mean + half, as CROWN adds them up that way. ``half`` may be negative. A slope
need not be exact: whatever it is, the offsets are moved outward until the lines hold, rounding included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sb3_prune_robust.bounds.ball import UNIT_ROUNDOFF
from sb3_prune_robust.network import Activation, Array

# Rounding of the functions and of the dozen operations around them, in units of last place of what goes into a line.
_LINE_ERROR = 64.0
# Intervals narrower than this share of their ends' size: a secant's slope would be made of rounding.
_NARROW = 1e-9
_NEWTON_STEPS = 4
_GRID = 8


@dataclass(frozen=True)
class Interval:
    """
    Where a layer's pre-activations are.

    :param lower: lower ends, shape ``(n, width)``
    :param upper: upper ends
    :param centre: pre-activations at the unperturbed observation, up to ``uncertainty``
    :param uncertainty: bound on the rounding error of ``centre``
    """

    lower: Array
    upper: Array
    centre: Array
    uncertainty: Array


@dataclass(frozen=True)
class Lines:
    """
    A lower and an upper line for each neuron, each array of shape ``(n, width)``; upper is mean plus half.

    :param slope: mean of the two slopes
    :param slope_half: half of upper minus lower slope
    :param offset: mean of the two offsets at the centre
    :param offset_half: half of upper minus lower offset
    """

    slope: Array
    slope_half: Array
    offset: Array
    offset_half: Array

    @property
    def lower(self) -> tuple[Array, Array]:
        """Slope and offset of the lower lines."""
        return self.slope - self.slope_half, self.offset - self.offset_half

    @property
    def upper(self) -> tuple[Array, Array]:
        """Slope and offset of the upper lines."""
        return self.slope + self.slope_half, self.offset + self.offset_half


Line = tuple[Array, Array]  # slope, and height above phi(centre) at the centre


def relax(activation: Activation, interval: Interval) -> Lines:
    """
    The lines that CROWN uses.

    :param activation: the activation
    :param interval: where its inputs are
    :return: the lines
    """
    rule = _RULES.get(activation.name, _parallel)
    return _outward(activation, interval, *rule(activation, interval, 1)[0])


def candidates(activation: Activation, interval: Interval) -> list[Lines]:
    """
    Several pairs of lines, that of :func:`relax` first: any convex combination of lower (of upper) lines is one again.

    :param activation: the activation
    :param interval: where its inputs are
    :return: the lines
    """
    rule = _RULES.get(activation.name, _parallel)
    return [_outward(activation, interval, lower, upper) for lower, upper in rule(activation, interval, 3)]


def _outward(activation: Activation, interval: Interval, lower: Line, upper: Line) -> Lines:
    """
    Rounding, and the centre's uncertainty: a line computed at ``z`` in place of ``z*`` is off by at most ``2 l |z - z*|``.

    All that goes into a line is a value of phi between ``lower`` and ``upper``, at most ``|phi(0)| + l |x|``, or a slope of at
    most ``l`` times a difference of such ``x``.
    """
    size = np.maximum(np.abs(interval.lower), np.abs(interval.upper))
    zero = abs(float(activation.function(np.zeros(1))[0]))
    error = _LINE_ERROR * UNIT_ROUNDOFF * (zero + 4.0 * activation.lipschitz * size)
    error = error + 2.0 * activation.lipschitz * interval.uncertainty
    (low_slope, low), (high_slope, high) = lower, upper
    return Lines(
        0.5 * (high_slope + low_slope), 0.5 * (high_slope - low_slope), 0.5 * (high + low), 0.5 * (high - low) + error
    )


def _secant(lower: Array, upper: Array, low: Array, high: Array, slope_inside: Array) -> Array:
    """The slope between the ends; a slope from inside where the interval is too narrow for one."""
    width = upper - lower
    narrow = width <= _NARROW * (1.0 + np.abs(lower) + np.abs(upper))
    return np.where(narrow, slope_inside, (high - low) / np.where(narrow, 1.0, width))


def _tanh(activation: Activation, interval: Interval, n: int, scale: float = 1.0) -> list[tuple[Line, Line]]:
    """
    Tanh (of ``scale x``) rises convexly up to 0 and concavely after it; the lower line is the mirrored interval's upper one.
    """
    lower, upper, centre = scale * interval.lower, scale * interval.upper, scale * interval.centre
    low, high, middle = np.tanh(lower), np.tanh(upper), np.tanh(centre)
    above = _tanh_above(lower, upper, centre, low, high, middle, n)
    below = _tanh_above(-upper, -lower, -centre, -high, -low, -middle, n)
    return [((scale * s, -t), (scale * S, T)) for (s, t), (S, T) in zip(below, above, strict=True)]


def _tanh_above(lower: Array, upper: Array, centre: Array, low: Array, high: Array, middle: Array, n: int) -> list[Line]:
    """
    Upper lines: the secant where it is one, else tangents at the first ``n`` of ``max(d*, midpoint)``, ``d*``, ``upper``.

    A tangent at any ``d >= 0`` lies above the concave part; above the convex part too if it does at ``lower``, and it is
    raised until it does. So ``d*``, the tangent through ``lower``, need not be exact.
    """
    half = 0.5 * (lower + upper)
    slope_upper = 1.0 - high * high
    secant = _secant(lower, upper, low, high, slope_upper)
    # Strictly less: the secant lies above a convex-concave function if it does so just below `upper`.
    is_secant = (upper <= 0.0) | ((lower < 0.0) & (secant < slope_upper * (1.0 - 1e-9)))
    nearest = np.maximum(lower, 0.0)
    crossing = np.flatnonzero((lower < 0.0) & (upper > 0.0) & ~is_secant)
    nearest.flat[crossing] = _tangent_point(lower.flat[crossing], upper.flat[crossing], low.flat[crossing])
    touch = [np.maximum(nearest, half), nearest, upper][:n]
    return [_tangent_or_secant(d, secant, is_secant, lower, centre, low, middle) for d in touch]


def _tangent_or_secant(
    d: Array, secant: Array, is_secant: Array, lower: Array, centre: Array, low: Array, middle: Array
) -> Line:
    value = np.tanh(d)
    slope = np.where(is_secant, secant, 1.0 - value * value)
    at_lower = value + slope * (lower - d)
    # The secant starts at `lower` itself; where the interval is narrow it is a tangent at `upper` and must be raised as well.
    height = np.where(is_secant, low, np.maximum(at_lower, low))
    return slope, height - middle + slope * (centre - lower)


def _tangent_point(lower: Array, upper: Array, low: Array) -> Array:
    """``d*`` in ``[0, upper]`` with ``tanh(d) + tanh'(d) (lower - d) = tanh(lower)``, about: guarded Newton steps."""
    d = np.minimum(np.minimum(-0.5 * lower, 0.5 * np.log(2.0 * (2.0 - lower))), upper)
    for _ in range(_NEWTON_STEPS):
        value = np.tanh(d)
        slope = 1.0 - value * value
        residual = value + slope * (lower - d) - low
        change = -2.0 * value * slope * (lower - d)
        d = np.clip(d - residual / np.maximum(change, 1e-12), 0.0, upper)
    return d


def _sigmoid(activation: Activation, interval: Interval, n: int) -> list[tuple[Line, Line]]:
    """``sigma(x) = (1 + tanh(x / 2)) / 2``."""
    pairs = _tanh(activation, interval, n, scale=0.5)
    return [((0.5 * s, 0.5 * t), (0.5 * S, 0.5 * T)) for (s, t), (S, T) in pairs]


def _two_pieces(activation: Activation, interval: Interval, n: int) -> list[tuple[Line, Line]]:
    """
    ReLU and LeakyReLU of slope at most 1, ``max(x, slope x)``: the secant above; below, the line of the longer side.

    The other lower line, of the shorter side, is a second candidate.
    """
    leak = -float(activation.function(np.array([-1.0]))[0])
    if leak > 1.0:
        return _parallel(activation, interval, n)
    lower, upper, centre = interval.lower, interval.upper, interval.centre
    middle = activation.function(centre)
    crossing = (lower < 0.0) & (upper > 0.0)
    width = np.where(crossing, upper - lower, 1.0)
    one_side = np.where(upper <= 0.0, leak, 1.0)
    secant = np.where(crossing, (upper - leak * lower) / width, one_side)
    above = secant, np.where(crossing, upper + secant * (centre - upper) - middle, 0.0)
    pairs = []
    for right in (upper > -lower, upper <= -lower)[:n]:
        slope = np.where(crossing, np.where(right, 1.0, leak), one_side)
        pairs.append(((slope, np.where(crossing, slope * centre - middle, 0.0)), above))
    return pairs


def _parallel(activation: Activation, interval: Interval, n: int) -> list[tuple[Line, Line]]:
    """
    Any other activation: two parallel lines, with the secant's slope, that at the centre, or flat.

    Between two points of a grid a function is within ``|f''| h^2 / 8`` of its chord, and within ``l h / 2``, so the extremes
    of ``phi(x) - s x`` on the grid are those of the interval but for that; kinks are points of the grid.
    """
    lower, upper, centre = interval.lower, interval.upper, interval.centre
    low, high, middle = (activation.function(x) for x in (lower, upper, centre))
    inside = activation.derivative(centre, middle)
    ends = [lower, *(np.clip(kink, lower, upper) for kink in activation.kinks), upper]
    slopes = [_secant(lower, upper, low, high, inside), inside, np.zeros_like(inside)][:n]
    return [_parallel_pair(activation, slope, ends, centre, middle) for slope in slopes]


def _parallel_pair(
    activation: Activation, slope: Array, ends: Sequence[Array], centre: Array, middle: Array
) -> tuple[Line, Line]:
    below, above = np.full_like(slope, np.inf), np.full_like(slope, -np.inf)
    for start, end in pairwise(ends):
        step = (end - start) / _GRID
        slack = np.minimum(activation.curvature / 8.0 * np.square(step), 0.5 * activation.lipschitz * step)
        for share in np.linspace(0.0, 1.0, _GRID + 1):
            x = np.clip(start + share * (end - start), start, end)
            height = activation.function(x) - middle - slope * (x - centre)
            below, above = np.minimum(below, height - slack), np.maximum(above, height + slack)
    return (slope, below), (slope, above)


# activation, where its inputs are, number of pairs of lines wanted (at most): pairs of a lower and an upper line
_RULES: dict[str, Callable[[Activation, Interval, int], list[tuple[Line, Line]]]] = {
    "Tanh": _tanh,
    "Sigmoid": _sigmoid,
    "ReLU": _two_pieces,
    "LeakyReLU": _two_pieces,
}
