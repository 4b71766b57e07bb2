import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from segue.placement.errors import SegueError
from segue.placement.graph import Graph
from segue.placement.module_trace import trace_modules
from segue.placement.training_step import TrainingStep

WIDTH = 64


def layer():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right, self.head = layer(), layer(), layer(), nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.right(self.left(x)))


def traced(model, samples=32, batch=None):
    step = TrainingStep(model, nn.CrossEntropyLoss())
    batch = (torch.randn(samples, WIDTH), torch.arange(samples) % 5) if batch is None else batch
    return trace_modules(step, (batch,), prefix="model."), step, batch


def product_flops(step, batch):
    with FlopCounterMode(display=False) as counter:
        step(batch).backward()
    return counter.get_total_flops()


def edges_of(graph):
    return {(graph.names[a], graph.names[b]) for a, b in graph.edges.tolist()}


def reaches(graph: Graph) -> np.ndarray:
    """Which ops each op's value gets to."""
    reach = np.eye(graph.num_ops, dtype=bool)
    for source, target in graph.edges[::-1].tolist():
        reach[source] |= reach[target]
    return reach


def test_a_residual_net_is_its_modules_with_the_skip_connection():
    graph, _, _ = traced(Residual())
    loss = graph.names[-1]
    assert graph.names[:-2] == ("stem.0", "stem.1", "left.0", "left.1", "right.0", "right.1", "add")
    assert graph.modules[:-1] == ("stem.0", "stem.1", "left.0", "left.1", "right.0", "right.1", "", "head")
    assert {("stem.1", "left.0"), ("right.1", "add"), ("stem.1", "add"), ("add", "head"), ("head", loss)} <= edges_of(
        graph
    )
    assert ("left.1", "add") not in edges_of(graph)
    assert graph.batch_size == 32
    assert graph.requires_grad.all()


def test_costs_of_linear_layers_are_those_of_the_op_graph():
    graph, _, _ = traced(Residual())
    left, head, relu = (graph.index[name] for name in ("left.0", "head", "left.1"))
    product = 2 * 32 * WIDTH * WIDTH
    assert graph.forward_flops[left] == product
    assert 2 * product <= graph.backward_flops[left] <= 2.1 * product
    assert graph.parameter_bytes[left] == 4 * WIDTH * (WIDTH + 1)
    assert graph.output_bytes[left] == 4 * 32 * WIDTH
    assert (graph.saved_bytes[left], graph.saved_bytes[relu]) == (0, 4 * 32 * WIDTH)  # a ReLU's result is saved there
    assert graph.output_bytes[head] == 4 * 32 * 5
    assert graph.written_bytes[relu] == graph.read_bytes[relu] == 4 * 32 * WIDTH


class Gated(nn.Module):
    """A branch on the data, and experts of which some get no sample."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(layer() for _ in range(3))
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(WIDTH, 5)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x):
        x = self.norm(x)
        choice = self.gate(x).argmax(-1).clamp(max=1)
        total = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (choice == number).nonzero()[:, 0]
            if len(rows):
                total.index_add_(0, rows, expert(x[rows]))
        return self.head(total + x if total.sum() > -1e9 else x)


def test_all_flops_and_all_parameters_are_counted():
    for model in (Residual(), Gated()):
        graph, step, batch = traced(model, 128)
        total = graph.forward_flops.sum() + graph.backward_flops.sum()
        assert total == pytest.approx(product_flops(step, batch), rel=0.05)
        assert graph.parameter_bytes.sum() == sum(p.nbytes for p in model.parameters())


def test_experts_on_computed_rows_are_joined_in_order_with_the_tensor_they_are_added_to():
    graph, _, _ = traced(Gated(), 128)
    reach, at = reaches(graph), graph.index
    assert reach[at["gate"], at["experts.0.0"]]
    assert not reach[at["experts.0.0"], at["experts.1.0"]]
    assert reach[at["experts.0.1"], at["head"]]
    assert reach[at["experts.1.1"], at["head"]]
    assert not any(module.startswith("experts.2") for module in graph.modules)


def test_a_step_is_traced_without_a_trace_in_the_model():
    model = Gated()
    before = copy.deepcopy(model)
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    _, _, batch = traced(model, batch=(torch.ones(8, WIDTH), torch.zeros(8, dtype=torch.long)))
    assert torch.equal(torch.rand(()), expected)
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), before.buffers(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(batch[0], torch.ones(8, WIDTH))


class Shared(nn.Module):
    """One layer called twice, and a weight tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.mid, self.out = nn.Embedding(7, 3), nn.Linear(3, 3), nn.Linear(3, 7, bias=False)
        self.out.weight = self.embed.weight
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, tokens):
        return self.out(self.frozen(self.mid(torch.relu(self.mid(self.embed(tokens))))))


def test_users_of_one_parameter_share_a_device_and_count_it_once():
    model = TrainingStep(Shared(), lambda logits, target: logits.sum())
    tokens = torch.zeros(4, 2, dtype=torch.long)
    graph = trace_modules(model, ((tokens, tokens),), prefix="model.")
    at = graph.index
    assert graph.colocation[at["mid"]] == graph.colocation[at["mid_1"]] >= 0
    assert graph.colocation[at["embed"]] == graph.colocation[at["out"]] >= 0
    assert graph.colocation[at["frozen"]] == -1
    assert graph.parameter_bytes[[at["embed"], at["out"]]].tolist() == [4 * 7 * 3, 0]
    assert graph.parameter_bytes[[at["mid"], at["mid_1"]]].tolist() == [4 * 12, 0]
    assert (graph.parameter_bytes[at["frozen"]], graph.buffer_bytes[at["frozen"]]) == (0, 48)


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.first.requires_grad_(False)

    def forward(self, x):
        x = self.first(x)
        with torch.no_grad():
            mask = self.second(x)
        return self.third(self.second(x).detach() + x) * mask


def test_no_gradient_flows_out_of_frozen_and_detached_runs():
    graph, _, _ = traced(Frozen())
    needs = dict(zip(graph.names, graph.requires_grad, strict=True))
    assert [needs[name] for name in ("first", "second", "second_1", "third")] == [False, False, False, True]
    assert not graph.backward_flops[:3].any()
    third = graph.index["third"]
    assert graph.backward_flops[third] == pytest.approx(graph.forward_flops[third], rel=0.05)  # its weight's only


class InPlace(nn.Module):
    """A part of a tensor is written after another module has read it."""

    def __init__(self):
        super().__init__()
        self.lin, self.reader, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        h = self.lin(x)
        seen = torch.sigmoid(self.reader(h.clone()))
        h[:, 0] = 1
        return self.last(h.view(-1, WIDTH)) * seen


def test_edges_follow_memory_through_views_and_in_place_writes():
    graph, _, _ = traced(InPlace())
    at = graph.index
    writer = max(int(source) for source, target in graph.edges.tolist() if target == at["last"])
    assert graph.modules[writer] == ""
    assert reaches(graph)[at["lin"], writer]
    assert reaches(graph)[at["lin"], at["reader"]]


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.from_numpy(x.numpy() * 1.0).mm(weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad.mm(weight.t()), x.t().mm(grad)


class Strange(nn.Module):
    """What no exporter takes: numpy, an autograd function of its own, and recomputation."""

    def __init__(self):
        super().__init__()
        self.weight, self.block = nn.Parameter(torch.randn(WIDTH, WIDTH) / 8), Residual()
        self.block.head = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = checkpoint(self.block, x, use_reentrant=False)
        return self.head(Custom.apply(x, self.weight))


def test_autograd_functions_and_recomputation_are_attributed_to_their_modules():
    graph, step, batch = traced(Strange(), 128)
    total = graph.forward_flops.sum() + graph.backward_flops.sum()
    assert total == pytest.approx(product_flops(step, batch), rel=0.05)
    custom = graph.kinds.index("mm")
    assert graph.backward_flops[custom] == pytest.approx(2 * graph.forward_flops[custom], rel=0.05)
    assert graph.saved_bytes[[graph.index[f"block.{name}.0"] for name in ("left", "right")]].sum() == 0


def test_a_recurrent_layer_counts_its_products():
    model = nn.LSTM(8, 16, num_layers=2)
    x = torch.randn(5, 3, 8)
    graph = trace_modules(model, (x,))
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert graph.forward_flops.sum() == pytest.approx(2 * 15 * weights, rel=0.2)
    assert graph.backward_flops.sum() == pytest.approx(4 * 15 * weights, rel=0.2)


class Functional(nn.Module):
    """A network in one module."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(WIDTH, WIDTH) / 8 for _ in range(4))

    def forward(self, x):
        for weight in self.weights:
            x = torch.relu(x @ weight) + x
        return x


def test_a_network_in_one_module_is_not_one_op():
    graph, _, _ = traced(Functional())
    assert graph.kinds.count("mm") == 4
    assert (graph.parameter_bytes > 0).sum() == 4
    assert graph.num_ops == 5


def test_what_fails_is_said_in_one_line():
    def branching(logits, target):
        return logits.sum() if logits.sum() > 0 else -logits.sum()

    with torch.device("meta"):
        model, batch = Residual(), (torch.randn(4, WIDTH), torch.zeros(4))
    with pytest.raises(SegueError, match=r"model TrainingStep: .* depends on values, .* meta .* real tensors"):
        trace_modules(TrainingStep(model, branching), (batch,))
    with pytest.raises(SegueError, match="model Residual: cannot be traced: mat1 and mat2 shapes") as error:
        trace_modules(Residual(), (torch.randn(4, 3),))
    assert "\n" not in str(error.value)
    with pytest.raises(SegueError, match="model Identity: cannot be traced: it computes no tensor"):
        trace_modules(nn.Identity(), (3,))


def test_a_model_that_decides_nothing_is_traced_on_the_meta_device():
    with torch.device("meta"):
        graph, _, _ = traced(Residual())
    real, _, _ = traced(Residual())
    assert (graph.names, graph.edges.tolist()) == (real.names, real.edges.tolist())
    np.testing.assert_array_equal(graph.forward_flops, real.forward_flops)


class Dag(nn.Module):
    """Layers wired at random, read through views and changed in place."""

    def __init__(self, sources, kinds):
        super().__init__()
        self.sources, self.kinds = sources, kinds
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in sources)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        values = [x]
        for sources, kind, linear in zip(self.sources, self.kinds, self.layers, strict=True):
            total = sum(values[i % len(values)] for i in sources)
            value = linear(total)
            if kind == 1:
                value.relu_()
            values.append(value.view(-1, WIDTH)[:, :] if kind == 2 else value)
        return self.head(values[-1])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=3), min_size=1, max_size=6),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
)
def test_random_nets_keep_their_dependencies_costs_and_parameters(sources, kinds):
    model = Dag(sources, kinds[: len(sources)])
    graph, step, batch = traced(model)
    assert (graph.edges[:, 0] < graph.edges[:, 1]).all()
    reach = reaches(graph)
    for number, own in enumerate(sources):
        for source in {i % (number + 1) for i in own} - {0}:
            assert reach[graph.index[f"layers.{source - 1}"], graph.index[f"layers.{number}"]]
    assert graph.parameter_bytes.sum() == sum(p.nbytes for p in model.parameters())
    total = graph.forward_flops.sum() + graph.backward_flops.sum()
    assert total == pytest.approx(product_flops(step, batch), rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_backward_flops_are_attributed_on_a_gpu_too():
    with torch.device("cuda"):
        graph, step, batch = traced(Residual().cuda(), 128)
    assert graph.backward_flops.sum() > 1.5 * graph.forward_flops.sum()
    total = graph.forward_flops.sum() + graph.backward_flops.sum()
    assert total == pytest.approx(product_flops(step, batch), rel=0.05)
