"""ONNX export: a policy's deterministic action, as ``predict`` gives it, for run-times without Python or PyTorch."""

from __future__ import annotations

import contextlib
import importlib
import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_prune_robust.network import Array

Arrays = dict[str, Array]
RECURRENT = ("hidden_state", "cell_state", "episode_start")


def export_onnx(
    model: BaseAlgorithm | BasePolicy, path: str | Path, vec_normalize: VecNormalize | str | Path | None = None
) -> Path:
    """
    Write a policy as an ONNX file that gives the action of ``model.predict(observation, deterministic=True)``.

    The whole of ``predict`` is in it: scaling of images, one-hot encodings, the network, the mode of the distribution, and for
    Box actions clipping to the action space, or unscaling to it where the policy squashes. What has been written is run in
    onnxruntime and compared with ``predict`` before this returns.

    Inputs: ``observation``, or one input for each key of a Dict; shapes ``(batch, *shape)`` and types are those of the
    model's observation space (images channel first, as SB3 keeps them; Discrete ``(batch,)``). Recurrent policies also take
    ``hidden_state`` and ``cell_state``, of shape ``(layers, batch, size)``, zero at first, and ``episode_start`` ``(batch,)``,
    1.0 where an episode begins, else 0.0. Output: ``action``, ``(batch, *action shape)``, float32 for Box; recurrent policies
    also give ``next_hidden_state`` and ``next_cell_state``. MaskablePPO is exported as it predicts without action masks.

    :param model: any SB3 or sb3-contrib model, or a policy
    :param path: the file to write
    :param vec_normalize: observation statistics to be applied first, so that the inputs are raw observations: the VecNormalize
        itself or its file (a pickle: open only your own); ``None``: inputs are observations as the policy receives them
    :return: the path
    :raises ImportError: without the packages of the extra ``deploy``
    :raises ValueError: for statistics of other observations
    :raises RuntimeError: if the file does not act as ``predict`` does
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _require(name)
    policy = model.policy if isinstance(model, BaseAlgorithm) else model
    if not isinstance(policy, BasePolicy):
        raise TypeError(f"model must be an SB3 model or policy, got {type(model).__name__}")
    statistics = load_statistics(vec_normalize)
    check_statistics(statistics, policy.observation_space)
    policy.set_training_mode(False)
    graph = (_RecurrentPredict if _is_recurrent(policy) else _Predict)(policy, statistics)
    _write(graph, Path(path))
    _verify(policy, statistics, Path(path))
    return Path(path)


def _require(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        known = "pip install onnx onnxscript onnxruntime"
        raise ImportError(f"export_onnx needs {name}, which is not installed: {known}") from error


def load_statistics(vec_normalize: Any) -> VecNormalize | None:
    """
    :param vec_normalize: observation statistics or their file
    :return: the statistics; ``None`` if there are none, or they leave observations as they are
    :raises ValueError: if the file holds something else
    """
    if isinstance(vec_normalize, (str, Path)):
        with open(vec_normalize, "rb") as file:
            vec_normalize = pickle.load(file)
    if vec_normalize is not None and not isinstance(vec_normalize, VecNormalize):
        raise ValueError(f"vec_normalize must be a VecNormalize or its file, got a {type(vec_normalize).__name__}")
    return vec_normalize if vec_normalize is not None and vec_normalize.norm_obs else None


def check_statistics(statistics: VecNormalize | None, space: spaces.Space[Any]) -> None:
    """
    :param statistics: observation statistics
    :param space: the observation space of the policy
    :raises ValueError: unless they are of such observations
    """
    if statistics is None:
        return
    theirs = {name: rms.mean.shape for name, rms in _moments(statistics).items()}
    ours = {name: part.shape for name, part in parts(space).items() if name in theirs}
    if theirs != ours:
        raise ValueError(f"vec_normalize holds statistics of other observations: shapes {theirs}, the policy observes {space}")


def parts(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """The inputs by name: the keys of a Dict, or ``observation``."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}


def _moments(statistics: VecNormalize) -> dict[str, Any]:
    moments: Any = statistics.obs_rms  # SB3's hint leaves out Dict observations
    if isinstance(moments, dict):
        return {name: moments[name] for name in statistics.norm_obs_keys or ()}
    return {"observation": moments}


def _is_recurrent(policy: BasePolicy) -> bool:
    return hasattr(policy, "lstm_actor")


class _Predict(nn.Module):
    """``BasePolicy.predict`` on tensors."""

    extra: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("action",)

    def __init__(self, policy: BasePolicy, statistics: VecNormalize | None) -> None:
        super().__init__()
        self.policy, self.statistics = policy, statistics
        self.names = tuple(parts(policy.observation_space))

    def forward(self, *inputs: th.Tensor) -> Any:
        return self.to_action_space(self.policy._predict(self.observe(inputs), deterministic=True))

    def observe(self, inputs: tuple[th.Tensor, ...]) -> Any:
        """The observation as the policy takes it up."""
        observation = dict(zip(self.names, inputs, strict=True))
        if self.statistics is not None:
            for name, moments in _moments(self.statistics).items():
                observation[name] = _normalize(observation[name], moments, self.statistics)
        return observation if isinstance(self.policy.observation_space, spaces.Dict) else observation["observation"]

    def to_action_space(self, actions: th.Tensor) -> th.Tensor:
        space = self.policy.action_space
        actions = actions.reshape((-1, *(space.shape or ())))
        if not isinstance(space, spaces.Box):
            return actions
        low, high = (th.as_tensor(bound, dtype=th.float32, device=actions.device) for bound in (space.low, space.high))
        return low + 0.5 * (actions + 1.0) * (high - low) if self.policy.squash_output else actions.clamp(low, high)


def _normalize(observation: th.Tensor, moments: Any, statistics: VecNormalize) -> th.Tensor:
    """In float64 and then rounded, as VecNormalize does it."""
    mean, deviation = moments.mean, np.sqrt(moments.var + statistics.epsilon)
    mean, deviation = (th.as_tensor(array, dtype=th.float64, device=observation.device) for array in (mean, deviation))
    return ((observation.double() - mean) / deviation).clamp(-statistics.clip_obs, statistics.clip_obs).float()


class _RecurrentPredict(_Predict):
    """One step of a recurrent policy: SB3's own handles sequences, with branches on values that no graph can hold."""

    extra = RECURRENT
    outputs = ("action", "next_hidden_state", "next_cell_state")

    def forward(self, *inputs: th.Tensor) -> Any:
        *seen, hidden, cell, start = inputs
        policy: Any = self.policy
        features = BasePolicy.extract_features(policy, self.observe(tuple(seen)), policy.pi_features_extractor)
        going_on = (1.0 - start).view(1, -1, 1)
        latent, (hidden, cell) = policy.lstm_actor(features.unsqueeze(0), (going_on * hidden, going_on * cell))
        distribution = policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(latent.squeeze(0)))
        return self.to_action_space(distribution.get_actions(deterministic=True)), hidden, cell


def _write(graph: _Predict, path: Path) -> None:
    names = (*graph.names, *graph.extra)
    examples = _examples(graph.policy, n=3, seed=0)
    tensors = tuple(th.as_tensor(examples[name], device=graph.policy.device) for name in names)
    batch = th.export.Dim("batch")
    dynamic = tuple({1 if name in RECURRENT[:2] else 0: batch} for name in names)
    with _quietly(), th.no_grad():
        th.onnx.export(
            graph,
            tensors,
            path,
            input_names=names,
            output_names=graph.outputs,
            dynamic_shapes=(dynamic,),
            external_data=False,
            dynamo=True,
            verbose=False,
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's warnings, and without distributions' checks of their arguments, which are branches on values."""
    checks, log = th.distributions.Distribution._validate_args, logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        th.distributions.Distribution.set_default_validate_args(checks)
        log.setLevel(level)


def _examples(policy: BasePolicy, n: int, seed: int) -> Arrays:
    """Random inputs of a batch of ``n``; ``batch`` of one would be taken for a constant."""
    found = {}
    for name, space in parts(policy.observation_space).items():
        space.seed(seed)
        found[name] = np.stack([np.asarray(space.sample()) for _ in range(n)])
    if _is_recurrent(policy):
        rng = np.random.default_rng(seed)
        layers, _, size = _lstm_shape(policy)
        found |= {name: rng.normal(size=(layers, n, size)).astype(np.float32) for name in RECURRENT[:2]}
        found["episode_start"] = (np.arange(n) % 3 == 2).astype(np.float32)
    return found


def _lstm_shape(policy: Any) -> tuple[int, int, int]:
    return policy.lstm_hidden_state_shape


def _verify(policy: BasePolicy, statistics: VecNormalize | None, path: Path) -> None:
    inputs = _examples(policy, n=8, seed=1)
    written = _require("onnxruntime").InferenceSession(path).run(None, inputs)[0]
    expected = _predicted(policy, statistics, inputs)
    if written.shape != expected.shape or not np.allclose(written, expected, rtol=1e-4, atol=1e-4):
        path.unlink()
        raise RuntimeError(
            f"the ONNX file of {type(policy).__name__} does not give the actions of predict(deterministic=True), and has been "
            f"removed; on random observations predict gives {expected.tolist()}, the file {written.tolist()}"
        )


def _predicted(policy: BasePolicy, statistics: VecNormalize | None, inputs: Mapping[str, Array]) -> Array:
    observation: Any = {name: inputs[name] for name in parts(policy.observation_space)}
    if not isinstance(policy.observation_space, spaces.Dict):
        observation = observation["observation"]
    if statistics is not None:
        observation = statistics.normalize_obs(observation)
    if not _is_recurrent(policy):
        return policy.predict(observation, deterministic=True)[0]
    state = (inputs["hidden_state"], inputs["cell_state"])
    return policy.predict(observation, state, inputs["episode_start"], deterministic=True)[0]
