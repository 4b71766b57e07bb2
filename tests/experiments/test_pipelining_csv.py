import csv
from collections import defaultdict

import numpy as np
import pytest
from torch.distributed.pipelining.schedules import _Action, _validate_schedule

from segue.experiments.pipelining_csv import write_pipelining_csv
from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.presets import preset

CHAIN = [(i, i + 1) for i in range(7)]


def clock(edges=CHAIN, microbatches=4, **columns) -> SimulatedClock:
    costs = {"forward_flops": 1e8, "backward_flops": 2e8, "output_bytes": 1e4, **columns}
    graph = make_graph("model", edges, 8, **costs)
    topology = preset("emulated-4")
    return SimulatedClock(graph, topology, make_costs(graph, topology), [1] * microbatches)


def read_as_torch_does(path):
    """The rows as `_PipelineScheduleRuntime._load_csv` parses them."""
    with open(path, newline="") as file:
        return {rank: [_Action.from_str(text) for text in row] for rank, row in enumerate(csv.reader(file))}


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (3, 1, 0, 0)])
def test_torch_reads_the_schedule_back_and_finds_it_valid(tmp_path, order):
    path = tmp_path / "schedule.csv"
    devices = np.repeat(order, 2).astype(np.int64)
    used = sorted(set(order))
    ranks = write_pipelining_csv(path, clock(), devices)
    assert ranks == [f"dev{device}" for device in used]
    actions = read_as_torch_does(path)
    mapping = _validate_schedule(actions, pp_group_size=len(used), num_stages=len(used), num_microbatches=4)
    chain = list(dict.fromkeys(order))
    assert mapping == {stage: used.index(device) for stage, device in enumerate(chain)}
    # Whatever the ranks wait for, they come to an end: run what is ready until nothing is left.
    done, place = set(), defaultdict(int)
    for _ in range(sum(map(len, actions.values()))):
        for rank, row in actions.items():
            while place[rank] < len(row) and _ready(row[place[rank]], done, len(chain)):
                done.add(str(row[place[rank]]))
                place[rank] += 1
    assert all(place[rank] == len(row) for rank, row in actions.items())


def _ready(action, done, stages):
    stage, micro = action.stage_index, action.microbatch_index
    if action.computation_type.value == "F":
        return stage == 0 or f"{stage - 1}F{micro}" in done
    return f"{stage}F{micro}" in done and (stage == stages - 1 or f"{stage + 1}B{micro}" in done)


@pytest.mark.parametrize(
    ("edges", "devices", "reason"),
    [
        (CHAIN, [0, 0, 1, 1, 0, 0, 1, 1], "device dev0 holds 2 stages"),
        ([*CHAIN, (1, 5)], [0, 0, 1, 1, 2, 2, 2, 2], "the stage on dev0 sends to 2 stages"),
        ([(0, 1), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)], [0, 0, 1, 1, 1, 1, 1, 1], "stages that share nothing"),
    ],
)
def test_what_is_no_chain_is_refused(tmp_path, edges, devices, reason):
    with pytest.raises(SegueError, match=reason):
        write_pipelining_csv(tmp_path / "schedule.csv", clock(edges), np.array(devices))
    assert not (tmp_path / "schedule.csv").exists()


def test_a_stage_without_a_backward_is_refused(tmp_path):
    trained = np.array([False, False, *[True] * 6])
    with pytest.raises(SegueError, match="the stage on dev0 has no backward pass"):
        write_pipelining_csv(
            tmp_path / "schedule.csv", clock(requires_grad=trained), np.array([0, 0, 1, 1, 1, 1, 1, 1])
        )
