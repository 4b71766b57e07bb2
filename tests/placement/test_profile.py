import pytest
import torch
from torch import nn

from segue.placement.capture import capture_program
from segue.placement.costs import Profile
from segue.placement.profile import measure_profile
from segue.placement.training_step import TrainingStep


def net():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(64, 2),
    )
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def measured():
    model = net()
    model[0].requires_grad_(False)
    step = TrainingStep(model, nn.functional.cross_entropy)
    batch = (torch.randn(4, 3, 6, 6), torch.zeros(4, dtype=torch.long))
    program = capture_program(step, (batch,), prefix="model.")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    done = []
    profile = measure_profile(program, tensors, program.flatten(batch), repeats=2, progress=done.append)
    return program, profile, tensors, before, done


def test_every_op_has_a_time(measured):
    program, profile, *_, done = measured
    assert (profile.forward_s > 0).all()
    assert profile.source == "measured"
    assert done == list(range(program.graph.num_ops))


def test_backward_times_are_where_a_gradient_flows(measured):
    program, profile, *_ = measured
    kinds, grad = program.graph.kinds, program.graph.requires_grad
    assert not grad[kinds.index("conv2d")]
    assert grad[kinds.index("linear")]
    assert (profile.backward_s[~grad] == 0).all()
    assert (profile.backward_s[grad] > 0).all()


def test_updates_cost_where_parameters_are_trained(measured):
    program, profile, *_ = measured
    assert ((profile.update_s > 0) == (program.graph.parameter_bytes > 0)).all()


def test_measuring_changes_no_parameter_and_no_buffer(measured):
    _, _, tensors, before, _ = measured
    assert set(before) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.grad is None


def test_a_measured_profile_survives_its_file(measured, tmp_path):
    program, profile, *_ = measured
    profile.save(tmp_path / "profile.json", program.graph)
    assert Profile.load(tmp_path / "profile.json", program.graph).forward_s.tolist() == profile.forward_s.tolist()


def test_ops_work_in_their_gradients_and_in_what_their_kernels_take(measured):
    program, profile, *_ = measured
    graph, working = program.graph, profile.working_bytes
    relu, flatten, linear = (graph.kinds.index(kind) for kind in ("relu", "flatten", "linear"))
    # The gradient of the result, and that of the input, which a view shares with it.
    assert working[relu] == 2 * graph.output_bytes[relu]
    assert working[flatten] == graph.output_bytes[flatten]
    assert working[linear] >= graph.output_bytes[linear] + 4 * 64 * 4 + graph.parameter_bytes[linear]
