"""Moving parameters, buffers and optimizer state between workers, between two steps, all or nothing."""

import copy
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..topology import Topology
from .message import Layout, Message
from .state import State
from .transport import Transport
from .vote import Vote

MIB = 2.0**20

Forecast = tuple[np.ndarray, np.ndarray]
"""Bytes of state and of live activations that the clock expects on each device, two `float64[d]`."""


class MoveFailed(RuntimeError):
    """A move was given up; every worker is as it was before."""


@dataclass(frozen=True)
class MoveReport:
    """What a move did.

    Attributes:
        ops: ops that changed device.
        bytes: bytes of parameters, buffers and optimizer state that travelled, over all workers.
        pause_s: seconds between two steps that it took, on the slowest worker.
        link_s: seconds that the bytes need on the slowest link that they took, as the topology has it.
    """

    ops: int
    bytes: int
    pause_s: float
    link_s: float = 0.0

    def __str__(self) -> str:
        return f"moved {self.ops} ops ({self.bytes / MIB:.1f} MiB) in {self.pause_s * 1e3:.0f} ms"


@dataclass
class _Cargo:
    """What travels with one parameter or buffer.

    Attributes:
        layouts: of the tensor (key "") and of the tensors of its optimizer state, by key.
        plain: numbers of its optimizer state.
    """

    layouts: dict[str, Layout]
    plain: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return sum(layout.nbytes for layout in self.layouts.values())


class Migration:
    """One worker's part in a move from one op-to-device map to another.

    It has two phases. In the first everything is made beside what there is: buffers, then the transfers, then the worker's
    state as it will be. A failure in it is kept until the workers vote, and until then a worker that failed still does what
    the others wait for. In the second phase every worker switches, by assignments that cannot fail.

    Args:
        state: what the worker owns.
        transport: how messages travel.
        topology: whose links they take.
        rank: this worker.
        before: device of every op now.
        after: device of every op afterwards.
        look_ahead: what comes first, on every worker for itself; worker 0's has what the clock expects under the new map.
        meanwhile: what else has to be ready for the switch; done while the transfers are under way, by all in step.
    """

    def __init__(
        self,
        state: State,
        transport: Transport,
        topology: Topology,
        rank: int,
        before: list[int],
        after: list[int],
        look_ahead: Callable[[], Forecast | None] = lambda: None,
        meanwhile: Callable[[], None] = lambda: None,
    ):
        self.state = state
        self.transport = transport
        self.topology = topology
        self.rank = rank
        self.look_ahead = look_ahead
        self.meanwhile = meanwhile
        self.moves: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, op in state.home.items():
            if before[op] != after[op]:
                self.moves[before[op], after[op]].append(name)
        self._vote = Vote(MoveFailed)
        self._cargo: dict[str, _Cargo] = {}

    def run(self) -> int:
        """Transfer, agree, and commit; returns the bytes this worker sent.

        Raises:
            MoveFailed: on every worker, if any of them failed; nothing has changed then.
        """
        forecast = self._exchange_manifests()
        with self._vote.attempt("checking memory"):
            self._check_memory(forecast)
        incoming: dict[int, Message] = {}
        outgoing: dict[int, Message] = {}
        with self._vote.attempt("allocating buffers"):
            incoming, outgoing = self._messages()
        self._vote.settle()
        received = self._transfer(incoming, outgoing)
        prepared = self.state
        with self._vote.attempt("committing"):
            prepared = self._prepare(received)
        self._vote.settle()
        switch(self.state, prepared)
        return int(self.transport.sent_bytes.sum())

    def link_s(self) -> float:
        """Seconds that the bytes need on the slowest link (or channel that links share), once `run` knows them."""
        start, channels = self.topology.channels
        taken = np.zeros(int(channels.max(initial=-1)) + 1)
        for (source, target), names in self.moves.items():
            pair = source * self.topology.num_devices + target
            nbytes = sum(self._cargo[name].nbytes for name in names)
            seconds = self.topology.latency_s[source, target] + nbytes * self.topology.seconds_per_byte[source, target]
            taken[channels[start[pair] : start[pair + 1]]] += seconds
        return float(taken.max(initial=0.0))

    def _exchange_manifests(self) -> Forecast | None:
        """Tell every worker what each will send; returns worker 0's forecast."""
        mine: dict[str, _Cargo] = {}
        forecast = None
        with self._vote.attempt("listing what moves"):
            forecast = self.look_ahead()
            mine = self._my_cargo()
        parts = self._vote.gather((mine, forecast))
        self._cargo = {name: cargo for part, _ in parts for name, cargo in part.items()}
        return parts[0][1]

    def _my_cargo(self) -> dict[str, _Cargo]:
        optimizer_state = self.state.optimizer_state()
        mine = {}
        for (source, _), names in self.moves.items():
            for name in names if source == self.rank else ():
                tensors, plain = {"": self.state.tensors[name]}, {}
                for key, value in optimizer_state.get(name, {}).items():
                    (tensors if isinstance(value, torch.Tensor) else plain)[key] = value
                layouts = {key: Layout(tuple(t.shape), t.dtype) for key, t in tensors.items()}
                mine[name] = _Cargo(layouts, plain)
        return mine

    def _check_memory(self, forecast: Forecast | None) -> None:
        """Raise `MoveFailed` if this device would overflow, during the move or in the steps after it."""
        static, live = (0.0, 0.0) if forecast is None else (float(part[self.rank]) for part in forecast)
        arriving, leaving = self._names(target=self.rank), self._names(source=self.rank)
        held = self.state.nbytes()
        after = held + self._bytes(arriving, gradients=True) - self._bytes(leaving, gradients=True)
        self._must_fit("after", max(after, static) + live)
        if arriving:
            # What leaves is given up only when all has arrived; there are no gradients and no activations meanwhile.
            trainable = self.state.program.trainable
            gradients = sum(t.nbytes for name, t in self.state.tensors.items() if name in trainable)
            during = held - gradients + self._bytes(arriving)
            on_device = self.transport.device.type == "cuda"  # messages then pass through its memory too
            self._must_fit("during", during + (self._bytes(arriving + leaving) if on_device else 0))

    def _names(self, source: int | None = None, target: int | None = None) -> list[str]:
        """What moves from or to a device."""
        return [name for (a, b), names in self.moves.items() if a == source or b == target for name in names]

    def _bytes(self, names: list[str], gradients: bool = False) -> float:
        """Bytes of parameters, buffers and optimizer state that move, with room for the gradients if asked."""
        total = 0
        for name in names:
            cargo = self._cargo[name]
            total += cargo.nbytes
            total += cargo.layouts[""].nbytes if gradients and name in self.state.program.trainable else 0
        return total

    def _must_fit(self, when: str, nbytes: float) -> None:
        device = self.topology.devices[self.rank]
        if nbytes > device.memory_bytes:
            raise MemoryError(
                f"device {device.name}: {nbytes:.0f} bytes ({nbytes / MIB:.1f} MiB) needed {when} the move, "
                f"{device.memory_bytes:.0f} ({device.memory_bytes / MIB:.1f} MiB) there"
            )

    def _entries(self, names: list[str]) -> list[tuple[str, str]]:
        """The tensors of a message, each a parameter or buffer (key "") or an entry of its optimizer state."""
        return [(name, key) for name in names for key in self._cargo[name].layouts]

    def _messages(self) -> tuple[dict[int, Message], dict[int, Message]]:
        """One message from each sender, empty, and one for each receiver, filled."""
        optimizer_state = self.state.optimizer_state()
        incoming, outgoing = {}, {}
        for (source, target), names in self.moves.items():
            if target == self.rank:
                layouts = [self._cargo[name].layouts[key] for name, key in self._entries(names)]
                incoming[source] = self.transport.blank(layouts)
            if source == self.rank:
                tensors = [
                    optimizer_state[name][key] if key else self.state.tensors[name].detach()
                    for name, key in self._entries(names)
                ]
                outgoing[target] = self.transport.pack(tensors)
        return incoming, outgoing

    def _transfer(self, incoming: dict[int, Message], outgoing: dict[int, Message]) -> dict[str, dict[str, Any]]:
        """Exchange all messages; returns what arrived, by name and key."""
        received: dict[str, dict[str, Any]] = {}
        self.transport.start_step({})
        sources = list(incoming)
        for _ in range(2):  # what could not be posted is tried once more: another worker waits for it
            with self._vote.attempt("sending"):
                self._post(incoming, outgoing)
        with self._vote.attempt("preparing the next step"):
            self.meanwhile()
        with self._vote.attempt("receiving"):
            for source in sources:
                tensors, arrival = self.transport.receive(source)
                time.sleep(max(0.0, arrival - time.monotonic()))
                for (name, key), tensor in zip(self._entries(self.moves[source, self.rank]), tensors, strict=True):
                    received.setdefault(name, {})[key] = tensor
        with self._vote.attempt("finishing the transfers"):
            self.transport.drain()
        return received

    def _post(self, incoming: dict[int, Message], outgoing: dict[int, Message]) -> None:
        """Start every transfer that has not been started; messages are taken out of the two dicts as they are."""
        for source in list(incoming):
            self.transport.expect(source, source, incoming[source])
            del incoming[source]
        for target in list(outgoing):
            self.transport.dispatch(target, outgoing[target], time.monotonic())
            del outgoing[target]

    def _prepare(self, received: dict[str, dict[str, Any]]) -> State:
        """This worker's state after the move, beside the one that there is; what stays is in both."""
        after = fork(self.state)
        optimizer_state = self.state.optimizer_state()
        for name in self._names(source=self.rank):
            after.drop(name)
            optimizer_state.pop(name, None)
        for name, tensors in received.items():
            after.take(name, tensors.pop(""))
            entries = {**self._cargo[name].plain, **{key: self._entry(key, value) for key, value in tensors.items()}}
            if entries:
                optimizer_state[name] = entries
        after.rebuild_optimizer(optimizer_state)
        if self.state.device.type == "cuda":
            torch.cuda.synchronize(self.state.device)
        return after

    def _entry(self, key: str, value: torch.Tensor) -> torch.Tensor:
        """An entry of the optimizer's state as it is kept; a step counter stays on the host where the optimizer has it."""
        return value.cpu().clone() if key == "step" and self.state.counts_on_host else value.clone()


def fork(state: State) -> State:
    """A state that can be changed without changing the first; the tensors are the same until they are replaced."""
    other = copy.copy(state)
    for key, value in vars(other).items():
        if isinstance(value, dict | list | set):
            setattr(other, key, copy.copy(value))
    return other


def switch(state: State, to: State) -> None:
    """Make `state` what its fork has become, by assignments that cannot fail."""
    vars(state).update(vars(to))
