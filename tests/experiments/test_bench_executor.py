"""Every benchmark of the executor once, as small as it goes: that it runs, and that its tables hold what they say."""

import re

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from segue.experiments.bench_executor import WHAT, main
from segue.experiments.bench_memory import find_allocations
from segue.experiments.turns import median_ratio

TINY = ["--models", "mlp", "--image-size", "8", "--batch-size", "8", "--microbatches", "2", "--rounds", "2"]
EMULATED = ["--emulated-rounds", "1", "--steps", "1"]


def rows(text: str) -> list[list[str]]:
    """Cells of the lines under each table's rule."""
    return [
        re.split(r" {2,}", line.strip()) for line in text.splitlines() if re.match(r"(mlp|products|naps|\s*2 )", line)
    ]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    assert main([*arguments]) == 0
    text = capsys.readouterr().out
    assert f"$ python -m segue.experiments.bench_executor {' '.join(arguments)}" in text
    assert "load average before" in text
    return rows(text)


def test_a_ratio_is_of_rounds_not_of_medians() -> None:
    times = {"a": np.array([1.0, 20.0, 3.0]), "b": np.array([2.0, 10.0, 3.0])}
    assert median_ratio(times, "a", "b") == 1.0


def test_allocations_are_found_with_who_made_them_and_whether_they_last() -> None:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = torch.ones(1 << 18)
        gone = kept * 2
        del gone
        # The deviation is computed beside a mean that is allocated and released within the call.
        torch.nn.functional.layer_norm(kept, (1 << 18,))
    pieces, changes = find_allocations(profiler)
    size = 4 << 18
    ones = [piece for piece in pieces if piece.caller == "aten::ones"]
    assert [(piece.size, piece.temporary) for piece in ones if piece.size == size] == [(size, False)]
    assert ones[0].end == len(changes)
    (product,) = [piece for piece in pieces if piece.caller == "aten::mul" and piece.size == size]
    assert product.end < len(changes)
    assert not product.temporary
    assert any(piece.temporary for piece in pieces if piece.caller == "aten::layer_norm")
    assert np.cumsum(changes).max() >= 2 * size


@pytest.mark.slow
@pytest.mark.quiet
@pytest.mark.timeout(200)
def test_one_device_is_compared_with_plain_pytorch(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = run(capsys, "one-device", *TINY)
    plain, ours, ratio = (float(cell) for cell in row[3:6])
    assert row[:2] == ["mlp", "2 x 4"]
    assert plain > 0
    assert ours > 0
    assert ratio > 0


@pytest.mark.slow
@pytest.mark.quiet
@pytest.mark.timeout(200)
def test_a_chain_is_compared_with_torch_pipelining(capsys: pytest.CaptureFixture[str]) -> None:
    chain, overhead = run(capsys, "pipelining", *TINY, "--ranks", "2", "--chains", "naps")
    assert chain[:4] == ["naps", "2", "2", "1 MiB"]
    # Two naps forward and two backward of 5 ms each are on the way of every microbatch.
    assert min(float(cell) for cell in chain[4:6]) >= 20
    assert overhead[0] == "2"


@pytest.mark.slow
@pytest.mark.quiet
@pytest.mark.timeout(240)
def test_emulated_placements_are_compared_and_their_transfers_told(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate")
    found = run(capsys, "naive", "split", "hidden", *TINY, *EMULATED)
    naive, splits, hidden = found[0], found[1:3], found[3:]
    assert naive[1] == "emulated-4"
    naive_s, simulated_s = float(naive[2]), float(naive[3])
    # Both are of the same declared pace; op times are measured once for each.
    assert naive_s == pytest.approx(simulated_s, rel=0.7)
    assert [row[1] for row in splits] == ["emulated-4-equal", "emulated-4"]
    assert {row[2] for row in hidden} == {"equal-layers", "contiguous", "accelerate-balanced", "agent"}
    for row in hidden:
        assert 0 <= float(row[5].rstrip(" %")) <= 100


@pytest.mark.slow
@pytest.mark.quiet
@pytest.mark.timeout(200)
def test_allocated_memory_stands_beside_the_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "memory", *TINY)
    table, holders = found[:6], found[6:]
    assert [row[1:3] for row in table] == [row[1:3] for row in holders]
    for row in table:
        state, predicted, held = (float(cell) for cell in row[3:6])
        assert state <= predicted
        assert state <= held


def test_everything_that_can_be_asked_for_is_described() -> None:
    from segue.experiments import bench_executor

    assert all(f"    {what} " in (bench_executor.__doc__ or "") for what in WHAT)
