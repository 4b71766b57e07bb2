"""State dicts in the plain model's and the plain optimizer's form, gathered from all workers."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..errors import SegueError
from .state import State


def model_state(state: State, model: nn.Module) -> dict[str, torch.Tensor]:
    """The plain model's `state_dict()`, on the CPU, on every worker."""
    tensors = _collect({name: tensor.detach().cpu() for name, tensor in state.tensors.items()})
    return {key: tensors[state.names[key]] for key in model.state_dict()}


def optimizer_state(state: State, model: nn.Module) -> dict[str, Any]:
    """The plain optimizer's `state_dict()`, on the CPU, on every worker."""
    mine = {
        name: {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in entries.items()}
        for name, entries in state.optimizer_state().items()
    }
    states = _collect(mine)
    record = state.template.state_dict()
    names = _parameter_order(state, model)
    record["state"] = {i: states[name] for i, name in enumerate(names) if name in states}
    return record


def load(state: State, model: nn.Module, model_state: dict[str, Any], optimizer_state: dict[str, Any] | None) -> None:
    """Put a plain model's and optimizer's `state_dict()` into what this worker owns.

    Raises:
        SegueError: if a tensor is missing or has another shape.
    """
    for key, tensor in model.state_dict().items():
        if key not in model_state or model_state[key].shape != tensor.shape:
            got = tuple(model_state[key].shape) if key in model_state else "none"
            raise SegueError(f"state_dict: {key}: expected shape {tuple(tensor.shape)}, got {got}")
    for name in list(state.tensors):
        tensor = model_state.get(name, state.tensors[name])
        state.drop(name)
        state.take(name, tensor)
    entries: dict[str, dict[str, Any]] = {}
    if optimizer_state is not None:
        for mine, theirs in zip(state.template.param_groups, optimizer_state["param_groups"], strict=True):
            mine.update({k: v for k, v in theirs.items() if k != "params"})
        for number, name in enumerate(_parameter_order(state, model)):
            if name in state.tensors and number in optimizer_state["state"]:
                entries[name] = {
                    k: v.clone() if isinstance(v, torch.Tensor) else v
                    for k, v in optimizer_state["state"][number].items()
                }
    state.rebuild_optimizer(entries)


def _parameter_order(state: State, model: nn.Module) -> list[str]:
    """Parameter names in the order of the optimizer's groups, which numbers its state."""
    by_id = {id(p): state.names[n] for n, p in model.named_parameters(remove_duplicate=False)}
    return [by_id[id(p)] for group in state.template.param_groups for p in group["params"]]


def _collect(mine: dict[str, Any]) -> dict[str, Any]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {name: value for part in everyone for name, value in part.items()}
