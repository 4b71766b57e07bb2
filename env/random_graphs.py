"""Random graphs to train and test on: chains with skips, layers, branches, series-parallel."""

from collections.abc import Callable

import numpy as np

from ..placement.costs import ROOFLINE_FLOPS_PER_S
from ..placement.graph import Graph, make_graph

Rng = np.random.Generator
Edges = list[tuple[int, int]]


Family = Callable[[Rng, int], tuple[Edges, list[str]]]


def random_graph(rng: Rng, most_ops: int = 60, family: Family | None = None) -> Graph:
    """A graph of 10 to `most_ops` ops, sizes spread evenly on a logarithmic scale (more if its last block is large).

    Args:
        rng: source of chance.
        most_ops: most ops.
        family: draws edges and modules; by default one of this file's families, but not `wide_branches`.
    """
    num_ops = round(float(np.exp(rng.uniform(np.log(10), np.log(most_ops + 1)))))
    families: tuple[Family, ...] = (_chain_with_skips, _layers, _branches, _series_parallel)
    family = family or families[rng.choice(4, p=[0.3, 0.2, 0.3, 0.2])]
    edges, modules = family(rng, num_ops)
    num_ops = len(modules)
    forward_s = rng.lognormal(0.0, rng.uniform(0.2, 1.5), num_ops)
    forward_s *= np.where(rng.random(num_ops) < rng.uniform(0, 0.5), 0.02, 1.0)  # activations beside layers
    forward_s *= 0.01 / forward_s.mean()
    output = rng.lognormal(0.0, rng.uniform(0.2, 1.2), num_ops)
    output *= np.exp(np.linspace(0, rng.normal(0, 1.5), num_ops))  # feature maps that shrink or grow with depth
    state = rng.lognormal(0.0, rng.uniform(0.5, 2.0), num_ops) * (rng.random(num_ops) < 0.7)
    return make_graph(
        "random",
        edges,
        num_ops,
        modules=modules,
        forward_flops=forward_s * ROOFLINE_FLOPS_PER_S,
        backward_flops=2 * forward_s * ROOFLINE_FLOPS_PER_S,
        output_bytes=1e6 * output / output.mean(),
        saved_bytes=1e6 * output / output.mean() * rng.uniform(1, 3),
        parameter_bytes=1e6 * state / max(state.mean(), 1e-9) * 10 ** rng.uniform(-1, 1),
    )


def _chain_with_skips(rng: Rng, num_ops: int) -> tuple[Edges, list[str]]:
    edges = [(op, op + 1) for op in range(num_ops - 1)]
    reach = int(rng.integers(2, max(3, num_ops // 2)))
    for op in range(num_ops - 2):
        if rng.random() < rng.choice([0.0, 0.1, 0.3]):
            edges.append((op, min(num_ops - 1, op + int(rng.integers(2, reach + 1)))))
    block = int(rng.integers(2, 8))
    return edges, [f"layers.{op // block}" for op in range(num_ops)]


def _layers(rng: Rng, num_ops: int) -> tuple[Edges, list[str]]:
    width = int(rng.integers(2, 7))
    layer = np.sort(rng.integers(0, max(2, num_ops // width), num_ops))
    layer = np.unique(layer, return_inverse=True)[1]
    edges: Edges = []
    for op in range(num_ops):
        earlier = np.flatnonzero(layer == layer[op] - 1)
        if earlier.size:
            count = min(earlier.size, int(rng.integers(1, 3)))
            edges += [(int(source), op) for source in rng.choice(earlier, count, replace=False)]
        if layer[op] > 1 and rng.random() < 0.1:
            edges.append((int(rng.choice(np.flatnonzero(layer < layer[op]))), op))
    return edges, [f"layers.{index}" for index in layer]


def _branches(rng: Rng, num_ops: int) -> tuple[Edges, list[str]]:
    """Blocks of parallel chains from one op to one concatenation, as Inception's, experts', or two towers'."""
    edges: Edges = []
    modules = ["stem"]
    last, block = 0, 0
    deepest = int(rng.integers(2, 5)) if rng.random() < 0.7 else num_ops // 3
    while len(modules) < num_ops - 2:
        last = _add_block(rng, edges, modules, last, block, (2, 5), (1, deepest))
        block += 1
        for _ in range(int(rng.integers(0, 3))):
            edges.append((last, len(modules)))
            last = len(modules)
            modules.append(f"between.{block}")
    return edges, modules


def _series_parallel(rng: Rng, num_ops: int) -> tuple[Edges, list[str]]:
    """Edges replaced again and again by two in a row or two beside each other, each part a module."""
    pairs: list[tuple[float, float, str]] = [(0.0, 1.0, "part")]
    places = [0.0, 1.0]
    parallel = rng.uniform(0.2, 0.6)
    while len(places) < num_ops:
        low, high, part = pairs.pop(int(rng.integers(len(pairs))))
        middle = low + (high - low) * rng.uniform(0.2, 0.8)
        places.append(middle)
        name = part if part.count(".") > 2 else f"{part}.{len(places)}"
        pairs += [(low, middle, name), (middle, high, name)]
        if rng.random() < parallel:
            pairs.append((low, high, part))
    order = np.argsort(places, kind="stable")
    position = {places[op]: rank for rank, op in enumerate(order)}
    modules = ["part"] * len(places)
    for low, high, part in pairs:
        modules[position[high]] = part
        modules[position[low]] = part
    return [(position[low], position[high]) for low, high, _ in pairs], modules


def wide_branches(rng: Rng, num_ops: int) -> tuple[Edges, list[str]]:
    """Blocks of 6 to 10 long parallel chains of unequal length: kept for evaluation, never drawn in training."""
    edges: Edges = []
    modules = ["stem"]
    last = block = 0
    while len(modules) < num_ops:
        last = _add_block(rng, edges, modules, last, block, (6, 10), (3, 8))
        block += 1
    return edges, modules


def _add_block(
    rng: Rng, edges: Edges, modules: list[str], last: int, block: int, branches: tuple[int, int], depth: tuple[int, int]
) -> int:
    """Add parallel chains from op `last` to one op, which is returned; their number and lengths lie within bounds."""
    ends = []
    for branch in range(int(rng.integers(branches[0], branches[1] + 1))):
        previous = last
        for _ in range(int(rng.integers(depth[0], depth[1] + 1))):
            edges.append((previous, len(modules)))
            previous = len(modules)
            modules.append(f"blocks.{block}.branch{branch}")
        ends.append(previous)
    edges += [(end, len(modules)) for end in ends]
    modules.append(f"blocks.{block}")
    return len(modules) - 1
