"""A linear chain on several ranks: the executor against `torch.distributed.pipelining` (1F1B, gloo) at the same split.

Both run in the same processes in turns, on the same cores. Chains of three kinds:
- `products`: each stage multiplies matrices, some 10 ms forward; a core for each rank is needed for these to overlap;
- `naps`: each stage sleeps instead, so that any number of ranks overlap on any machine, and what is left besides the sleep is
  what messages and schedule cost;
- `tiny`: next to nothing is computed: what remains is the overhead for each stage and microbatch.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from ..placement.cores import usable_cores
from ..placement.errors import SegueError
from ..placement.executor import Executor, launch
from ..placement.graph import Graph
from ..placement.placement import Placement, colocate
from ..placement.topology import Device, Topology, uniform_links
from .turns import Floats, median_ratio, take_turns

HEADERS = ("chain", "ranks", "microbatches", "activations", "pipelining (ms)", "executor (ms)", "ratio", "quartiles")
OVERHEAD_HEADERS = ("ranks", "pipelining (µs)", "executor (µs)", "ratio")
NAP_S = 5e-3
FEW, MANY = 4, 20
"""Microbatches between which the overhead of one more is told."""


@dataclass(frozen=True)
class Chain:
    """A chain to run.

    Attributes:
        kind: `products`, `naps` or `tiny`.
        ranks: workers, a stage each.
        microbatches: parts of a batch.
        rounds: steps of each of the two that count.
    """

    kind: str
    ranks: int
    microbatches: int
    rounds: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of one microbatch's activations, float32: a MiB, or next to nothing."""
        return (4, 16) if self.kind == "tiny" else (256, 1024)

    def model(self) -> nn.Sequential:
        """A block for each rank; the same weights on every worker."""
        torch.manual_seed(0)
        width = self.shape[1]
        blocks = [Nap(NAP_S) if self.kind == "naps" else nn.Linear(width, width) for _ in range(self.ranks)]
        return nn.Sequential(*blocks)


@torch.library.custom_op("segue_bench::nap", mutates_args=())
def nap(x: torch.Tensor, seconds: float) -> torch.Tensor:
    """The same values, after a sleep."""
    time.sleep(seconds)
    return x.clone()


@nap.register_fake
def _(x: torch.Tensor, seconds: float) -> torch.Tensor:
    del seconds
    return torch.empty_like(x)


def _remember(ctx: Any, inputs: tuple[torch.Tensor, float], output: torch.Tensor) -> None:
    del output
    ctx.seconds = inputs[1]


def _nap_back(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    return nap(grad, ctx.seconds), None


nap.register_autograd(_nap_back, setup_context=_remember)


class Nap(nn.Module):
    """Sleeps forward and backward; a scale makes it trainable."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, scaled."""
        return nap(x * self.scale, self.seconds)


def chain_row(chain: Chain) -> tuple[Any, ...]:
    """A row of `HEADERS`."""
    times = run_chain(chain)
    ratios = np.percentile(times["executor"] / times["pipelining"], [25, 75])
    size = 4 * np.prod(chain.shape) / 2**20
    return (
        chain.kind,
        chain.ranks,
        chain.microbatches,
        f"{size:g} MiB" if size >= 1 else f"{size * 2**20:g} B",
        f"{1e3 * np.median(times['pipelining']):.2f}",
        f"{1e3 * np.median(times['executor']):.2f}",
        f"{median_ratio(times, 'executor', 'pipelining'):.3f}",
        f"{ratios[0]:.3f} to {ratios[1]:.3f}",
    )


def overhead_row(ranks: int, rounds: int) -> tuple[Any, ...]:
    """A row of `OVERHEAD_HEADERS`: seconds that one more microbatch of tiny ops costs a stage, forward and backward."""
    few, many = (run_chain(Chain("tiny", ranks, microbatches, rounds)) for microbatches in (FEW, MANY))
    each = {way: float(np.median(many[way]) - np.median(few[way])) / (MANY - FEW) for way in few}
    return (
        ranks,
        f"{1e6 * each['pipelining']:.0f}",
        f"{1e6 * each['executor']:.0f}",
        f"{each['executor'] / each['pipelining']:.2f}",
    )


def run_chain(chain: Chain) -> dict[str, Floats]:
    """Seconds of every round of `pipelining` and `executor`.

    Raises:
        SegueError: if the two do not train the same.
    """
    cores = usable_cores()
    devices = tuple(Device(f"core{i}", "cpu", 64e9, cores=(cores[i % len(cores)],)) for i in range(chain.ranks))
    topology = Topology("cores", devices, uniform_links([d.name for d in devices], 1e-4, 1e9))
    return launch(_work, topology, chain, topology)[0]


def _work(chain: Chain, topology: Topology) -> dict[str, Floats]:
    rows, width = chain.shape
    batch = torch.randn(chain.microbatches * rows, width), torch.zeros(chain.microbatches * rows, width)
    dist.broadcast(batch[0], src=0)
    executor = _executor(chain, topology, batch)
    pipeline = _Pipeline(chain, batch)
    ours, theirs = executor.step(batch), pipeline.step()
    if abs(ours - theirs) > 1e-4 * abs(theirs):
        raise SegueError(f"{chain.kind}: the executor's first loss is {ours}, torch pipelining's {theirs}")
    return take_turns({"pipelining": pipeline.step, "executor": lambda: executor.step(batch)}, chain.rounds)


def _executor(chain: Chain, topology: Topology, batch: tuple[torch.Tensor, torch.Tensor]) -> Executor:
    model = chain.model()
    executor = Executor(
        model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-6),
        loss_fn=nn.MSELoss(),
        example_batch=batch,
        topology=topology,
        microbatches=chain.microbatches,
    )
    executor.apply(Placement(_split(executor.graph, chain.ranks), chain.microbatches))
    return executor


def _split(graph: Graph, ranks: int) -> Any:
    """A block for each rank, the loss with the last; ops of no block go with the one before them."""
    blocks = [int(path.split(".")[-1]) if path.split(".")[-1].isdigit() else 0 for path in graph.modules]
    devices = np.maximum.accumulate(np.array(blocks, np.int64))
    if devices.max() != ranks - 1:
        raise SegueError(f"chain: {devices.max() + 1} blocks found, expected {ranks}")
    return colocate(devices, graph)


class _Pipeline:
    """One rank of torch's pipeline."""

    def __init__(self, chain: Chain, batch: tuple[torch.Tensor, torch.Tensor]):
        rank = dist.get_rank()
        block = chain.model()[rank]
        stage = PipelineStage(block, rank, chain.ranks, torch.device("cpu"))
        self.schedule = Schedule1F1B(stage, chain.microbatches, loss_fn=nn.MSELoss())
        self.optimizer = torch.optim.SGD(block.parameters(), lr=1e-6)
        self.inputs = [batch[0]] if rank == 0 else []
        self.target = batch[1] if rank == chain.ranks - 1 else None
        self.last = chain.ranks - 1

    def step(self) -> float:
        """One training step; returns the mean loss on every rank, as the executor does."""
        losses: list[torch.Tensor] = []
        self.schedule.step(*self.inputs, target=self.target, losses=losses, return_outputs=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mean = torch.stack(losses).detach().mean() if losses else torch.zeros(())
        dist.broadcast(mean, src=self.last)
        return mean.item()
