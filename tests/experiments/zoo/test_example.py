import functools

import pytest
import torch
from torch.utils import _pytree as pytree

from segue.experiments.models import MODELS, build_model
from segue.experiments.zoo.example import ZOO, build_example
from segue.placement.capture import capture_program
from segue.placement.errors import SegueError

LANGUAGE = ["lstm-seq2seq", "gpt", "bert", "moe"]
SLOW_TO_CAPTURE = ["resnet50", "inception-v3", "lstm-seq2seq"]
SEEDS = [*MODELS, "unet", "lstm-seq2seq", "gpt", "bert", "moe", "recommender", "resnet50"]
USER_FILE = """
import torch

class Own(torch.nn.Linear):
    def forward(self, input):
        return super().forward(input).square().mean()

def classifier():
    return torch.nn.Linear(3, 2).eval(), (torch.randn(6, 3), torch.randint(2, (6,)))

def positional():
    return Own(3, 2), (torch.randn(6, 3),)

def keyword():
    return Own(3, 2), {"input": torch.randn(6, 3)}

def elsewhere():
    return torch.nn.Linear(3, 2, device="cpu"), [torch.zeros(6, 3, device="cpu"), torch.zeros(6, dtype=torch.long)]

def empty():
    return Own(3, 2), {}
"""


@functools.cache
def example_of(name):
    """Shared by the tests that only read it, or its gradients, which nobody else does."""
    return build_example(name, 4)


def tensors(example):
    return [leaf for leaf in pytree.tree_leaves(example.batch) if isinstance(leaf, torch.Tensor)]


def samples(batch, start, stop):
    return pytree.tree_map(lambda tensor: tensor[start:stop], batch)


@pytest.mark.parametrize("name", [*MODELS, *ZOO])
def test_a_step_has_a_finite_loss_and_a_gradient_for_every_parameter(name):
    example = example_of(name)
    assert all(module.training for module in example.step.modules())
    assert {tensor.shape[0] for tensor in tensors(example)} == {4}
    loss = example.step(example.batch)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    without = [n for n, p in example.step.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    example.step.zero_grad(set_to_none=True)
    assert without == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_TO_CAPTURE else name for name in ZOO]
)
def test_every_model_is_captured_with_a_batch_of_any_size(name):
    example = example_of(name)
    program = capture_program(example.step, (example.batch,), name=name, prefix="model.")
    assert program.graph.num_ops > 1
    assert program.graph.batch_size == 4
    assert all(0 in spec.symbolic for spec in program.inputs)
    parameters = {p.data_ptr(): p.nbytes for p in example.step.parameters()}
    assert program.graph.parameter_bytes.sum() == sum(parameters.values())


@pytest.mark.parametrize("name", SEEDS)
def test_weights_and_batch_follow_from_the_seed_alone(name):
    state = torch.random.get_rng_state()
    first, second, other = (build_example(name, 2, seed=seed, sequence_length=16) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights, same, different = (list(example.step.parameters()) for example in (first, second, other))
    assert all(map(torch.equal, weights, same))
    assert not all(map(torch.equal, weights, different))
    assert all(map(torch.equal, tensors(first), tensors(second)))
    assert not any(map(torch.equal, tensors(first), tensors(other)))


@pytest.mark.parametrize("name", [*LANGUAGE, "recommender"])
def test_without_batch_norm_the_loss_is_the_mean_over_microbatches(name):
    example = example_of(name)
    with torch.no_grad():
        whole = example.step(example.batch)
        halves = [example.step(samples(example.batch, start, start + 2)) for start in (0, 2)]
    assert torch.allclose(sum(halves) / 2, whole, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt", "moe"])
def test_a_decoder_does_not_see_what_follows(name):
    model = example_of(name).step.model
    tokens = torch.randint(8192, (1, 64))
    later = tokens.clone()
    later[0, 12:] = (tokens[0, 12:] + 1) % 8192
    targets = torch.full((1, 64), -100)
    targets[0, 11] = 5
    if name == "moe":  # first choices of later tokens may take the room of earlier second choices: leave room for all
        model = build_example("moe", 1).step.model
        for block in model.blocks:
            block.mixture.slot_index = torch.arange(128)
        model.balance_weight = 0.0
    with torch.no_grad():
        assert torch.allclose(model(tokens, targets), model(later, targets), atol=1e-5)
        assert not torch.allclose(model(tokens, targets), model(tokens.flip(1), targets), atol=1e-5)


@pytest.mark.parametrize("experts_room", [1, 8, 128])
def test_a_mixture_sums_the_chosen_experts_that_have_room(experts_room):
    mixture = example_of("moe").step.model.blocks[0].mixture
    x = torch.randn(2, 64, 256, generator=torch.Generator().manual_seed(0))
    kept, mixture.slot_index = mixture.slot_index, torch.arange(experts_room)
    try:
        with torch.no_grad():
            mixed, _ = mixture(x)
            weights, choices = torch.softmax(mixture.router(x), -1).topk(2, -1)
            weights = weights / weights.sum(-1, keepdim=True)
            expected = torch.zeros_like(x)
            for sample in range(2):
                room = [experts_room] * len(mixture.experts)
                for rank in range(2):
                    for token in range(64):
                        expert = int(choices[sample, token, rank])
                        if room[expert] > 0:
                            room[expert] -= 1
                            weight = weights[sample, token, rank]
                            expected[sample, token] += weight * mixture.experts[expert](x[sample, token])
    finally:
        mixture.slot_index = kept
    assert torch.allclose(mixed, expected, atol=1e-5)


def test_masked_tokens_are_as_many_in_every_sequence_and_are_the_labels():
    batch = build_example("bert", 8, sequence_length=40).batch
    masked = batch["tokens"] == 0
    assert masked.sum(1).tolist() == [6] * 8
    assert torch.equal(batch["targets"] != -100, masked)


def test_the_real_networks_have_their_papers_number_of_parameters():
    counts = {name: sum(p.numel() for p in build_example(name, 2, device="meta").step.parameters()) for name in ZOO}
    # Published for 1000 classes: 25,557,032 and 138,365,992 with batch norm; ours have 10.
    assert counts["resnet50"] == 25_557_032 - 990 * 2049
    assert counts["vgg16"] == 138_365_992 - 990 * 4097
    assert all(count < 30e6 for name, count in counts.items() if name != "vgg16")


def test_small_classifiers_are_those_of_build_model():
    example = build_example("resnet", 3, seed=5, image_size=16)
    expected = build_model("resnet", image_size=16, seed=5).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in example.step.model.state_dict().items())
    assert [tuple(tensor.shape) for tensor in tensors(example)] == [(3, 1, 16, 16), (3,)]


@pytest.mark.parametrize("name", ["mlp", "unet", "bert"])
def test_on_meta_nothing_is_drawn_or_stored_and_the_graph_is_the_same(name):
    state = torch.random.get_rng_state()
    example = build_example(name, 4, device="meta")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {tensor.device.type for tensor in (*example.step.state_dict().values(), *tensors(example))} == {"meta"}
    on_meta, on_cpu = (capture_program(e.step, (e.batch,), prefix="model.").graph for e in (example, example_of(name)))
    assert on_meta.kinds == on_cpu.kinds
    assert on_meta.parameter_bytes.tolist() == on_cpu.parameter_bytes.tolist()


def test_a_user_file_gives_model_and_batch(tmp_path):
    (tmp_path / "zoo_user.py").write_text(USER_FILE)
    spec = f"{tmp_path}/zoo_user.py"
    classifier = build_example(f"{spec}:classifier", 4)
    assert classifier.name == f"{spec}:classifier"
    assert isinstance(classifier.step.loss_fn, torch.nn.CrossEntropyLoss)
    assert classifier.step.model.training
    for function in ("positional", "keyword"):
        example = build_example(f"{spec}:{function}", 4)
        assert example.step.loss_fn is None
        assert example.step(example.batch).shape == ()
        assert [len(tensor) for tensor in tensors(example)] == [4]
    assert [len(tensor) for tensor in tensors(build_example(f"{spec}:classifier", 9))] == [6, 6]
    on_meta = build_example(f"{spec}:elsewhere", 4, device="meta")
    assert {tensor.device.type for tensor in (*on_meta.step.parameters(), *tensors(on_meta))} == {"meta"}
    with pytest.raises(SegueError, match="its example batch has no tensor"):
        build_example(f"{spec}:empty", 4)


def test_a_user_model_follows_from_the_seed(tmp_path):
    (tmp_path / "zoo_seeded.py").write_text(USER_FILE)
    first, same, other = (
        build_example(f"{tmp_path}/zoo_seeded.py:classifier", 4, seed=seed).step.model.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("spec", "sizes", "reason"),
    [
        ("resnet5", {}, r"'resnet5': no such model \(did you mean resnet50\?\); known: .*gpt.*hf:TYPE"),
        ("", {}, "no such model; known"),
        ("nowhere.py:make", {}, "no such file"),
        ("resnet50", {"image_size": 16}, "image size must be >= 32, got 16"),
        ("unet", {"image_size": 40}, "image size must be >= 32 and a multiple of 16, got 40"),
        ("mlp", {"image_size": 4}, "image size must be >= 8, got 4"),
        ("gpt", {"sequence_length": 0}, "sequence length must be >= 1, got 0"),
        ("gpt", {"batch_size": 0}, "batch size must be >= 1, got 0"),
        ("gpt", {"device": "tpu"}, "device must be cpu or meta, got 'tpu'"),
    ],
)
def test_what_cannot_be_built_says_why_in_one_line(spec, sizes, reason):
    with pytest.raises(SegueError, match=reason) as caught:
        build_example(spec, **{"batch_size": 2, **sizes})
    assert "\n" not in str(caught.value)
