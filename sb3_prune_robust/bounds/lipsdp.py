"""
Bound L, LipSDP: global, tighter than the product of spectral norms, and NOT monotone under pruning.

Fazlyab et al. 2019 (arXiv 1906.04893), with one multiplier per neuron: multipliers that couple neurons are unsound (Pauli et
al. 2021, arXiv 2005.02929). Let ``x`` be a change of the input and ``z_i = W_i h_(i-1)``, ``h_i`` the changes it makes before
and after activation ``i``, ``h_0 = x``. An activation with slopes in ``[a, b]`` makes ``(h_i - a z_i)(b z_i - h_i) >= 0``
elementwise, so that for any ``T_i >= 0``, diagonal, ``||C h_(L-1)||^2 <= x^T G x`` for all ``x`` if the quadratic form

``x^T G x - ||C h_(L-1)||^2 - sum_i [(a + b) z_i^T T_i h_i - h_i^T T_i h_i - a b z_i^T T_i z_i]``

is positive semidefinite in ``(x, h_1, ..., h_(L-1))``. Minimising it over ``h_(L-1)``, then ``h_(L-2)``, ... leaves the
smallest ``G = Q_0`` for given ``T``: ``Q_(L-1) = C^T C`` and, with ``m = (a + b) / 2``, while ``T_i - Q_i > 0``,

``Q_(i-1) = W_i^T (m^2 T_i (T_i - Q_i)^-1 T_i - a b T_i) W_i``.

At ``T_i = ||Q_i|| (1 + |m| / r) I``, ``r = (b - a) / 2``, this is at most ``(|m| + r)^2 ||Q_i|| W_i^T W_i``: the product of
spectral norms, from where ``log T`` is improved. Whatever ``T`` comes out of that, :func:`_certified` proves the form positive
semidefinite in spite of rounding, and only ``T`` and ``G`` that passed are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve, cholesky, eigh, solve_triangular

from sb3_prune_robust.bounds.ball import Ball, rounding_margin
from sb3_prune_robust.bounds.box import box_multipliers, box_norm_bound, box_quadratic_bound
from sb3_prune_robust.bounds.minimise import Objective, minimised
from sb3_prune_robust.bounds.spectral import spectral_norm
from sb3_prune_robust.network import Activation, Array, Network

# (power, iterations): the largest eigenvalue is smoothed to the power mean of all of them, less and less.
_SCHEDULE = ((8.0, 25), (64.0, 35), (512.0, 25))
# For a part, starting from the multipliers of the whole.
_REFINEMENT = ((32.0, 25), (512.0, 25))
# What the iterations may cost, in units of :attr:`_Problem.work`: about half a second for the whole, a tenth for all parts.
_BUDGET, _PARTS_BUDGET = 8e9, 2e9
# With more inputs than these, matrices of their number squared are not worth it, and only some eigenvalues are computed.
_MAX_INPUTS, _MAX_ALL_EIGENVALUES, _EIGENVALUES = 2000, 128, 32
# Slopes of f(x) = x p(x) with p(x) + p(-x) = 1: f'(x) + f'(-x) = 1, so the smallest is one less the largest.
_REFLECTED = ("GELU", "SiLU", "Hardswish")
_MISH_SLOPE = -0.1136
# Slope ranges [-b, b] and [b, b] make the recursion's optimum lie on the edge of its domain; they are widened by this share.
_WIDENED = 2e-3

Schedule = Sequence[tuple[float, int]]
Response = Callable[[Array], Array]


def slope_range(activation: Activation) -> tuple[float, float]:
    """
    An interval that holds all slopes ``(f(x) - f(y)) / (x - y)`` of an activation.

    :param activation: the activation
    :return: lower and upper end
    """
    slope = activation.lipschitz
    if activation.name == "LeakyReLU":
        negative = -float(activation.function(np.array(-1.0)))
        return min(negative, 1.0), max(negative, 1.0)
    if activation.name in _REFLECTED:
        return 1.0 - slope, slope
    if activation.name == "Mish":
        return _MISH_SLOPE, slope
    return (-slope if np.isfinite(activation.argmin) else 0.0), slope


def _widened(low: float, high: float) -> tuple[float, float]:
    size = max(abs(low), abs(high)) * _WIDENED
    if high - low < size:
        return low - size, high
    return (low, high + size) if abs(low + high) < size else (low, high)


@dataclass(frozen=True)
class _Problem:
    """
    Bound ``||C h||`` over changes ``x`` in a unit ball.

    :param weights: of the hidden layers, the ball's ``eps`` folded into the first
    :param slopes: slope range of the activation after each
    :param rows: ``C``
    :param in_box: the l_inf ball; else the l_2 ball
    """

    weights: tuple[Array, ...]
    slopes: tuple[tuple[float, float], ...]
    rows: Array
    in_box: bool

    @property
    def n_inputs(self) -> int:
        return int(self.weights[0].shape[1])

    @property
    def work(self) -> float:
        """Roughly what one value and gradient of the objective cost: fixed, Cholesky decompositions, eigenvalues."""
        return 1e6 + 2.0 * self.n_inputs**3 + sum(len(weight) ** 3 for weight in self.weights)

    def split(self, variables: Array) -> tuple[list[Array], Array]:
        """``T_i`` and the scaling ``d`` of the inputs (all 1 in l_2) from their logarithms."""
        ends = np.cumsum([len(weight) for weight in self.weights])
        *multipliers, scaling = np.split(np.exp(variables), ends)
        return multipliers, scaling if self.in_box else np.ones(self.n_inputs)


def change_bounds(network: Network, ball: Ball, whole: Array, parts: Sequence[Array]) -> tuple[float, list[float]]:
    """
    Bounds on ``||C h||_2``, ``h`` the change of the last hidden layer (one layer: of the input) over the ball.

    :param network: a network in float64; its last layer is not used
    :param ball: the perturbations
    :param whole: a ``C`` that is optimised for, shape ``(m, n_last_hidden)``
    :param parts: further ``C``, their rows combinations of those of ``whole``, for which its multipliers are refined
    :return: the bound for ``whole``, and those for ``parts``; infinite where the network is too large to be worth the time
    """
    if len(network.weights) == 1:
        return _linear_bound(whole, ball), [_linear_bound(part, ball) for part in parts]
    hidden = [network.weights[0][:, ball.eps > 0] * ball.eps[ball.eps > 0], *network.weights[1:-1]]
    trivial = _trivial_bound([*hidden, whole])
    if trivial is not None:
        return trivial, [trivial] * len(parts)
    hidden[0] = hidden[0][:, np.any(hidden[0], axis=0)]
    if hidden[0].shape[1] > _MAX_INPUTS:
        return math.inf, [math.inf] * len(parts)
    weights, exponents = zip(*map(_scaled, hidden), strict=True)
    slopes = tuple(_widened(*slope_range(activation)) for activation in network.activations)
    rows, exponent = _scaled(whole)
    problem = _Problem(weights, slopes, rows, in_box=ball.norm == "linf")
    variables = _optimised(problem, _start(problem), _affordable(problem, _SCHEDULE, _BUDGET))
    bound = _unscaled(_certified_bound(problem, variables), exponent + sum(exponents))
    schedule = _affordable(problem, _REFINEMENT, _PARTS_BUDGET / max(1, len(parts)))
    return bound, [_part_bound(problem, variables, part, schedule, sum(exponents)) for part in parts]


def _affordable(problem: _Problem, schedule: Schedule, budget: float) -> Schedule:
    share = min(1.0, budget / (problem.work * sum(n_iterations for _, n_iterations in schedule)))
    return [(power, int(share * n_iterations)) for power, n_iterations in schedule]


def _linear_bound(rows: Array, ball: Ball) -> float:
    scaled = rows * ball.eps
    bound = float(box_norm_bound(scaled)) if ball.norm == "linf" else spectral_norm(scaled)
    # Entries of `scaled` are rounded; the box's norm of |M| is at most sqrt(n) times that of M.
    return bound * (1.0 + rounding_margin(len(ball.eps) + 4))


def _trivial_bound(matrices: Sequence[Array]) -> float | None:
    if not all(np.all(np.isfinite(matrix)) for matrix in matrices):
        return math.inf
    return None if all(np.any(matrix) for matrix in matrices) else 0.0


def _scaled(matrix: Array) -> tuple[Array, int]:
    """``matrix = scaled * 2^exponent``, exactly, with the largest entry of ``scaled`` in [1/2, 1)."""
    exponent = int(np.frexp(np.abs(matrix).max())[1])
    return np.ldexp(matrix, -exponent), exponent


def _unscaled(bound: float, exponent: int) -> float:
    with np.errstate(over="ignore"):
        return float(np.ldexp(bound, exponent))


def _part_bound(problem: _Problem, variables: Array, part: Array, schedule: Schedule, exponent: int) -> float:
    trivial = _trivial_bound([part])
    if trivial is not None or schedule[0][1] < 2:
        return math.inf if trivial is None else trivial
    rows, part_exponent = _scaled(part)
    own = replace(problem, rows=rows)
    variables = _optimised(own, _refined_start(own, problem, variables), schedule)
    return _unscaled(_certified_bound(own, variables), exponent + part_exponent)


def _refined_start(own: _Problem, problem: _Problem, variables: Array) -> Array:
    """The multipliers of ``problem`` times the best of some factors, the first of which leaves the last layer as it was."""
    multipliers, _ = problem.split(variables)
    reached = [np.square(np.linalg.norm(rows / np.sqrt(multipliers[-1]), 2)) for rows in (problem.rows, own.rows)]
    logarithms = np.log(np.concatenate(multipliers) * (reached[1] / reached[0]))
    starts = [_with_scaling(own, logarithms + k * math.log(2.0)) for k in range(3)]
    objective = _objective(own, _REFINEMENT[0][0])
    values = [math.inf if start is None else objective(start)[0] for start in starts]
    best = starts[int(np.argmin(values))]
    return _start(own) if best is None else best


def _with_scaling(problem: _Problem, logarithms: Array) -> Array | None:
    """Logarithms of ``T`` and for the box those of the ``d`` that suits them; ``None`` out of the domain."""
    if not problem.in_box:
        return logarithms
    ends = np.cumsum([len(weight) for weight in problem.weights])[:-1]
    try:
        gram, _ = _recursion(problem, np.split(np.exp(logarithms), ends))
        return np.concatenate([logarithms, np.log(box_multipliers(gram[None])[0])])
    except np.linalg.LinAlgError:
        return None


def _start(problem: _Problem) -> Array:
    """The multipliers that give the product of spectral norms, or less: by the norms of ``Q_i``, not of the weights."""
    gram, logarithms = problem.rows.T @ problem.rows, []
    for weight, (low, high) in zip(problem.weights[::-1], problem.slopes[::-1], strict=True):
        largest = float(np.linalg.eigvalsh(gram)[-1])  # positive: no matrix is zero, and T is positive everywhere
        multipliers = np.full(len(weight), largest * (1.0 + abs(low + high) / (high - low)))
        logarithms.append(np.log(multipliers))
        gram, _ = _eliminated(gram, weight, (low, high), multipliers)
    variables = _with_scaling(problem, np.concatenate(logarithms[::-1]))
    return np.concatenate([*logarithms[::-1], np.zeros(problem.n_inputs)]) if variables is None else variables


def _eliminated(gram: Array, weight: Array, slopes: tuple[float, float], multipliers: Array) -> tuple[Array, Response]:
    """
    One step of the recursion.

    :return: ``Q_(i-1)``, and ``V -> (T_i - Q_i)^-1 T_i V``; ``LinAlgError`` where ``T_i - Q_i`` is not positive definite
    """
    low, high = slopes
    factor = cholesky(np.diag(multipliers) - gram, lower=True, overwrite_a=True, check_finite=False)
    half = solve_triangular(factor, multipliers[:, None] * weight, lower=True, check_finite=False)
    result = (0.5 * (low + high)) ** 2 * (half.T @ half)
    if low * high != 0.0:
        root = np.sqrt(multipliers)[:, None] * weight
        result -= low * high * (root.T @ root)
    return result, lambda v: cho_solve((factor, True), multipliers[:, None] * v, check_finite=False)


def _eliminated_last(rows: Array, weight: Array, slopes: tuple[float, float], multipliers: Array) -> tuple[Array, Response]:
    """
    The same for ``Q = C^T C`` of low rank, in half the time.

    ``T (T - C^T C)^-1 T = T + Z^T Z``, ``Z^T Z = C^T (I - C T^-1 C^T)^-1 C`` (Woodbury), and ``m^2 - a b = r^2``.
    """
    low, high = slopes
    inner = np.eye(len(rows)) - (rows / multipliers) @ rows.T
    reduced = solve_triangular(cholesky(inner, lower=True, check_finite=False), rows, lower=True, check_finite=False)
    own = (0.5 * (high - low)) * np.sqrt(multipliers)[:, None] * weight
    root = np.concatenate([own, (0.5 * (low + high)) * (reduced @ weight)])
    return root.T @ root, lambda v: v + (reduced.T @ (reduced @ v)) / multipliers[:, None]


def _recursion(problem: _Problem, multipliers: Sequence[Array]) -> tuple[Array, list[Response]]:
    """``G``, and the responses of the layers, first layer first."""
    *before, last = zip(problem.weights, problem.slopes, multipliers, strict=True)
    gram, response = _eliminated_last(problem.rows, *last)
    responses = [response]
    for layer in before[::-1]:
        gram, response = _eliminated(gram, *layer)
        responses.append(response)
    return gram, responses[::-1]


def _objective(problem: _Problem, power: float) -> Objective:
    """
    The logarithm of the bound's square, smoothed, and its gradient: what is minimised over the logarithms of ``T`` and ``d``.

    ``sum(d) lambda_max(D^(-1/2) G D^(-1/2))`` bounds ``x^T G x`` over the box (see :mod:`.box`); over the l_2 ball it is
    ``lambda_max(G)``. Outside the domain the value is infinite.
    """

    def objective(variables: Array) -> tuple[float, Array]:
        multipliers, scaling = problem.split(variables)
        try:
            gram, responses = _recursion(problem, multipliers)
            values, vectors = _largest_pairs(gram / np.sqrt(scaling[:, None] * scaling))
        except np.linalg.LinAlgError:
            return math.inf, variables
        if not 0.0 < values[-1] < math.inf:
            return math.inf, variables
        value, weights = _power_mean(values, power)
        kept = weights > 1e-6
        directions = vectors[:, kept] * np.sqrt(weights[kept] / values[kept]) / np.sqrt(scaling)[:, None]
        gradient = _multiplier_gradient(problem, multipliers, responses, directions)
        if problem.in_box:
            value += math.log(scaling.sum())
            gradient.append(scaling / scaling.sum() - np.square(vectors[:, kept]) @ weights[kept])
        return value, np.concatenate(gradient)

    return objective


def _largest_pairs(matrix: Array) -> tuple[Array, Array]:
    """The largest eigenvalues, ascending, and their vectors: all of them where that is as fast."""
    n = len(matrix)
    if n <= _MAX_ALL_EIGENVALUES:
        values, vectors = np.linalg.eigh(matrix)
    else:
        values, vectors = eigh(matrix, subset_by_index=[n - _EIGENVALUES, n - 1], check_finite=False)
    return values, vectors


def _power_mean(values: Array, power: float) -> tuple[float, Array]:
    """``log (sum values^power)^(1/power)`` and its derivatives with respect to the logarithms of the values."""
    ratios = (np.maximum(values, 0.0) / values[-1]) ** power
    return math.log(values[-1]) + math.log(ratios.sum()) / power, ratios / ratios.sum()


def _multiplier_gradient(
    problem: _Problem, multipliers: Sequence[Array], responses: Sequence[Response], directions: Array
) -> list[Array]:
    """
    Derivatives of ``tr(V^T G V)`` with respect to the logarithms of the multipliers.

    ``V`` goes forward through the network as the changes ``x`` do: ``V_i = m (T_i - Q_i)^-1 T_i W_i V_(i-1)`` minimises the
    form given ``x``, and the derivative with respect to ``T_i`` is minus the activation's constraint at these changes.

    :param directions: ``V``, shape ``(n_inputs, k)``
    """
    gradient = []
    for weight, (low, high), t, response in zip(problem.weights, problem.slopes, multipliers, responses, strict=True):
        before = weight @ directions
        directions = 0.5 * (low + high) * response(before)
        constraint = (low + high) * directions * before - directions**2 - low * high * before**2
        gradient.append(t * constraint.sum(axis=1))
    return gradient


def _optimised(problem: _Problem, variables: Array, schedule: Schedule) -> Array:
    for power, n_iterations in schedule:
        variables = minimised(_objective(problem, power), variables, n_iterations)
    return variables


def _certified_bound(problem: _Problem, variables: Array) -> float:
    """The bound that ``variables`` give, or if they cannot be certified the start; infinite if that cannot be either."""
    gram = _certified(problem, problem.split(variables)[0])
    if gram is None:
        gram = _certified(problem, problem.split(_start(problem))[0])
    if gram is None:
        return math.inf
    square = float(box_quadratic_bound(gram)) if problem.in_box else spectral_norm(gram)
    return math.sqrt(square) * (1.0 + rounding_margin(4))


def _certified(problem: _Problem, multipliers: Sequence[Array]) -> Array | None:
    """
    A matrix ``G`` with ``||C h||^2 <= x^T G x`` for all changes, proved in floating point.

    The recursion's ``G`` leaves the form on the edge of semidefinite, so it is raised by a small share until the proof passes.
    """
    try:
        gram, _ = _recursion(problem, multipliers)
    except np.linalg.LinAlgError:
        return None
    gram = 0.5 * (gram + gram.T)
    for share in (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4):
        raised = gram * (1.0 + share) + share * np.diag(np.diag(gram))
        if _is_semidefinite(problem, multipliers, raised):
            return raised
    return None


def _is_semidefinite(problem: _Problem, multipliers: Sequence[Array], gram: Array) -> bool:
    """
    Whether the form is proved positive semidefinite.

    An entry of the form is a sum at most ``n + 32`` roundings deep, ``n`` the largest layer (``eps`` and the std included), so
    it is off by a share of the same sum of absolute values; a symmetric error of that size is at least minus its row sums on
    the diagonal. The Cholesky decomposition of a float64 matrix ``A - c I``, ``A`` of size ``k``, that runs to its end proves
    ``A`` semidefinite if ``c >= (k + 1) u / (1 - 2 (k + 1) u) tr A``, whatever the order of its sums (Rump 2006, Verification
    of positive definiteness, BIT 46). Scaling by powers of two is exact.
    """
    form, size = _form(problem, multipliers, gram), _form(problem, multipliers, gram, absolute=True)
    diagonal = np.diag(form)
    if not np.all(np.isfinite(form)) or not np.all(diagonal > 0.0):
        return False
    scale = np.exp2(-np.round(0.5 * np.log2(diagonal)))
    form, size = form * scale * scale[:, None], size * scale * scale[:, None]
    n_largest = max(max(weight.shape) for weight in (*problem.weights, problem.rows))
    shift = size.sum(axis=1) * rounding_margin(n_largest + 32) + rounding_margin(len(form) + 8) * float(np.trace(form))
    try:
        factor = cholesky(form - np.diag(shift), lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return False
    return bool(np.all(np.isfinite(factor)))


def _form(problem: _Problem, multipliers: Sequence[Array], gram: Array, absolute: bool = False) -> Array:
    """
    The matrix of the form in ``(x, h_1, ..., h_(L-1))``, straight from its definition.

    :param absolute: every term by its absolute value: the size that roundings are relative to
    """

    def term(array: Array) -> Array:
        return np.abs(array) if absolute else array

    ends = np.cumsum([len(gram), *map(len, problem.weights)])
    blocks = [slice(int(end) - n, int(end)) for end, n in zip(ends, [len(gram), *map(len, problem.weights)], strict=True)]
    form = np.zeros((ends[-1], ends[-1]))
    form[blocks[0], blocks[0]] = term(gram)
    for i, (weight, (low, high), t) in enumerate(zip(problem.weights, problem.slopes, multipliers, strict=True)):
        before, after = blocks[i], blocks[i + 1]
        form[after, after] += np.diag(t)
        scaled = t[:, None] * weight
        form[before, before] += term(np.asarray(low * high)) * (term(weight).T @ term(scaled))
        form[after, before] = term(-0.5 * (low + high) * scaled)
        form[before, after] = form[after, before].T
    form[blocks[-1], blocks[-1]] += (1.0 if absolute else -1.0) * (term(problem.rows).T @ term(problem.rows))
    return form
