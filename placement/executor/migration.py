"""Moving parameters, buffers and optimizer state between workers, between two steps, all or nothing."""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ..topology import Topology
from .state import State
from .transport import Expected, Layout, Transport


class MoveFailed(RuntimeError):
    """A move was given up; every worker is as it was before."""


@dataclass(frozen=True)
class MoveReport:
    """What a move did.

    Attributes:
        ops: ops that changed device.
        bytes: bytes of parameters, buffers and optimizer state that travelled, over all workers.
        pause_s: seconds between two steps that it took, on the slowest worker.
    """

    ops: int
    bytes: int
    pause_s: float


@dataclass
class _Entry:
    """A tensor that moves: a parameter or buffer (`key` is empty), or an entry of a parameter's optimizer state."""

    name: str
    key: str
    layout: Layout


class Migration:
    """One worker's part in a move from one op-to-device map to another.

    Args:
        state: what the worker owns.
        transport: how messages travel.
        topology: whose links they take.
        rank: this worker.
        before: device of every op now.
        after: device of every op afterwards.
    """

    def __init__(
        self, state: State, transport: Transport, topology: Topology, rank: int, before: list[int], after: list[int]
    ):
        self.state = state
        self.transport = transport
        self.topology = topology
        self.rank = rank
        self.moves: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, op in state.home.items():
            if before[op] != after[op]:
                self.moves[before[op], after[op]].append(name)

    def run(self) -> int:
        """Transfer, agree, and commit; returns the bytes this worker sent.

        Raises:
            MoveFailed: on every worker, if any of them failed; nothing has changed then.
        """
        received: dict[str, dict[str, Any]] = {}
        failure, sent = "", 0
        manifest = self._manifest()
        try:
            received, sent = self._transfer(manifest)
        except Exception as error:
            failure = f"worker {self.rank}: {error}"
        failures: list[Any] = [None] * self.topology.num_devices
        dist.all_gather_object(failures, failure)
        if any(failures):
            raise MoveFailed("; ".join(f for f in failures if f))
        self._commit(received)
        return sent

    def _manifest(self) -> dict[str, tuple[list[_Entry], dict[str, Any]]]:
        """For every moving tensor: the tensors that travel with it, and plain numbers of its optimizer state."""
        mine: dict[str, tuple[list[_Entry], dict[str, Any]]] = {}
        optimizer_state = self.state.optimizer_state()
        for (source, _), names in self.moves.items():
            for name in names if source == self.rank else ():
                tensor = self.state.tensors[name]
                entries = [_Entry(name, "", Layout(tuple(tensor.shape), tensor.dtype))]
                plain: dict[str, Any] = {}
                for key, value in optimizer_state.get(name, {}).items():
                    if isinstance(value, torch.Tensor):
                        entries.append(_Entry(name, key, Layout(tuple(value.shape), value.dtype)))
                    else:
                        plain[key] = value
                mine[name] = (entries, plain)
        everyone: list[Any] = [None] * self.topology.num_devices
        dist.all_gather_object(everyone, mine)
        return {name: entry for part in everyone for name, entry in part.items()}

    def _transfer(self, manifest: dict[str, tuple[list[_Entry], dict[str, Any]]]) -> tuple[dict[str, Any], int]:
        optimizer_state = self.state.optimizer_state()

        def entries(names: list[str]) -> list[_Entry]:
            return [entry for name in names for entry in manifest[name][0]]

        incoming = {
            source: [Expected(source, [entry.layout for entry in entries(names)])]
            for (source, target), names in self.moves.items()
            if target == self.rank
        }
        self.transport.start_step(incoming)
        for (source, target), names in self.moves.items():
            if source == self.rank:
                tensors = [
                    optimizer_state[e.name][e.key] if e.key else self.state.tensors[e.name] for e in entries(names)
                ]
                self.transport.send(target, [t.detach() for t in tensors], time.monotonic())
        received: dict[str, dict[str, Any]] = {}
        for source in incoming:
            names = self.moves[source, self.rank]
            tensors, arrival = self.transport.receive(source)
            time.sleep(max(0.0, arrival - time.monotonic()))
            for entry, tensor in zip(entries(names), tensors, strict=True):
                received.setdefault(entry.name, dict(manifest[entry.name][1]))[entry.key] = tensor
        self.transport.finish_step()
        return received, int(self.transport.sent_bytes.sum())

    def _entry(self, key: str, value: Any) -> Any:
        """An entry of the optimizer's state as it is kept; a step counter stays on the host where the optimizer has it."""
        if not isinstance(value, torch.Tensor):
            return value
        return value.cpu().clone() if key == "step" and self.state.counts_on_host else value.clone()

    def _commit(self, received: dict[str, dict[str, Any]]) -> None:
        optimizer_state = self.state.optimizer_state()
        for (source, _), names in self.moves.items():
            for name in names if source == self.rank else ():
                self.state.drop(name)
                optimizer_state.pop(name, None)
        for name, tensors in received.items():
            self.state.take(name, tensors.pop(""))
            if tensors:
                optimizer_state[name] = {key: self._entry(key, value) for key, value in tensors.items()}
        self.state.rebuild_optimizer(optimizer_state)
