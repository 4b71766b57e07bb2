"""`Teachers`: what the scenarios of a chunk teach, worked out by several processes."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from threadpoolctl import threadpool_limits

from ..env.observation import step_features
from ..env.state import allowed_moves, make_state
from ..env.vector import Sampler
from ..placement.executor.forked import start_server
from ..placement.placement import Placement
from .imitation import ImitationSettings
from .network import PlacementNetwork
from .scoring import score_states
from .teacher import Ints, Lesson, Rng, Sample, prepare, teach


class Teachers:
    """Processes that solve scenarios; what they teach does not depend on how many there are.

    Args:
        sampler: draws the scenarios; picklable if there are several processes.
        settings: what is taught of each.
        seed: of all scenarios.
        workers: processes; with 1 it is this one that works.
    """

    def __init__(self, sampler: Sampler, settings: ImitationSettings, seed: int, workers: int = 1):
        self.settings, self.work = settings, partial(_samples, sampler, settings, seed)
        self.pool = None
        if workers > 1:
            # There is one server for all; whoever needs it first has to start it as the executor's workers want it.
            start_server([__name__])
            context = multiprocessing.get_context("forkserver")
            self.pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(self.work,))

    def __enter__(self) -> "Teachers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def samples(self, network: PlacementNetwork, index: int) -> Iterator[Sample]:
        """What the scenarios of chunk `index` teach, in their order.

        Args:
            network: whose own moves lead to some of the states, but in the first chunk.
            index: of the chunk.
        """
        # As bytes: torch would hand every tensor to every worker through a file descriptor of its own.
        student = (network.arguments, save(network.state_dict())) if index > 0 else None
        given = [(student, index, number) for number in range(self.settings.scenarios)]
        made = (self.work(*row) for row in given) if self.pool is None else self.pool.map(_in_worker, given)
        for samples in made:
            yield from samples


_Student = tuple[dict[str, Any], bytes]
_work: list[Callable[..., list[Sample]]] = []


def _begin(work: Callable[..., list[Sample]]) -> None:
    """A worker's life begins; Ctrl-C reaches it too, but what it means is the parent's to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threadpool_limits(1, user_api="blas")
    _work[:] = [work]


def _in_worker(given: tuple[_Student | None, int, int]) -> list[Sample]:
    return _work[0](*given)


def _samples(
    sampler: Sampler,
    settings: ImitationSettings,
    seed: int,
    student: _Student | None,
    index: int,
    number: int,
) -> list[Sample]:
    """What one scenario teaches; its random numbers are its own."""
    rng = np.random.default_rng((seed, index, number))
    lesson = prepare(sampler(rng), int(rng.choice(settings.max_groups)), rng, settings.teacher)
    states = list(lesson.states)
    if student is not None:
        arguments, weights = student
        network = PlacementNetwork(**arguments).eval()
        network.load_state_dict(load(weights))
        states += walk(network, lesson, 3 * settings.own_states, rng)[::3]
    taught = (teach(lesson, devices, rng, settings.teacher) for devices in states)
    return [sample for sample in taught if sample is not None]


def walk(network: PlacementNetwork, lesson: Lesson, steps: int, rng: Rng) -> list[Ints]:
    """Placements that moves drawn from the network lead to, from the lesson's start."""
    problem, clock, devices = lesson.problem, lesson.clock, lesson.start
    start_s = clock.step_time(devices)
    best_s, places = start_s, []
    for taken in range(steps):
        state = make_state(problem, devices, clock.step(Placement(devices, clock.microbatches)))
        best_s = min(best_s, state.report.step_time_s)
        allowed = allowed_moves(state).ravel()
        if not allowed.any():
            break
        step = step_features(state, start_s, best_s, 0.0, taken / steps)
        logits = score_states(network, [state], [step])[0].logits[0].numpy().ravel() + rng.gumbel(size=len(allowed))
        unit, device = divmod(int(np.where(allowed, logits, -np.inf).argmax()), problem.num_devices)
        devices = state.moved(unit, device)
        places.append(devices)
    return places
