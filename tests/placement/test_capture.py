import copy
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from segue.placement.capture import capture, capture_program
from segue.placement.errors import SegueError
from segue.placement.program import node_inputs
from segue.placement.training_step import TrainingStep


class Lambda(nn.Module):
    """A module of one linear layer, a batch norm and a buffer, with a forward of the test's own."""

    def __init__(self, forward):
        super().__init__()
        self.lin, self.other, self.bn = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.register_buffer("scale", torch.ones(3))
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def program_of(forward, samples=4):
    return capture_program(Lambda(forward), (torch.randn(samples, 3),))


def run(program, model, batch):
    """Every op in order, in plain Python: what the graph means."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    flat = program.flatten(batch)
    values = dict(program.sizes(program.bindings(flat)))
    values |= {spec.placeholder: tensor for spec, tensor in zip(program.inputs, flat, strict=True)}
    values |= {placeholder: tensors[name] for placeholder, name in (program.parameters | program.buffers).items()}
    values |= program.constants
    for op, node in enumerate(program.nodes):
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: values[source.name])
        values[node.name] = node.target(*args, **kwargs)
        if program.is_tensor(op):
            assert values[node.name].shape == program.shape(op, program.bindings(flat))
            assert values[node.name].dtype == program.dtype(op)
    return values[program.nodes[program.output].name]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.block(x).mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    step = TrainingStep(Net(), F.cross_entropy)
    batch = (torch.randn(6, 2, 8, 8), torch.arange(6) % 5)
    return step, batch, capture_program(step, (batch,), name="net", prefix="model.")


def test_a_convolutional_net_is_its_ops_with_their_modules(net):
    _, _, program = net
    graph = program.graph
    assert (graph.name, graph.batch_size) == ("net", 6)
    assert graph.kinds == ("conv2d", "batch_norm", "add_", "relu", "mean", "linear", "cross_entropy_loss")
    assert graph.modules == ("block.0", "block.1", "block.1", "block.2", "", "head", "")
    assert program.output == graph.num_ops - 1
    assert set(program.parameters.values()) == set(dict(Net().named_parameters())) == program.trainable
    assert set(program.buffers.values()) == set(dict(Net().named_buffers()))


def test_edges_are_the_data_dependencies_and_the_order_of_buffer_updates(net):
    _, _, program = net
    position = {node: op for op, node in enumerate(program.nodes)}
    data = {
        (position[source], op) for node, op in position.items() for source in node_inputs(node) if source in position
    }
    assert set(map(tuple, program.graph.edges.tolist())) == data | {(1, 2)}
    assert data == {(0, 1), (1, 3), (3, 4), (4, 5), (5, 6)}


def test_the_batch_counter_shares_its_norms_device_and_place(net):
    _, _, program = net
    assert program.graph.colocation.tolist() == [-1, 0, 0, -1, -1, -1, -1]
    assert program.nodes[2].target is torch.ops.aten.add_.Tensor


def test_costs_of_a_convolution_and_a_linear_layer_are_right(net):
    _, _, program = net
    graph = program.graph
    conv, head = graph.kinds.index("conv2d"), graph.kinds.index("linear")
    assert graph.forward_flops[conv] == 2 * 6 * 4 * 6 * 6 * (2 * 3 * 3)
    assert graph.backward_flops[conv] == graph.forward_flops[conv]
    assert graph.forward_flops[head] == 2 * 6 * 4 * 5
    assert graph.backward_flops[head] == 2 * graph.forward_flops[head]
    assert graph.output_bytes[conv] == 4 * 6 * 4 * 6 * 6
    assert graph.output_bytes[head] == 4 * 6 * 5
    assert graph.parameter_bytes[conv] == 4 * 4 * 2 * 3 * 3
    assert graph.parameter_bytes[head] == 4 * (4 * 5 + 5)
    assert graph.parameter_bytes.sum() == sum(4 * p.numel() for p in Net().parameters())
    assert graph.buffer_bytes.sum() == sum(b.numel() * b.element_size() for b in Net().buffers())


@pytest.mark.parametrize("samples", [6, 5, 2])
def test_the_ops_compute_the_models_loss_and_buffers_for_any_batch(net, samples):
    _, (images, labels), program = net
    torch.manual_seed(1)
    mine, reference = Net(), Net()
    reference.load_state_dict(mine.state_dict())
    batch = (images[:samples], labels[:samples])
    loss = run(program, mine, batch)
    assert torch.equal(loss, F.cross_entropy(reference(batch[0]), batch[1]))
    for name, buffer in reference.named_buffers():
        assert torch.equal(buffer, dict(mine.named_buffers())[name]), name


def test_sizes_that_the_model_computes_follow_the_batch():
    program = program_of(lambda m, x: m.lin(x).reshape(x.shape[0] * 3).sum() / (x.shape[0] + 1))
    for samples in (4, 7):
        flat = program.flatten(torch.ones(samples, 3))
        bindings = program.bindings(flat)
        assert list(bindings.values()) == [samples]
        sizes = set(program.sizes(bindings).values())
        assert sizes == {3 * samples, samples + 1}
        assert program.shape(program.graph.kinds.index("reshape"), bindings) == (3 * samples,)


def test_batches_of_another_structure_or_shape_are_refused(net):
    _, (images, labels), program = net
    for batch, message in (
        (images, "batch: structured as"),
        ((images, 3), "batch: 1 tensors, but the model was captured with 2"),
        ((images[:, :1], labels), r"tensor 0 has shape \(6, 1, 8, 8\), captured with \(6, 2, 8, 8\)"),
        ((images, labels[:, None]), r"tensor 1 has shape \(6, 1\), captured with \(6,\)"),
        ((images, labels[:5]), r"tensor 1 has shape \(5,\), but dimension 0 must be 6"),
    ):
        with pytest.raises(SegueError, match=message):
            program.flatten(batch)


def test_parts_of_one_result_share_a_device():
    program = program_of(lambda m, x: torch.split(m.lin(x), [1, 2], 1)[1].sum() + x.max(1)[0].sum())
    graph = program.graph
    for op, node in enumerate(program.nodes):
        if node.target is operator.getitem:
            source = program.nodes.index(node.args[0])
            assert graph.colocation[op] == graph.colocation[source] >= 0
            assert graph.forward_flops[op] == graph.parameter_bytes[op] == 0
            assert graph.output_bytes[op] > 0
    assert graph.kinds.count("getitem") == 2
    assert len(set(graph.colocation)) == 3


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mid, self.out = nn.Embedding(7, 3), nn.Linear(3, 3), nn.Linear(3, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(self.mid(self.embed(tokens))).sum()


def test_a_tied_weight_is_read_by_one_op_from_which_its_users_take_it_wherever_they_are():
    program = capture_program(Tied(), (torch.zeros(4, 2, dtype=torch.long),))
    graph = program.graph
    read, *users = [op for op, module in enumerate(graph.modules) if module in ("embed", "out")]
    assert graph.kinds[read] == "alias"
    assert [(read, user) in set(map(tuple, graph.edges.tolist())) for user in users] == [True, True]
    assert (graph.colocation == -1).all()
    assert graph.parameter_bytes[[read, *users]].tolist() == [4 * 7 * 3, 0, 0]
    assert graph.output_bytes[read] == 4 * 7 * 3
    assert graph.saved_bytes[read] == 0
    assert program.trainable == {"embed.weight", "mid.weight", "mid.bias"}


def test_dropout_stays_as_it_is_in_training_and_leaves_no_trace_in_evaluation():
    dropout = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    train = capture_program(dropout.train(), (torch.randn(4, 3),))
    node = train.nodes[train.graph.kinds.index("dropout")]
    assert node.args[1:] == (0.5, True)
    torch.manual_seed(0)
    got = run(train, dropout, torch.ones(8, 3))
    torch.manual_seed(0)
    assert torch.equal(got, dropout(torch.ones(8, 3)))
    evaluated = capture_program(dropout.eval(), (torch.randn(4, 3),))
    assert torch.equal(run(evaluated, dropout, torch.ones(8, 3)), dropout(torch.ones(8, 3)))


def test_frozen_layers_have_no_gradient_and_no_trained_parameters():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    model[3].requires_grad_(False)
    program = capture_program(model, (torch.randn(4, 3),))
    graph = program.graph
    assert graph.requires_grad.tolist() == [False, False, True, True]
    assert graph.parameter_bytes.tolist() == [0, 0, 48, 0]
    assert graph.buffer_bytes.tolist() == [48, 0, 0, 16]
    assert graph.backward_flops[:2].tolist() == [0, 0]
    assert graph.backward_flops[2] == graph.forward_flops[2]  # the weight's; the input needs none
    assert graph.backward_flops[3] == graph.forward_flops[3]  # the input's; the weight is frozen
    assert program.trainable == {"2.weight", "2.bias"}


def loss_and_state(model, x):
    loss = model(x)
    return loss, {name: buffer.clone() for name, buffer in model.named_buffers()}


def ema(m, x):
    h = m.lin(x)
    m.scale.lerp_(h.detach().mean(0), 0.1)
    return (h * m.scale).sum()


def read_then_update(m, x):
    h = m.lin(x) * m.scale
    m.scale.copy_(m.scale * 0.5)
    return h.sum()


def shared_norm(m, x):
    return m.bn(m.lin(x)).sum() + (m.bn(m.other(x)) ** 2).sum()


def shared_frozen_norm(m, x):
    m.bn.eval()
    return shared_norm(m, x)


def inplace_chain(m, x):
    h = m.lin(x)
    h += x
    h.relu_().mul_(2)
    return h.sum()


def inplace_on_the_batch(m, x):
    return (m.lin(F.relu(x, inplace=True)) * x).sum()


@pytest.mark.parametrize("forward", [ema, read_then_update, shared_frozen_norm, inplace_chain, inplace_on_the_batch])
def test_in_place_ops_and_buffer_updates_keep_their_meaning(forward):
    model, reference = Lambda(forward), Lambda(forward)
    reference.load_state_dict(model.state_dict())
    program = capture_program(model, (torch.randn(4, 3),))
    x = torch.randn(5, 3)
    got = run(program, model, x.clone())
    expected, state = loss_and_state(reference, x.clone())
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, state[name]), name


def test_a_buffer_is_read_before_it_is_updated_and_on_the_same_device():
    graph = program_of(read_then_update).graph
    reader, update = graph.kinds.index("mul"), graph.kinds.index("copy_")
    assert [reader, update] in graph.edges.tolist()
    assert graph.colocation[reader] == graph.colocation[update] >= 0


def test_in_place_ops_on_values_become_functional():
    kinds = program_of(inplace_chain).graph.kinds
    assert kinds == ("linear", "add", "relu", "mul", "sum")


def test_a_mask_needs_no_gradient():
    graph = program_of(lambda m, x: (m.lin(x) * (x > 0)).sum()).graph
    assert dict(zip(graph.kinds, graph.requires_grad, strict=True)) == {
        "gt": False,
        "linear": True,
        "mul": True,
        "sum": True,
    }


def on_a_detached_view(m, x):
    h = m.lin(x)
    h.detach().zero_()
    return h.sum()


def without_grad(m, x):
    h = m.lin(x)
    with torch.no_grad():
        h.mul_(2)
    return h.sum()


def on_a_part(m, x):
    part = torch.split(x * 1, 2)[0]
    part.zero_()
    return m.lin(part).sum()


def on_a_part_of_a_buffer(m, x):
    m.scale[:2].mul_(0.5)
    return (m.lin(x) * m.scale).sum()


def two_updates_in_a_row(m, x):
    h = m.lin(x)
    m.scale.mul_(0.9).add_(h.detach().mean(0))
    return (h * m.scale).sum()


def shared_statistics(m, x):
    return sum(F.batch_norm(y, m.scale, m.bn.running_var, training=True).sum() for y in (m.lin(x), m.other(x), x))


def branching(m, x):
    return m.lin(x).sum() if x.sum() > 0 else x.sum()


def failing(m, x):
    raise NotImplementedError


UNTRACEABLE = {
    "a branch on the data": (branching, "torch.export cannot trace it: Could not guard on data-dependent expression"),
    "an error without a message": (failing, "model Lambda: torch.export cannot trace it: NotImplementedError"),
    "a number from the data": (lambda m, x: (m.lin(x) * x.sum().item()).sum(), "item computes depends on the batch"),
    "a size from the data": (lambda m, x: m.lin(x)[x > 0].sum(), "index computes depends on the batch's values"),
    "a change without gradient": (without_grad, "mul_ on a detached view .* in torch.no_grad"),
    "a change of a detached view": (on_a_detached_view, "the in-place op zero_ on a detached view cannot be captured"),
    "a change of a part": (on_a_part, "the in-place op zero_ on a view by getitem cannot be captured"),
    "a change of a part of a buffer": (
        on_a_part_of_a_buffer,
        "the in-place op mul_ on a view of scale cannot be captured",
    ),
    "a norm on two branches": (
        shared_norm,
        r"module bn: its buffer num_batches_tracked is updated by 2 ops of one step \(add_, add__1\).* give each branch its "
        r"own module, freeze this one with eval\(\)",
    ),
    "two updates of a buffer": (
        two_updates_in_a_row,
        r"buffer scale is updated by 2 ops of one step \(mul_, add_\), whose",
    ),
    "statistics of three branches": (
        shared_statistics,
        r"buffer scale is updated by 3 ops of one step \(batch_norm, batch_norm_1, ...\)",
    ),
    "the batch as output": (lambda m, x: x, "the first output must be a tensor that the model computes"),
    "no output": (lambda m, x: None, "the first output must be a tensor that the model computes"),
}


@pytest.mark.parametrize("case", UNTRACEABLE)
def test_what_cannot_be_captured_is_refused_with_the_reason(case):
    forward, message = UNTRACEABLE[case]
    with pytest.raises(SegueError, match=message) as error:
        program_of(forward)
    assert "\n" not in str(error.value)


class Siamese(nn.Module):
    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = left, right

    def forward(self, pair):
        return (self.left(pair[0]) - self.right(pair[1])).pow(2).sum()


def siamese(norm, tower=False):
    shared = nn.Sequential(nn.Conv1d(3, 3, 1), norm) if tower else norm
    return Siamese(shared, shared)


PAIR = (torch.randn(4, 3, 5), torch.randn(4, 3, 5))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)])
def test_a_norm_that_learns_from_both_branches_is_refused_by_its_name_in_the_model(norm):
    step = TrainingStep(siamese(norm, tower=True))
    with pytest.raises(SegueError, match=r"model: module left\.1: its buffer \w+ is updated by 2 ops"):
        capture_program(step, ({"pair": PAIR},), prefix="model.")


def test_two_norms_on_one_buffer_are_refused():
    model = Siamese(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model.right.running_var = model.left.running_var
    with pytest.raises(SegueError, match="module left: its buffer running_var is updated by 2 ops of one step"):
        capture_program(model, (PAIR,))


ORDERLESS = {
    "in evaluation": siamese(nn.BatchNorm1d(3)).eval(),
    "without running statistics": siamese(nn.BatchNorm1d(3, track_running_stats=False)),
    "a norm of its own for each branch": Siamese(nn.BatchNorm1d(3), nn.BatchNorm1d(3)),
}


@pytest.mark.parametrize("case", ORDERLESS)
def test_branches_that_share_no_update_are_captured(case):
    model = ORDERLESS[case]
    reference = copy.deepcopy(model)
    program = capture_program(model, (PAIR,))
    assert program.graph.kinds.count("batch_norm") == 2
    assert torch.equal(run(program, model, PAIR), reference(PAIR))
    assert all(torch.equal(*both) for both in zip(model.buffers(), reference.buffers(), strict=True))


def test_an_example_of_one_sample_keeps_its_size():
    program = program_of(lambda m, x: m.lin(x).sum(), samples=1)
    with pytest.raises(SegueError, match="dimensions that may vary: none"):
        program.flatten(torch.ones(2, 3))


def test_a_forward_with_any_number_of_inputs_keeps_its_dynamic_batch():
    class Sum(nn.Module):
        def forward(self, *inputs, scale):
            return sum(inputs).mean() * scale

    class Inputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.inner = nn.Linear(3, 3), Sum()

        def forward(self, *inputs):
            return self.inner(*map(self.lin, inputs), scale=2.0)

    model = Inputs()
    program = capture_program(model, (torch.randn(4, 3), torch.randn(4, 3)))
    batch = (torch.randn(7, 3), torch.randn(7, 3))
    assert torch.equal(run(program, model, batch), model(*batch))


class Warmed(nn.Module):
    """A norm that is run on a branch for its statistics alone."""

    def __init__(self):
        super().__init__()
        self.lin, self.side, self.bn = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        self.bn(self.side(x))
        return self.lin(x).sum()


def test_a_norm_whose_result_nobody_reads_still_learns_its_statistics_and_gets_no_gradient():
    model = Warmed()
    reference, x = copy.deepcopy(model), torch.randn(5, 3)
    program = capture_program(model, (torch.randn(4, 3),))
    assert torch.equal(run(program, model, x), reference(x))
    assert torch.equal(model.bn.running_mean, reference.bn.running_mean)
    side = [op for op, module in enumerate(program.graph.modules) if module in ("side", "bn")]
    assert not program.graph.requires_grad[side].any()
    assert not program.graph.backward_flops[side].any()


def test_a_training_step_takes_dicts_tuples_and_models_that_return_their_loss():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 2)

        def forward(self, x, y):
            return {"loss": F.cross_entropy(self.lin(x), y)}

    batch = {"x": torch.randn(4, 3), "y": torch.zeros(4, dtype=torch.long)}
    model = Own()
    assert torch.equal(TrainingStep(model)(batch), model(**batch)["loss"])
    assert torch.equal(TrainingStep(model)(tuple(batch.values())), model(**batch)["loss"])
    program = capture_program(TrainingStep(model), (batch,), prefix="model.")
    assert torch.equal(run(program, model, batch), model(**batch)["loss"])


def test_capture_is_the_graph_of_the_program():
    model = nn.Linear(3, 2)
    graph = capture(model, (torch.randn(4, 3),))
    assert (graph.name, graph.kinds) == ("Linear", ("linear",))
    np.testing.assert_array_equal(graph.forward_flops, [2 * 4 * 2 * 3])
