"""`capture_any`: the graph of any model, by `torch.export` where that works and by tracing a real step elsewhere."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from .capture import capture_program
from .errors import SegueError
from .graph import Graph
from .module_trace import trace_modules
from .program import Program


@dataclass(frozen=True, eq=False)
class Captured:
    """A model's graph and how it was come by.

    Attributes:
        graph: the computation graph.
        program: its executable form; none for a trace, which can be simulated and planned but not executed.
        method: `export` (an op is an aten call) or `trace` (an op is a run of calls of one module).
        reason: why it is not `export`, one line; else empty.
    """

    graph: Graph
    program: Program | None
    method: Literal["export", "trace"]
    reason: str


def capture_any(model: nn.Module, example_inputs: tuple[Any, ...], *, name: str = "", prefix: str = "") -> Captured:
    """Capture a model, op by op if `capture_program` can, else by modules from one real training step.

    Args:
        model: any module; in a training run, the `TrainingStep` around it.
        example_inputs: positional arguments; the first dimension of every tensor is the batch.
        name: the graph's name; by default the module's class.
        prefix: dropped from the front of parameter names and module paths (`model.` for a `TrainingStep`).

    Raises:
        SegueError: if the step fails on these inputs, or depends on values that meta tensors do not have.
    """
    try:
        program = capture_program(model, example_inputs, name=name, prefix=prefix)
    except SegueError as refusal:
        graph = trace_modules(model, example_inputs, name=name, prefix=prefix)
        return Captured(graph, None, "trace", str(refusal))
    return Captured(program.graph, program, "export", "")
