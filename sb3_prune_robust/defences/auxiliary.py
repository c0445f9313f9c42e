"""
A further term in the loss of an SB3 algorithm, without a copy of its ``train``.

An algorithm's ``train`` computes its loss from what a policy's method returns. That method is wrapped while ``train`` runs:
one of the tensors that it returns (the carrier) is passed on unchanged, and when the algorithm's ``backward`` reaches it, the
gradient of the further term is added. So the term comes before gradient clipping and before the optimiser's step, as if it
stood in the loss; what the algorithm logs as its loss is without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th


class _Carry(th.autograd.Function):
    """The carrier unchanged; backward: its gradient times ``share``, and 1 for the term."""

    @staticmethod
    def forward(ctx: Any, carrier: th.Tensor, term: th.Tensor, share: float) -> th.Tensor:
        ctx.share = share
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor, th.Tensor, None]:
        (gradient,) = gradients
        return gradient if ctx.share == 1.0 else ctx.share * gradient, gradient.new_ones(()), None


def carry(carrier: th.Tensor, term: th.Tensor, share: float = 1.0) -> th.Tensor:
    """
    A tensor whose ``backward`` adds the gradient of a further term of the loss.

    The loss must depend on the result, once; whatever its derivative there, that of ``term`` is 1.

    :param carrier: any shape
    :param term: the further term, a scalar
    :param share: factor of the gradient that goes on through the carrier
    :return: the carrier's values
    """
    result: th.Tensor = _Carry.apply(carrier, term, share)  # type: ignore[no-untyped-call, unused-ignore]
    return result


@contextmanager
def wrapped(owner: Any, method: str, change: Callable[[Any, Any], Any]) -> Iterator[None]:
    """
    An object's method whose result is changed where gradients are recorded, for the time of a ``with`` block.

    :param owner: the object, e.g. a policy
    :param method: name of the method, e.g. ``"evaluate_actions"``
    :param change: from the method's first argument and its result to the result that takes its place; what it calls of the
        method itself is not changed again
    """
    original = getattr(owner, method)
    inside = False

    def changed(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        result = original(*args, **kwargs)
        if inside or not th.is_grad_enabled():
            return result
        inside = True
        try:
            return change(args[0], result)
        finally:
            inside = False

    setattr(owner, method, changed)  # on the instance: the class and its other instances stay as they are
    try:
        yield
    finally:
        delattr(owner, method)
