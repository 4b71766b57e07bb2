from unittest import mock

import pytest
import torch

from segue.placement.executor.segment import seeded

RAND = torch.ops.aten.rand.default


def test_an_ops_random_numbers_depend_on_seed_and_op_alone() -> None:
    first = seeded(RAND, 3)(7, [5])
    torch.manual_seed(1)
    assert torch.equal(seeded(RAND, 3)(7, [5]), first)
    assert not torch.equal(seeded(RAND, 3)(8, [5]), first)
    assert not torch.equal(seeded(RAND, 4)(7, [5]), first)


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_generator_is_left_as_it_was(fails: bool) -> None:
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    if fails:
        with pytest.raises(RuntimeError, match="negative"):
            seeded(RAND, 3)(7, [-5])
    else:
        seeded(RAND, 3)(7, [5])
    assert torch.equal(torch.rand(4), expected)


def test_what_is_made_on_a_gpu_without_an_argument_there_is_seeded_too() -> None:
    gpus = (torch.Generator(), torch.Generator())
    device = torch.device("cuda", 1)

    def draw(size: int, device: torch.device) -> torch.Tensor:
        return torch.rand(size, generator=gpus[device.index])

    with mock.patch.object(torch.cuda, "default_generators", gpus):
        first = seeded(draw, 3)(7, 5, device=device)
        torch.rand(9, generator=gpus[1])
        assert torch.equal(seeded(draw, 3)(7, 5, device=device), first)
