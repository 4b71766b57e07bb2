"""`file:PATH`: a placement that somebody has written down."""

from collections.abc import Callable

import numpy as np

from ..device_map import CONTENT, placement_of
from ..files import read_object
from ..placement import Placement
from .plan import Evaluator


def from_file(path: str) -> Callable[[Evaluator, np.random.Generator], None]:
    """A planner that prices the placement in a file: a `segue.placement` or Hugging Face's `device_map`, both JSON.

    Raises:
        SegueError: at once if the file cannot be read or is no JSON object, else when it is priced, naming the file, the
            field or module, and the reason.
    """
    record = read_object(path, CONTENT)

    def planner(evaluator: Evaluator, rng: np.random.Generator) -> None:
        del rng
        graph, topology = evaluator.clock.graph, evaluator.clock.topology
        if str(record.get("format")).startswith("segue."):
            devices = Placement.from_record(record, graph, topology, path).devices
        else:
            devices = placement_of(record, graph, topology, path)
        evaluator(devices)

    return planner
