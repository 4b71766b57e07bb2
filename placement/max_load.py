"""`MaxLoadClock`: the load of the busiest device, which is what a pipeline that never runs dry takes for one step."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .clock import Pricing, SimulatedClock, StepReport
from .costs import Costs
from .device_loads import DeviceLoads
from .graph import Graph
from .placement import Placement
from .plain_arrays import plain
from .topology import Topology

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class MaxLoadClock(SimulatedClock):
    """Prices a placement by the largest load of a device: steady-state throughput, not the time of one step.

    A device's load is the seconds in which a step keeps it busy: its ops forward, backward and update, and its messages,
    one after the other: each value once to every device that reads it, each gradient once back, charged to both ends (the
    objective of Tarnawski et al., NeurIPS 2020, on unequal devices and links). Overheads of instructions are left out. A
    device must hold its ops' state and what they save for as many microbatches as 1F1B keeps alive in a pipeline over all
    devices.
    """

    steady = True

    def __init__(self, graph: Graph, topology: Topology, costs: Costs, sizes: Sequence[int] = (1,), run_ahead: int = 1):
        super().__init__(graph, topology, costs, sizes, run_ahead)
        samples = sum(self.sizes) / self.sizes[0]
        live = min(self.microbatches, topology.num_devices + run_ahead)
        count = topology.num_devices
        loads = DeviceLoads(
            samples * (costs.forward_s + costs.backward_s) + costs.update_s,
            costs.device_class.astype(np.int64),
            costs.state_bytes + live * graph.saved_bytes,
            self.edges.out_start,
            self.edges.targets,
            samples * graph.output_bytes,
            float(self.microbatches),
            graph.requires_grad,
            topology.latency_s,
            topology.seconds_per_byte,
            topology.memory_bytes,
            np.zeros(count),
            np.zeros(count),
            np.zeros(count),
            np.zeros(count, np.int64),
        )
        self._loads = plain(loads)

    @property
    def pricing(self) -> Pricing:
        """As `SimulatedClock.pricing`, for the largest load."""
        return *super().pricing[:-1], self._loads

    def step(self, placement: Placement, timeline: bool = False) -> StepReport:
        """Price a placement; `step_time_s` is the largest load, and there is no timeline of a steady state."""
        del timeline
        load, _ = self.evaluate(placement.devices)
        return StepReport(
            step_time_s=load,
            busy_s=self._loads.busy.copy(),
            transfer_s=self._loads.moving.copy(),
            peak_bytes=self._loads.held.copy(),
            capacity_bytes=self.topology.memory_bytes,
            source="simulated",
        )
