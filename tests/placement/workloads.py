"""Workloads for tests: small random ones, and where the public benchmark lies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT.parent / "shared" / "benchmarks" / "operator_placement"

needs_benchmark = pytest.mark.skipif(
    not BENCHMARK.is_dir(), reason=f"the public workloads are not beside the checkout ({BENCHMARK})"
)


def random_record(seed: int, count: int = 6, accelerators: int = 2, **fields: Any) -> dict[str, Any]:
    """A workload in the benchmark's JSON: a random graph with colours and a node that only a CPU can run."""
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 4, count).tolist()
    nodes = [
        {
            "id": 10 * node + 3,
            "supportedOnFpga": int(node != count - 2),
            "cpuLatency": float(rng.integers(0, 40)),
            "fpgaLatency": float(rng.integers(0, 10)),
            "isBackwardNode": 0,
            "size": float(rng.integers(0, 5)),
            **({"colorClass": 7} if node in (0, 1) else {}),
        }
        for node in range(count)
    ]
    edges = [
        {"sourceId": nodes[a]["id"], "destId": nodes[b]["id"], "cost": costs[a]}
        for a in range(count)
        for b in range(a + 1, count)
        if rng.random() < 0.4
    ]
    machine = {"maxSizePerFPGA": 9.0, "maxFPGAs": accelerators, "maxCPUs": 1}
    return {**machine, "nodes": nodes, "edges": edges, **fields}
