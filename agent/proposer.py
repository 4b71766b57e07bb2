"""A process beside the training run in which the policy thinks, so that no step waits for it."""

import multiprocessing
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import SimulatedClock
from ..placement.move_cost import MoveCost
from ..placement.placement import Placement
from .threads import one_thread

WARM_UP_OPS = 100


@dataclass(frozen=True, eq=False)
class Request:
    """Everything that a proposal depends on; the same request gives the same proposal.

    Attributes:
        clock: the simulator with the agent's beliefs.
        start: the placement that the run has now.
        move_seconds: seconds that moving each op takes, `float64[n]`.
        pause_s: seconds that any move takes besides.
        horizon_steps: steps that are left to gain from it.
        evaluations: simulated placements to look at.
        seed: of the policy's samples.
        policy_path: weights; the shipped ones if empty.
    """

    clock: SimulatedClock
    start: Placement
    move_seconds: NDArray[np.float64]
    pause_s: float
    horizon_steps: int
    evaluations: int
    seed: int
    policy_path: str = ""

    @property
    def move_cost(self) -> MoveCost:
        """What a move costs each of the steps that are left."""
        steps = self.horizon_steps
        return MoveCost(np.asarray(self.start.devices, np.int64), self.move_seconds / steps, self.pause_s / steps)

    def pause_of(self, devices: NDArray[np.int64]) -> float:
        """Seconds that the run pauses for a move from `start` to `devices`."""
        return self.move_cost.of(devices) * self.horizon_steps


def answer(request: Request) -> Any:
    """The proposal of a request; the planners' answers that it starts from count as evaluations.

    Large graphs are coarsened first; then evaluations are those of groups and those of ops together.
    """
    from .large import is_large, propose_large
    from .pretrained import load_policy
    from .propose import propose_from_plans

    search = propose_large if is_large(request.clock) else propose_from_plans
    return search(
        request.clock,
        request.start,
        policy=load_policy(request.policy_path or None),
        evaluations=request.evaluations,
        seed=request.seed,
        move_cost=request.move_cost,
    )


class Proposer:
    """Answers one request at a time in a process of its own, which ends with this one.

    The process imports nothing of the user's script, so that the script needs no guard around its own start.
    """

    def __init__(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-m", "segue.agent.thinking", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self.busy = False
        self._warm = False

    @property
    def ready(self) -> bool:
        """Whether the process has warmed up; until then it takes time from the run.

        Raises:
            RuntimeError: if the process died.
        """
        return self._warm_by(0.0)

    def _warm_by(self, wait_s: float | None) -> bool:
        if not self._warm and self._connection.poll(wait_s):
            # The first thing that it says.
            self._receive()
            self._warm = True
        return self._warm

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            raise RuntimeError("the proposing process ended unexpectedly") from None

    def ask(self, request: Request) -> None:
        """Start thinking about a request; an answer not yet fetched is dropped."""
        if self.busy:
            self._warm_by(None)
            self._receive()
        self._connection.send(request)
        self.busy = True

    def poll(self, wait_s: float = 0.0) -> Any | None:
        """The proposal, if it is there by now.

        Raises:
            RuntimeError: if the proposal failed or the process died.
        """
        if not self.busy or not self._warm_by(wait_s) or not self._connection.poll(wait_s):
            return None
        self.busy = False
        result = self._receive()
        if isinstance(result, Exception):
            raise RuntimeError(f"the proposing process failed: {result}") from result
        return result

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.terminate()
        self._process.wait(5.0)


def warm_up() -> None:
    """Answer a small request, so that all is imported and compiled before the run has one."""
    from ..placement.costs import make_costs
    from ..placement.graph import make_graph
    from ..placement.presets import preset

    # More ops than groups, so that they are coarsened.
    graph = make_graph("warm-up", [(op - 1, op) for op in range(1, WARM_UP_OPS)], forward_flops=1e8, output_bytes=1e3)
    topology = preset("emulated-2")
    clock = SimulatedClock(graph, topology, make_costs(graph, topology), (1, 1))
    start = Placement(np.zeros(WARM_UP_OPS, np.int64), 2)
    answer(Request(clock, start, np.zeros(WARM_UP_OPS), 0.0, 1, evaluations=200, seed=0))


def serve(connection: Connection) -> None:
    """Warm up, say so, and answer requests until the other end is closed."""
    os.nice(10)
    with one_thread(), suppress(EOFError, ConnectionResetError, BrokenPipeError):
        warm_up()
        connection.send(None)
        while True:
            connection.send(_answer_or_error(connection.recv()))


def _answer_or_error(request: Request) -> Any:
    try:
        return answer(request)
    except Exception as error:
        return RuntimeError(f"{type(error).__name__}: {error}")
