"""`cheap_plans`: the cheap planners' answers, which the policy starts from and never does worse than."""

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..clock import SimulatedClock
from .manual import CONFIGURATIONS, compute_seconds, speed_split
from .plan import Evaluator, Plan
from .registry import plan

FEWEST = "fastest-devices"
"""Name of the best split over a few of the devices."""
FEW_ORDERS, ORDERS_SHARE = 4, 25
"""Placements that `contiguous` may price: a few in any case, and one for so many evaluations. The policy makes more of the
others than the less promising orders of devices do."""
MANY_DEVICES = 16
"""Beyond them splits over the fastest few are tried, and single devices only with more memory than was too little."""
CUTS, CROSSINGS, CHOICES = 200_000_000, 5_000_000, 300_000
"""What planners' time and memory grow with, and its largest: devices times ops squared and devices squared times ops for
`contiguous`, devices times ops for `heft`."""


def cheap_plans(clock: SimulatedClock, seed: int, evaluations: int) -> list[Plan]:
    """Manual configurations and constructive planners, as many as the evaluations allow, the best first.

    Single devices come first, the fastest before the others; of them the first that fits memory is the best there is.
    Planners that would take minutes on so many ops and devices are left out.

    Args:
        clock: what is to be placed, and where.
        seed: of every planner.
        evaluations: placements that may be priced.
    """
    plans: list[Plan] = []
    left, single, memory = evaluations, True, 0.0
    many = type(clock) is SimulatedClock and clock.topology.num_devices > MANY_DEVICES
    for name in _names(clock):
        if left < 1:
            break
        if name.startswith("single:"):
            own = clock.topology.memory_bytes[clock.topology.index[name.removeprefix("single:")]]
            if not single or (many and own <= memory):
                continue
            memory = max(memory, own)
        most = max(FEW_ORDERS, evaluations // ORDERS_SHARE) if name == "contiguous" else left
        plans.append(plan(name, clock, seed=seed, evaluations=min(left, most)))
        left -= plans[-1].evaluations
        single = single and not plans[-1].feasible
    if many and left:
        plans.append(fastest_devices(clock, left))
    return sorted(plans, key=lambda found: (found.overflow_bytes, found.value_s))


def fastest_devices(clock: SimulatedClock, evaluations: int) -> Plan:
    """The best of `speed-proportional` over the fastest few devices, of numbers that grow by a quarter.

    A pipeline of few microbatches is mostly filled and drained: every slow device that takes part makes it longer.
    """
    begin, evaluator = time.perf_counter(), Evaluator(clock, evaluations)
    fastest, count = by_speed(clock), 2
    while count < clock.topology.num_devices and evaluator.left:
        evaluator(speed_split(clock, np.sort(fastest[:count])))
        count += max(1, count // 4)
    overflow, value = evaluator.best
    return Plan(FEWEST, evaluator.devices, value, overflow, evaluator.used, time.perf_counter() - begin)


def by_speed(clock: SimulatedClock) -> NDArray[np.int64]:
    """The devices, the fastest first, `int64[d]`."""
    seconds = (clock.costs.forward_s + clock.costs.backward_s).sum(axis=0)
    return np.argsort(seconds[clock.costs.device_class], kind="stable")


def _names(clock: SimulatedClock) -> Iterator[str]:
    seconds = compute_seconds(clock).sum(axis=0)
    for device in np.argsort(seconds, kind="stable"):
        yield f"single:{clock.topology.devices[device].name}"
    yield from CONFIGURATIONS
    ops, devices = clock.graph.num_ops, clock.topology.num_devices
    if devices <= MANY_DEVICES:
        yield "interleaved"
    if devices * ops**2 <= CUTS and devices**2 * ops <= CROSSINGS:
        yield "contiguous"
    if devices * ops <= CHOICES:
        yield "heft"
