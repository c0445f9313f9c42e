"""Comparing models by their parameters."""

import torch as th


def parameters(model):
    """All parameters of a model's policy, as copies."""
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert th.equal(first[name], second[name]), name
