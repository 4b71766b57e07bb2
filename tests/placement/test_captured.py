import pytest
import torch
from torch import nn

from segue.placement.captured import capture_any
from segue.placement.errors import SegueError
from segue.placement.training_step import TrainingStep


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.first(x)
        return self.second(x.relu() if x.sum() > 0 else x)


class TwiceNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn(x) + self.bn(x * 2)


def captured(model, device="cpu"):
    batch = (torch.randn(4, 3, device=device), torch.zeros(4, dtype=torch.long, device=device))
    return capture_any(TrainingStep(model.to(device), nn.CrossEntropyLoss()), (batch,), name="net", prefix="model.")


def test_a_model_that_can_be_exported_comes_with_its_program():
    got = captured(nn.Linear(3, 2))
    assert (got.method, got.reason) == ("export", "")
    assert got.program is not None
    assert got.program.graph is got.graph
    assert got.graph.kinds == ("linear", "cross_entropy_loss")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Branching(), "torch.export cannot trace it: Could not guard on data-dependent expression"),
        (TwiceNormed(), "module bn: its buffer num_batches_tracked is updated by 2 ops"),
    ],
)
def test_any_other_is_traced_and_says_why(model, reason, capfd):
    got = captured(model)
    assert capfd.readouterr().err == ""
    assert (got.method, got.program, got.graph.name) == ("trace", None, "net")
    assert reason in got.reason
    assert "\n" not in got.reason
    assert got.graph.parameter_bytes.sum() == sum(p.nbytes for p in model.parameters())


def test_a_model_that_needs_values_cannot_be_captured_on_the_meta_device():
    with pytest.raises(
        SegueError, match="depends on values, which the meta device does not have; give it real tensors"
    ):
        captured(Branching(), "meta")
