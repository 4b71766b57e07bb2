import pytest
import torch

from segue.placement.working_memory import watch_memory

MIB = 1 << 20


@pytest.fixture
def watched(capfd):
    with watch_memory(torch.device("cpu")) as (watch, found):
        with watch("kept"):
            kept = torch.ones(MIB // 4)
        with watch("gone"):
            gone = kept * 2
            del gone
        with watch("nothing"):
            assert kept.sum() > 0
        with watch("inside"):
            # The input is copied to be made contiguous, and the copy released with the call.
            turned = torch.nn.functional.avg_pool2d(kept.view(512, 512).t()[None], 2)
        assert not found
    return found, turned.nbytes, capfd.readouterr()


def test_what_pieces_of_code_allocate_is_told_by_name(watched):
    found, *_ = watched
    assert found["kept"] == (MIB, MIB)
    # Numbers become tensors of a few bytes.
    assert found["gone"].peak == pytest.approx(MIB, abs=256)
    assert found["gone"].kept == 0
    assert found["nothing"].peak < 1024


def test_what_kernels_allocate_for_themselves_counts(watched):
    found, result, _ = watched
    assert found["inside"].peak >= result + MIB
    assert found["inside"].kept == result


def test_watching_says_nothing(watched):
    *_, said = watched
    assert said.out == said.err == ""


def test_where_the_allocator_cannot_be_watched_nothing_is_found():
    with watch_memory(torch.device("meta")) as (watch, found), watch("piece"):
        torch.ones(4, device="meta")
    assert found == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_allocations_are_told_by_name():
    device = torch.device("cuda")
    with watch_memory(device) as (watch, found):
        with watch("kept"):
            kept = torch.ones(MIB, device=device)
        with watch("gone"):
            gone = kept * 2
            del gone
    assert found["kept"] == (4 * MIB, 4 * MIB)
    assert found["gone"] == (4 * MIB, 0)
