"""What of a hyperparameter entry is this package's, and the entry with other values for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rl_zoo3 import exp_manager
from rl_zoo3.utils import get_class_by_name

from sb3_prune_robust.pruning import PruningCallback

#: Tuned hyperparameters of :class:`~sb3_prune_robust.pruning.PruningCallback`.
PRUNING = ("final_sparsity", "schedule", "distribution")
#: All of the package's own that are tuned.
OURS = ("lipschitz", *PRUNING)

Entry = dict[str, Any]


def lipschitz_of(policy: Any, policy_kwargs: Any) -> float | None:
    """
    The bound that an entry trains with.

    :param policy: a class, a dotted name of one, or an alias of SB3's such as ``"MlpPolicy"``
    :param policy_kwargs: a dict, a string that the zoo evaluates to one, or ``None``
    :return: that of ``policy_kwargs``, or the policy's default; ``None`` for no bound, and for policies that have none
    """
    parameter = _parameter(policy)
    return None if parameter is None else as_dict(policy_kwargs).get("lipschitz", parameter.default)


def is_ours(policy: Any) -> bool:
    """
    Whether a policy takes a bound.

    :param policy: as :func:`lipschitz_of`
    """
    return _parameter(policy) is not None


def _parameter(policy: Any) -> inspect.Parameter | None:
    if isinstance(policy, str):
        if "." not in policy:
            return None
        policy = get_class_by_name(policy)
    return parameter_of(policy, "lipschitz")


def parameter_of(made: Any, name: str) -> inspect.Parameter | None:
    """
    A parameter of a class, or of the base to which it hands what it does not know itself.

    :param made: the class
    :param name: of the parameter
    :return: ``None`` if there is none
    """
    found = (inspect.signature(base.__init__).parameters.get(name) for base in made.__mro__)
    return next((parameter for parameter in found if parameter is not None), None)


def as_dict(policy_kwargs: Any) -> dict[str, Any]:
    """An entry's ``policy_kwargs`` as a dict: it may be one, a string that the zoo evaluates, or ``None``."""
    if isinstance(policy_kwargs, str):
        policy_kwargs = eval(policy_kwargs, dict(vars(exp_manager)))  # what the zoo does with it
    return dict(policy_kwargs or {})


def as_list(callbacks: Any) -> list[Any]:
    """The ``callback:`` of an entry as a list: it may be a list, one callback, or ``None``."""
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list) else [callbacks]


def pruning_arguments(callbacks: Any) -> dict[str, Any] | None:
    """
    The arguments of the pruning callback among those of an entry.

    :param callbacks: the value of ``callback:``
    :return: its keyword arguments, with the defaults of those left out; ``None`` if there is no such callback
    :raises ValueError: if there are several, or one with a final sparsity for each target: one number is tuned
    """
    parameters = inspect.signature(PruningCallback.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    found = [{**defaults, **arguments} for name, arguments in map(_parts, as_list(callbacks)) if _is_pruning(name)]
    sparsities = [arguments.get("final_sparsity") for arguments in found]
    if len(found) > 1 or any(isinstance(one, Mapping) for one in sparsities):
        given = ", ".join(map(str, sparsities))
        raise ValueError(f"callback: one final_sparsity, of one PruningCallback, can be tuned; the entry has {given}")
    return found[0] if found else None


def with_pruning(callbacks: Any, values: Mapping[str, Any]) -> list[Any]:
    """
    An entry's callbacks with other values for the pruning callback; the others as they are.

    :param callbacks: the value of ``callback:``, which is not changed
    :param values: arguments of :class:`~sb3_prune_robust.pruning.PruningCallback` to replace
    """
    changed = []
    for callback in as_list(callbacks):
        name, arguments = _parts(callback)
        changed.append({name: {**arguments, **values}} if _is_pruning(name) else callback)
    return changed


def with_lipschitz(policy_kwargs: Any, lipschitz: float) -> Any:
    """
    An entry's ``policy_kwargs`` with another bound.

    :param policy_kwargs: a dict, a string that the zoo evaluates to one, or ``None``
    :param lipschitz: the bound
    :return: of the same kind
    """
    if isinstance(policy_kwargs, str):
        return f"{{**({policy_kwargs}), 'lipschitz': {lipschitz!r}}}"
    return {**(policy_kwargs or {}), "lipschitz": lipschitz}


def changed_entry(entry: Mapping[str, Any], params: Mapping[str, Any]) -> Entry:
    """
    An entry with tuned values in their places.

    :param entry: the entry, which is not changed
    :param params: by name: those of :data:`OURS`, and others of the algorithm at the top of the entry
    :return: the new entry
    """
    changed = {**entry, **{name: value for name, value in params.items() if name not in OURS}}
    if "lipschitz" in params:
        changed["policy_kwargs"] = with_lipschitz(entry.get("policy_kwargs"), params["lipschitz"])
    pruning = {name: params[name] for name in PRUNING if name in params}
    if pruning:
        changed["callback"] = with_pruning(entry.get("callback"), pruning)
    return changed


def _parts(callback: Any) -> tuple[Any, dict[str, Any]]:
    if isinstance(callback, Mapping):
        ((name, arguments),) = callback.items()
        return name, dict(arguments or {})
    return callback, {}


def _is_pruning(name: Any) -> bool:
    if not isinstance(name, str) or "." not in name:
        return False
    found = get_class_by_name(name)
    return isinstance(found, type) and issubclass(found, PruningCallback)
