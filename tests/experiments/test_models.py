import pytest
import torch
from torch import nn

from segue.experiments.models import MODELS, build_model, load_user_model
from segue.placement.capture import capture_program
from segue.placement.errors import SegueError
from segue.placement.training_step import TrainingStep

USER_FILE = """
import torch
from helper import WIDTH

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.linear(x).mean()

def make():
    return Net(), (torch.randn(4, WIDTH),)

def alone():
    return Net()

def broken():
    raise RuntimeError("no weights")
"""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 4)])
def test_zoo_models_classify_images(name, channels, classes):
    model = build_model(name, 32, channels, classes, seed=0)
    assert model.training
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, classes)


@pytest.mark.parametrize("name", MODELS)
def test_zoo_models_are_captured(name):
    step = TrainingStep(build_model(name), nn.CrossEntropyLoss())
    batch = (torch.randn(4, 1, 32, 32), torch.randint(10, (4,)))
    graph = capture_program(step, (batch,), name=name, prefix="model.").graph
    parameters = sum(p.numel() * p.element_size() for p in step.parameters())
    assert graph.parameter_bytes.sum() == parameters
    assert graph.batch_size == 4


def test_inception_has_parallel_branches():
    step = TrainingStep(build_model("inception"), nn.CrossEntropyLoss())
    graph = capture_program(step, ((torch.randn(4, 1, 32, 32), torch.randint(10, (4,))),)).graph
    inputs = [int((graph.edges[:, 1] == op).sum()) for op, kind in enumerate(graph.kinds) if kind == "cat"]
    assert inputs.count(4) == 7
    assert inputs.count(3) == 2


def test_weights_depend_on_the_seed_alone():
    state = torch.random.get_rng_state()
    first, second, other = (build_model("mlp", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_an_unknown_model_says_what_is_known():
    with pytest.raises(SegueError, match="model 'alexnet': no such model; known: inception, resnet, vgg, mlp"):
        build_model("alexnet")


def test_a_user_model_is_loaded_with_its_neighbours(tmp_path):
    (tmp_path / "user_net.py").write_text(USER_FILE)
    (tmp_path / "helper.py").write_text("WIDTH = 7\n")
    model, batch = load_user_model(f"{tmp_path}/user_net.py:make")
    assert model(*batch).shape == ()
    for function, reason in (
        ("alone", r"must return \(nn.Module, example_batch\), got Net"),
        ("broken", "raised RuntimeError: no weights"),
        ("absent", "has no function 'absent'"),
    ):
        with pytest.raises(SegueError, match=reason):
            load_user_model(f"{tmp_path}/user_net.py:{function}")
    with pytest.raises(SegueError, match="no such file"):
        load_user_model(f"{tmp_path}/other.py:make")
    with pytest.raises(SegueError, match=r"expected path/to/file\.py:function"):
        load_user_model(f"{tmp_path}/user_net.py")
