"""Where every module of a model goes, as a table."""

import numpy as np

from ..placement.clock import SimulatedClock
from .tables import format_table

MIB = 2.0**20
HEADERS = ("module", "ops", "devices", "ms a step", "MiB of state")


def placement_table(clock: SimulatedClock, devices: np.ndarray) -> str:
    """A row for each module that calls ops itself: how many, on which devices, their compute time and bytes of state.

    Args:
        clock: whose costs are shown.
        devices: device of every op, `int64[n]`.
    """
    graph, costs = clock.graph, clock.costs
    ops, column = np.arange(graph.num_ops), costs.device_class[devices]
    samples = sum(clock.sizes) / clock.sizes[0]
    seconds = samples * (costs.forward_s[ops, column] + costs.backward_s[ops, column]) + costs.update_s[ops, column]
    members: dict[str, list[int]] = {}
    for op, module in enumerate(graph.modules):
        members.setdefault(module, []).append(op)
    rows = []
    for module, of in members.items():
        used, counts = np.unique(devices[of], return_counts=True)
        names = [clock.topology.devices[device].name for device in used]
        text = names[0] if len(names) == 1 else ", ".join(f"{n} ({c})" for n, c in zip(names, counts, strict=True))
        share = 1e3 * seconds[of].sum(), costs.state_bytes[of].sum() / MIB
        rows.append((module or "(the model itself)", len(of), text, *(f"{value:.3f}" for value in share)))
    return format_table(rows, HEADERS)
