import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segue.placement.capture import capture_program
from segue.placement.errors import SegueError
from tests.placement.test_capture import Lambda, run


def gradients(loss, model):
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if grad is None else grad for grad in grads]


def check(forward, samples=5):
    """The captured ops give the model's loss, gradients and buffers, for another batch size than the example's.

    Gradients may be summed in another order.
    """
    torch.manual_seed(0)
    model = Lambda(forward)
    reference = copy.deepcopy(model)
    program = capture_program(model, (torch.randn(4, 3),))
    x = torch.randn(samples, 3)
    loss, expected = run(program, model, x.clone()), reference(x.clone())
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    for got, wanted in zip(gradients(loss, model), gradients(expected, reference), strict=True):
        torch.testing.assert_close(got, wanted)
    for got, wanted in zip(model.buffers(), reference.buffers(), strict=True):
        assert torch.equal(got, wanted)
    return program


def detached_weights(m, x):
    h = m.lin(x)
    with torch.no_grad():
        scores = torch.softmax(m.other(h) * m.lin.weight.sum(), -1)
    return (h * scores).sum()


def gradient_within(m, x):
    with torch.no_grad():
        h = m.lin(x)
        with torch.enable_grad():
            h = m.other(h) * m.lin.bias
        h = h.tanh()
    return (m.lin(x) * h).sum()


def tuple_from_outside(m, x):
    values, places = m.lin(x).max(1)
    with torch.no_grad():
        gate = (values > 0) * places
    return (values * gate).sum()


def two_regions(m, x):
    h = m.lin(x)
    with torch.no_grad():
        a = h * 2
    h = h.relu() * a
    with torch.no_grad():
        b = h + a
    return (h * b).sum()


def counted_in_a_buffer(m, x):
    h = m.lin(x)
    with torch.no_grad():
        m.scale.mul_(0.9)
    return (h * m.scale).sum()


def full_precision(m, x):
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        angle = (x.float() @ x.float().t()).sum(-1, keepdim=True)
    return (m.lin(x) * angle.cos()).sum()


def autocast_that_changes_nothing(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = (x * m.scale).sin() + m.scale
    return m.lin(h).sum()


def autocast(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = m.other(F.gelu(m.lin(x)))
        with torch.autocast("cpu", enabled=False):
            h = h.float() @ m.lin.weight
        h = m.lin(h) + h
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        gate = m.other(h)
    return (h * gate).float().pow(2).mean()


def autocast_loss(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.cross_entropy(m.lin(x), (x[:, 0] > 0).long()) + F.mse_loss(m.other(x), x)


REGIONS = [
    detached_weights,
    gradient_within,
    tuple_from_outside,
    two_regions,
    counted_in_a_buffer,
    full_precision,
    autocast_that_changes_nothing,
    autocast,
    autocast_loss,
]


@pytest.mark.parametrize("forward", REGIONS)
def test_regions_become_ops_that_compute_and_differentiate_the_same(forward):
    check(forward)


def test_what_a_region_without_gradient_computes_needs_none():
    graph = check(detached_weights).graph
    needs = dict(zip(graph.kinds, graph.requires_grad, strict=True))
    assert not needs["softmax"]
    assert graph.kinds.count("detach") == 4  # the activation, the other layer's two tensors, and the weight


def test_an_autocast_region_casts_what_autocast_would():
    program = check(autocast)
    linear = [node for node in program.nodes if node.target is torch.ops.aten.linear.default]
    assert {arg.meta["val"].dtype for node in linear for arg in node.args} == {torch.bfloat16}
    assert all(program.dtype(op) == torch.bfloat16 for op, kind in enumerate(program.graph.kinds) if kind == "linear")


class Rotary(nn.Module):
    @torch.no_grad()
    def forward(self, x):
        return x.cos()


class WithRotary(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.rotary = nn.Linear(3, 3), Rotary()

    def forward(self, x):
        return (self.lin(x) * self.rotary(x)).sum()


def test_the_ops_of_a_region_keep_their_module():
    graph = capture_program(WithRotary(), (torch.randn(4, 3),)).graph
    assert dict(zip(graph.kinds, graph.modules, strict=True)) == {
        "linear": "lin",
        "cos": "rotary",
        "mul": "",
        "sum": "",
    }


def test_a_device_is_given_by_name_so_that_an_executor_can_replace_it():
    program = check(lambda m, x: (m.lin(x) + torch.arange(3).to(x.device, x.dtype)).sum())
    assert not any(isinstance(arg, torch.device) for node in program.nodes for arg in node.args)
    assert any("device" in node.kwargs for node in program.nodes)


def test_what_the_exporter_loses_is_refused():
    def forward(m, x):
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            h = m.lin(x)
        return (m.other(x) * h).sum()

    with pytest.raises(SegueError, match=r"torch\.no_grad\(\) inside torch\.autocast .* cannot be captured"):
        capture_program(Lambda(forward), (torch.randn(4, 3),))


def test_control_flow_is_refused():
    def forward(m, x):
        return torch.cond(x.sum() > 0, lambda y: m.lin(y).sum(), lambda y: y.sum() * 2, (x,))

    with pytest.raises(SegueError, match=r"cond region .* cannot be captured"):
        capture_program(Lambda(forward), (torch.randn(4, 3),))


def part_of_a_fresh_tensor(m, x):
    shifted = torch.zeros_like(x)
    shifted[:, 1:] = m.lin(x)[:, :-1]
    shifted[:, 0] = 2
    shifted.masked_fill_(shifted > 1, 0.5)
    return m.other(shifted).pow(2).sum()


def part_of_a_value(m, x):
    h = m.lin(x)
    h[1:, 0].mul_(x[1:, 1])
    h.select(1, 2).zero_()
    return (h * x).sum()


def under_a_view(m, x):
    h = m.lin(x)
    flat, turned = h.view(-1), h.t()
    h.mul_(2)
    turned[0].add_(turned[1])
    return (flat[3:] * 2).sum() + (h * turned.t()).sum()


def through_reordered_views(m, x):
    h = m.lin(x).unsqueeze(0)
    h.permute(2, 0, 1)[1].neg_()
    h.squeeze(0).transpose(0, 1).diagonal().mul_(3)
    return (h * h).sum()


def through_a_copy(m, x):
    h = m.lin(x)
    turned = h.t().reshape(-1)
    h.relu_()
    return (turned * 2).sum() + h.sum()


def indexed(m, x):
    h = m.lin(x)
    h[:, torch.tensor([0, 2])] = 1.5
    h[0] += x[0]
    return h.sum() + (h * x).sum()


def of_a_result_of_several(m, x):
    values, places = torch.topk(m.lin(x), 2)
    values /= values.sum(-1, keepdim=True)
    return (values * places).sum()


def part_of_the_batch(m, x):
    x[:, 0] = 0
    return (m.lin(x) * x).sum()


def of_another_type(m, x):
    h = m.lin(x)
    h += x.double()
    h[:, 0].copy_(x[:, 1].double())
    h.copy_(h.tanh().double())
    return h.sum()


def detached_and_changed(m, x):
    h = m.lin(x)
    seen = h.detach()
    h.mul_(2)
    return (h * seen).sum()


def shifted_along(m, x):
    h = m.lin(x) * 1
    tail = h[1:]
    h[:2] = h[2:4]
    h[:-1].mul_(2)
    return (h * x).sum() + (tail * 3).sum()


VIEWS = [
    shifted_along,
    part_of_a_fresh_tensor,
    part_of_a_value,
    under_a_view,
    through_reordered_views,
    through_a_copy,
    indexed,
    of_a_result_of_several,
    part_of_the_batch,
    of_another_type,
    detached_and_changed,
]


@pytest.mark.parametrize("forward", VIEWS)
def test_in_place_ops_on_views_keep_their_meaning(forward):
    program = check(forward)
    assert not any(node.target._schema.is_mutable for node in program.nodes if hasattr(node.target, "_schema"))
