"""
Zeros that stay zero, and a Lipschitz bound that holds, on ordinary layers.

Both are enforced where weights change, by hooks on the parameters and on the optimiser, and nothing is stored beside the
weights: a pruned weight is an exact zero in a plain ``nn.Linear``, say, so the state dict is that of the plain network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch as th
from torch import nn

from sb3_prune_robust.anatomy import anatomy, optimizers_of

# Between two exact projections a product of norms may exceed its bound by this share (promised to users: 1e-2).
TRAINING_SLACK = 9e-3
# Weights that are loaded may exceed it by this share, so that a copy made in the midst of training plays as the original does.
LOADED_SLACK = 9.5e-3
# The share by which an exactly projected product may exceed its bound (promised: 1e-5): covers float32 rounding.
EXACT_SLACK = 1e-6
# Layers with more rows and columns than this are worth an estimate with a proof in place of a measurement.
_LARGE = 64
# Power iterations of each try; warm, the first is mostly enough.
_POWER_ITERATIONS = (3, 10, 30)


class WeightMasks:
    """
    Keeps pruned weights at exactly 0.0. The zeros of the weights are the masks: :meth:`rearm` reads them.

    Gradients of pruned weights are zeroed by tensor hooks, which fire before SB3 clips the gradient and for TRPO's
    ``autograd.grad`` too. After each optimiser step the weights and every per-weight optimiser state (Adam's moments,
    RMSprop's averages, momentum) are zeroed again, whatever the optimiser did. The weights of target networks are zeroed when
    a mask changes; from then on the average of two zeros is zero.

    :param weights: the weights that may be pruned, by layer name
    :param optimizers: the optimisers that step them
    :param followers: by name of a weight, those of the target networks that follow it
    """

    def __init__(
        self,
        weights: Mapping[str, th.Tensor],
        optimizers: Sequence[th.optim.Optimizer],
        followers: Mapping[str, Sequence[th.Tensor]] | None = None,
    ) -> None:
        self.weights = dict(weights)
        self.followers = dict(followers or {})
        self.n_changes = 0  # of the masks: what was measured of them holds until it rises
        self.pruned: dict[str, th.Tensor] = {}
        self.after_update: Callable[[], None] | None = None  # the Lipschitz projection, where there is one
        self._optimizers: list[th.optim.Optimizer] = []
        self._keep: dict[str, th.Tensor] = {}  # 1.0 where not pruned, in the weight's dtype: products are faster than fills
        self._n_pruned: dict[str, int] = {}
        self._hooked: set[str] = set()
        for optimizer in optimizers:
            self.attach(optimizer)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of this object would come without its hooks, and the copy's zeros would not stay: a copied or unpickled policy
        # gets None, and new masks from its zeros when they are asked for.
        return type(None), ()

    def attach(self, optimizer: th.optim.Optimizer) -> None:
        """Keep the zeros through the steps of an optimiser (once, however often it is given)."""
        if not any(known is optimizer for known in self._optimizers):
            self._optimizers.append(optimizer)
            optimizer.register_step_post_hook(self._after_step)

    def n_pruned(self, names: Iterable[str]) -> int:
        """Number of weights under a mask in the named layers."""
        return sum(self._n_pruned.get(name, 0) for name in names)

    def rearm(self) -> None:
        """
        Take the masks anew from the zeros that the weights hold now.

        A layer of nothing but zeros is an initialisation (of a head, say), not a mask: pruning leaves each layer a weight.
        """
        zeros = {name: weight.detach() == 0 for name, weight in self.weights.items()}
        self.pruned.clear()
        self._keep.clear()
        self._n_pruned.clear()
        self._set({name: zero for name, zero in zeros.items() if bool(zero.any()) and not bool(zero.all())})

    def prune(self, pruned: Mapping[str, th.Tensor]) -> None:
        """
        Add to the masks: what is pruned stays pruned.

        :param pruned: for each layer to change, a boolean tensor of its weight's shape, True where to prune
        """
        self._set({name: where | self.pruned[name] if name in self.pruned else where for name, where in pruned.items()})
        if self.after_update is not None:
            self.after_update()

    @th.no_grad()
    def _set(self, pruned: Mapping[str, th.Tensor]) -> None:
        for name, where in pruned.items():
            weight = self.weights[name]
            for one in (weight, *self.followers.get(name, ())):
                one.masked_fill_(where, 0.0)  # a product would leave -0.0
            self.pruned[name] = where
            self._keep[name] = (~where).to(weight.dtype)
            self._n_pruned[name] = int(where.sum())
            if weight.requires_grad and name not in self._hooked:
                weight.register_hook(partial(self._mask_gradient, name))
                self._hooked.add(name)
        self.n_changes += 1
        for optimizer in self._optimizers:
            self._zero(optimizer, pruned)

    def follow(self) -> None:
        """Move the masks to the device that the policy was moved to."""
        for name, keep in self._keep.items():
            device = self.weights[name].device
            if keep.device != device:
                self._keep[name], self.pruned[name] = keep.to(device), self.pruned[name].to(device)

    def _mask_gradient(self, name: str, gradient: th.Tensor) -> th.Tensor | None:
        if name not in self._keep:
            return None
        self.follow()
        return gradient * self._keep[name]

    @th.no_grad()
    def _zero(self, optimizer: th.optim.Optimizer, names: Iterable[str]) -> None:
        """
        What an optimiser steps of the named weights, and its states.

        No others, were it by a product with one: when SAC steps the critic, the actor's weights are part of a graph that is
        yet to go backward, and torch refuses that when they have been written to.
        """
        stepped = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        values, masks = [], []
        for name in names:
            weight = self.weights[name]
            if id(weight) in stepped:
                states = optimizer.state.get(weight, {}).values()
                per_weight = [state for state in states if isinstance(state, th.Tensor) and state.shape == weight.shape]
                values += [weight, *per_weight]
                masks += [self._keep[name]] * (1 + len(per_weight))
        if values:
            th._foreach_mul_(values, masks)

    def _after_step(self, optimizer: th.optim.Optimizer, *_: Any) -> None:
        self._zero(optimizer, self._keep)


def weight_masks(policy: nn.Module) -> WeightMasks:
    """
    The :class:`WeightMasks` of a policy over all its layers, made and attached to its optimisers when it has none yet.

    One object a policy, so that the hooks are registered once, however many callbacks or ``learn()`` calls follow. Weights
    that are loaded into the policy later bring their own zeros: the masks are read anew after ``load_state_dict``, and the
    target networks get them too. A policy without an optimiser (ARS) has masks that say what is pruned and hold nothing.

    :param policy: a policy of an algorithm of SB3 or sb3-contrib, see :func:`anatomy`
    :return: its masks
    :raises TypeError: for a policy of another kind
    """
    optimizers = {id(optimizer): optimizer for optimizer in optimizers_of(policy).values()}
    masks: WeightMasks | None = getattr(policy, "_weight_masks", None)
    if masks is None:
        parts = anatomy(policy)
        masks = WeightMasks(parts.weights, list(optimizers.values()), parts.followers)
        policy._weight_masks = masks  # type: ignore[assignment]
        policy.register_load_state_dict_post_hook(_rearm)
        masks.rearm()
    masks.follow()
    for optimizer in optimizers.values():
        masks.attach(optimizer)  # another one may have taken the place of the one hooked
    return masks


def _rearm(policy: nn.Module, incompatible_keys: Any) -> None:
    weight_masks(policy).rearm()


def spectral_norm(weight: th.Tensor) -> float:
    """Largest singular value by a float64 SVD, rounded up by more than the SVD's error."""
    return float(np.linalg.norm(_matrix(weight).astype(np.float64), 2)) * (1 + 1e-12)


def _matrix(weight: th.Tensor) -> npt.NDArray[Any]:
    matrix: npt.NDArray[Any] = weight.detach().cpu().numpy()
    return matrix


def _quick_norm(weight: th.Tensor) -> float:
    """Largest singular value from the Gram matrix of the shorter side in the weight's own precision (error about 1e-5)."""
    matrix = _matrix(weight)
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    # Straight to LAPACK for the one eigenvalue: three quarters of scipy.linalg.eigh's time on small matrices is its checks.
    (syevr,) = scipy.linalg.get_lapack_funcs(("syevr",), (gram,))
    eigenvalues, _, _, _, info = syevr(gram, compute_v=0, range="I", il=len(gram), iu=len(gram))
    if info != 0 or not np.isfinite(gram).all():  # squares beyond float32
        return spectral_norm(weight)
    return math.sqrt(max(float(eigenvalues[0]), 0.0))


def _is_finite(weight: th.Tensor) -> bool:
    # A sum takes a small part of the time of isfinite, and is finite only if every weight is.
    return math.isfinite(float(weight.sum())) or bool(th.isfinite(weight).all())


def _is_same(weight: th.Tensor, known: th.Tensor) -> bool:
    return weight.device == known.device and th.equal(weight, known)  # a policy that was moved left what is known behind


class _ProvenNorm:
    """
    Largest singular value of a large layer, rounded up by at most 0.1 %: for use after every step.

    A few power iterations, going on from the last step's vector, give an estimate. They can only fall short, so it is proven
    by a Cholesky factorisation: ``c^2 I - W W^T`` has one only if ``c`` is above the norm (but for rounding, of the order of
    1e-5). An estimate that is not proven is replaced by the measured norm.
    """

    def __init__(self) -> None:
        self._vector: th.Tensor | None = None

    def __call__(self, weight: th.Tensor) -> float:
        matrix = weight.detach() if weight.shape[0] < weight.shape[1] else weight.detach().T
        gram = matrix @ matrix.T
        for n_iterations in _POWER_ITERATIONS:
            ceiling = self._estimate(matrix, n_iterations) * (1 + 1e-3)
            gap = th.neg(gram)
            gap.diagonal().add_(ceiling**2)
            if int(th.linalg.cholesky_ex(gap).info) == 0:
                return ceiling
        return _quick_norm(weight)

    def _estimate(self, matrix: th.Tensor, n_iterations: int) -> float:
        vector = self._vector
        if vector is None or vector.device != matrix.device or not bool(vector.any()):
            vector = th.ones_like(matrix[:, 0])
        for _ in range(n_iterations):
            image = matrix.T @ vector
            vector = matrix @ (image / image.norm().clamp_min(1e-30))
        self._vector = vector / vector.norm().clamp_min(1e-30)
        return float((matrix.T @ self._vector).norm())


class LipschitzProjection:
    """
    Keeps the product of the layers' spectral norms within a bound (Gouk et al. 2018, by scaling whole layers).

    Layers are only ever scaled by factors of at most 1: zeros stay zeros and no absolute weight grows, so at a pruning event
    the absolute path product never rises. Scaling all by ONE factor leaves the ratios of the norms to training: a layer that
    wants a larger share takes it from the others, and none of the bound is wasted.

    :param weights: the weight matrices, in order
    :param bound: the largest product of their spectral norms
    :param proven: measure large layers after a step by an estimate and its proof, up to 0.1 % too high: at 256 x 256 0.7 of
        the time of measuring them, for off-policy algorithms, whose bound acts at every step of the environment
    """

    def __init__(self, weights: Sequence[th.Tensor], bound: float, proven: bool = False) -> None:
        self.weights = list(weights)
        self.bound = bound
        self._measures = [_ProvenNorm() if proven and min(w.shape) > _LARGE else _quick_norm for w in self.weights]
        self._reference: list[th.Tensor] = []  # the weights when the norms were last measured
        self._norms: list[float] = []
        self._exact = False  # whether they were measured exactly
        self._optimizers: list[th.optim.Optimizer] = []

    def __getstate__(self) -> dict[str, Any]:
        # A pickled optimiser comes back without its hooks: who unpickles attaches it again.
        return {**vars(self), "_optimizers": [], "_reference": [], "_exact": False}

    def attach(self, optimizer: th.optim.Optimizer) -> None:
        """Keep the bound through the steps of an optimiser (once, however often it is given)."""
        if not any(known is optimizer for known in self._optimizers):
            self._optimizers.append(optimizer)
            optimizer.register_step_post_hook(self.after_step)

    def is_exact(self) -> bool:
        """Whether no weight has changed since the last exact projection."""
        return self._exact and all(map(_is_same, self.weights, self._reference))

    @th.no_grad()
    def project(self) -> None:
        """Exact projection; does nothing when no weight has changed since the last one."""
        if self.is_exact():
            return
        self._rescale([spectral_norm] * len(self.weights), EXACT_SLACK)
        self._exact = True

    @th.no_grad()
    def admit(self) -> None:
        """Exact projection of weights from elsewhere, unless they are as near the bound as training leaves them."""
        self._rescale([spectral_norm] * len(self.weights), LOADED_SLACK)
        self._exact = False

    @th.no_grad()
    def after_step(self, *_: Any) -> None:
        """
        Keep the product within ``bound * (1 + 1e-2)``, for use after each optimiser step.

        A norm moves by no more than the Frobenius norm of the weight's change (Weyl), so nothing is measured until the
        drift since the last measurement could have used up the slack.
        """
        if not self._reference:
            return self.project()
        drifts = [np.linalg.norm(_matrix(w) - _matrix(r)) for w, r in zip(self.weights, self._reference, strict=True)]
        largest = math.prod(norm + float(drift) for norm, drift in zip(self._norms, drifts, strict=True))
        if not largest <= self.bound * (1 + TRAINING_SLACK):
            self._rescale(self._measures, 0.0)
            self._exact = False

    def _rescale(self, measures: Sequence[Callable[[th.Tensor], float]], slack: float) -> None:
        if not all(_is_finite(weight) for weight in self.weights):
            raise ValueError("the action network has weights that are NaN or infinite: training has diverged")
        norms = [measure(weight) for measure, weight in zip(measures, self.weights, strict=True)]
        product = math.prod(norms)
        if product > self.bound * (1 + slack):
            factor = (self.bound / product) ** (1 / len(norms))
            for weight in self.weights:
                weight.mul_(factor)
            norms = [norm * factor for norm in norms]
        self._norms = [norm * (1 + 1e-5) for norm in norms]
        self._reference = [weight.detach().clone() for weight in self.weights]
