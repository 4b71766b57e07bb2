"""`State`: the parameters, buffers and optimizer state that one worker owns, by name."""

import copy
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import SegueError
from ..program import Program, node_inputs


class State:
    """What a worker trains: the tensors of the ops on its device, and an optimizer over them.

    The optimizer is a copy of the user's: same class, same groups and hyperparameters (read again before every update, so
    that learning-rate schedulers keep working), with the worker's own parameters, keyed by name.

    Args:
        program: the captured model.
        model: where initial values come from.
        optimizer: the user's optimizer over `model.parameters()`.
        device: where the tensors live.
    """

    def __init__(self, program: Program, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device):
        self.program = program
        self.device = device
        self.template = optimizer
        self.names = canonical_names(model)
        self.home = homes(program, self.names.values())
        self.tensors: dict[str, torch.Tensor] = {}
        named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        self.initial = {canonical: named[name].detach() for name, canonical in self.names.items()}
        self.group_of = self._groups(model)
        self.optimizer: torch.optim.Optimizer | None = None

    def _groups(self, model: nn.Module) -> dict[str, int]:
        by_id = {id(p): self.names[name] for name, p in model.named_parameters(remove_duplicate=False)}
        groups: dict[str, int] = {}
        for number, group in enumerate(self.template.param_groups):
            for parameter in group["params"]:
                if id(parameter) not in by_id:
                    raise SegueError("optimizer: it holds a parameter that is not the model's")
                groups[by_id[id(parameter)]] = number
        return groups

    def owned_by(self, device: int, devices: Iterable[int]) -> list[str]:
        """Names of the tensors that a device owns under an op-to-device map, in model order."""
        of_op = list(devices)
        return [name for name, op in self.home.items() if of_op[op] == device]

    def take(self, name: str, tensor: torch.Tensor) -> None:
        """Own a tensor from now on; it is copied to the device."""
        own = tensor.detach().to(self.device, copy=True)
        own.requires_grad_(name in self.program.trainable)
        self.tensors[name] = own

    def drop(self, name: str) -> None:
        """Own a tensor no longer."""
        del self.tensors[name]

    def optimizer_state(self) -> dict[str, dict[str, Any]]:
        """Optimizer state by parameter name."""
        if self.optimizer is None:
            return {}
        return {
            name: dict(self.optimizer.state[tensor])
            for name, tensor in self.tensors.items()
            if tensor in self.optimizer.state
        }

    @property
    def counts_on_host(self) -> bool:
        """Whether the optimizer keeps its step counters in host memory, as torch's do unless told otherwise."""
        return not any(group.get("capturable") or group.get("fused") for group in self.template.param_groups)

    def rebuild_optimizer(self, state: dict[str, dict[str, Any]]) -> None:
        """Make the optimizer over the tensors owned now, with the given state by name."""
        groups = []
        for number, group in enumerate(self.template.param_groups):
            mine = [tensor for name, tensor in self.tensors.items() if self.group_of.get(name) == number]
            groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": mine})
        optimizer = copy.copy(self.template)
        optimizer.param_groups = groups
        optimizer.state = defaultdict(dict)
        for name, entries in state.items():
            optimizer.state[self.tensors[name]] = entries
        self.optimizer = optimizer

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradient of every parameter that has one."""
        return {name: tensor.grad for name, tensor in self.tensors.items() if tensor.grad is not None}

    def update(self) -> None:
        """One optimizer step over the gradients there are; they are freed."""
        if self.optimizer is None:
            return
        for mine, theirs in zip(self.optimizer.param_groups, self.template.param_groups, strict=True):
            mine.update({key: value for key, value in theirs.items() if key != "params"})
        self.optimizer.step()
        for tensor in self.tensors.values():
            tensor.grad = None

    def tell_schedulers(self) -> None:
        """Mark the user's optimizer as stepped, or a scheduler over it would warn that it steps too early."""
        self.template._opt_called = True  # pyright: ignore[reportAttributeAccessIssue]

    def nbytes(self) -> int:
        """Bytes of tensors, gradients and optimizer state."""
        total = 0
        for name, tensor in self.tensors.items():
            total += tensor.nbytes * (2 if name in self.program.trainable else 1)
        for entries in self.optimizer_state().values():
            total += sum(value.nbytes for value in entries.values() if isinstance(value, torch.Tensor))
        return total


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every parameter and buffer name -> the first name of that tensor."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in named:
            names[name] = first.setdefault(id(tensor), name)
    return names


def homes(program: Program, names: Iterable[str]) -> dict[str, int]:
    """Tensor name -> the op whose device owns it: its first reader, or op 0 if nothing reads it."""
    uses = _uses(program)
    return {name: uses[name][0] if name in uses else 0 for name in dict.fromkeys(names)}


def _uses(program: Program) -> dict[str, list[int]]:
    """Tensor name -> ops that read it, ascending."""
    uses: dict[str, list[int]] = defaultdict(list)
    for op, node in enumerate(program.nodes):
        for source in node_inputs(node):
            name = program.parameters.get(source.name) or program.buffers.get(source.name)
            if name is not None and op not in uses[name]:
                uses[name].append(op)
    return dict(uses)
