"""Independent copies of policies."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from torch import nn

SelfPolicy = TypeVar("SelfPolicy", bound=BasePolicy)


def copy_policy(policy: SelfPolicy) -> SelfPolicy:
    """
    An independent copy of a policy of SB3 or sb3-contrib, rebuilt from its constructor's arguments and its state dicts.

    ``copy.deepcopy`` would drop the hooks that keep zeros and bounds, and fails on a policy that has been trained.

    :param policy: the policy; it is not changed, and neither is the state of the random number generators
    :return: the copy, in evaluation mode, with the state of every optimiser
    """
    with th.random.fork_rng(devices=[]):
        clone = type(policy)(**_arguments(policy))
    clone.to(policy.device)
    clone.load_state_dict(nn.Module.state_dict(policy))  # not ours, which projects the original
    for parameter, original in zip(clone.parameters(), policy.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    for ours, theirs in zip(_optimizers(clone), _optimizers(policy), strict=True):
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    clone.set_training_mode(False)
    return clone


def parts(policy: nn.Module, clone: nn.Module) -> Iterator[tuple[Any, Any]]:
    """The modules, tensors and optimisers of a policy, each with that of its copy."""
    for listed in (nn.Module.modules, nn.Module.parameters, nn.Module.buffers, _optimizers):
        yield from zip(listed(policy), listed(clone), strict=True)


def _arguments(policy: Any) -> dict[str, Any]:
    """The constructor's arguments, with those that SB3's and sb3-contrib's own lists leave out."""
    arguments = {**_left_out(policy), **policy._get_constructor_parameters()}
    accepted = inspect.signature(type(policy)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted):
        return arguments
    return {parameter.name: arguments[parameter.name] for parameter in accepted if parameter.name in arguments}


def _left_out(policy: Any) -> dict[str, Any]:
    known = ("share_features_extractor", "shared_lstm", "enable_critic_lstm", "lstm_kwargs")
    found = {name: getattr(policy, name) for name in known if hasattr(policy, name)}
    if hasattr(policy, "lstm_actor"):
        found |= dict(lstm_hidden_size=policy.lstm_actor.hidden_size, n_lstm_layers=policy.lstm_actor.num_layers)
    if isinstance(getattr(policy, "action_net", None), nn.Sequential):  # ARS
        found |= dict(with_bias=policy.action_net[0].bias is not None, squash_output=policy.squash_output)
    return found


def _optimizers(policy: nn.Module) -> Iterator[th.optim.Optimizer]:
    """The policy's own, or those of its actor and critic; none for ARS."""
    for module in policy.modules():
        optimizer = vars(module).get("optimizer")
        if optimizer is not None:
            yield optimizer
