import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.capture import capture_program
from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.placement import Placement, check_placement
from segue.placement.planners import plan
from segue.placement.planners.accelerate_map import accelerate_map
from segue.placement.topology import Device, Topology, uniform_links
from segue.placement.training_step import TrainingStep

accelerate = pytest.importorskip("accelerate")


def topology(memory_bytes) -> Topology:
    names = [f"d{i}" for i in range(len(memory_bytes))]
    devices = tuple(Device(name, "emulated", float(size)) for name, size in zip(names, memory_bytes, strict=True))
    return Topology("test", devices, uniform_links(names, 1e-4, 1e8))


def clock_of(graph, memory_bytes) -> SimulatedClock:
    devices = topology(memory_bytes)
    return SimulatedClock(graph, devices, make_costs(graph, devices), (1, 1))


def chain(modules, **given):
    return make_graph("chain", [(i, i + 1) for i in range(len(modules) - 1)], len(modules), modules=modules, **given)


def transformer(kind: str):
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 500, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=5, n_embd=64, n_head=4, n_positions=64, **small)
        )
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=64, **small,
        )
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_weight_is_where_the_library_puts_it_in_the_real_model(kind):
    model = transformer(kind).train()
    tokens = torch.randint(0, 500, (4, 16))
    graph = capture_program(TrainingStep(model), ({"input_ids": tokens, "labels": tokens},), prefix="model.").graph
    blocks = list(model._no_split_modules)
    for share in (0.5, 0.7, 2.0):
        size = int(share * graph.parameter_bytes.sum())
        for balanced in (True, False):
            memory = dict.fromkeys(range(4), size)
            if balanced:
                memory = accelerate.utils.get_balanced_memory(model, memory, no_split_module_classes=blocks)
            real = accelerate.infer_auto_device_map(model, memory, no_split_module_classes=blocks)
            devices = accelerate_map(clock_of(graph, [size] * 4), balanced)
            for op in np.flatnonzero(graph.parameter_bytes):
                path = graph.modules[op]
                while path and path not in real:
                    path = path.rpartition(".")[0]
                assert devices[op] == real[path], graph.modules[op]


LAYERS = ("embed", *(f"layers.{i}.{part}" for i in range(6) for part in ("attn", "act", "mlp")), "head")


def test_balanced_spreads_blocks_and_sequential_fills_the_first_device():
    graph = chain(LAYERS, parameter_bytes=[400.0 * (not module.endswith("act")) for module in LAYERS])
    balanced, sequential = (accelerate_map(clock_of(graph, [1e9] * 3), b) for b in (True, False))
    assert sequential.tolist() == [0] * 20
    assert set(balanced.tolist()) == {0, 1, 2}
    assert (np.diff(balanced) >= 0).all()
    for layer in range(6):
        assert len(set(balanced[1 + 3 * layer : 4 + 3 * layer])) == 1


def test_sequential_keeps_room_for_the_largest_layer_on_the_first_device_only():
    graph = chain(("a", "b", "c", "d", "e"), parameter_bytes=400.0)
    assert accelerate_map(clock_of(graph, [1200, 1200, 1200]), False).tolist() == [0, 0, 1, 1, 1]


def test_what_the_library_would_offload_goes_where_most_room_is_left():
    graph = chain(("a", "b", "c", "d"), parameter_bytes=400.0)
    clock = clock_of(graph, [800, 500, 900])
    found = plan("accelerate-sequential", clock)
    assert found.devices.tolist() == [0, 1, 2, 2]
    assert not found.feasible
    assert plan("accelerate-sequential", clock_of(graph, [800, 500, 500])).devices.tolist() == [0, 1, 2, 0]


def test_code_of_a_split_module_follows_its_inputs():
    modules = ("a.first", "a", "a.second", "a", "b", "")
    graph = chain(modules, parameter_bytes=[400.0, 0, 400, 0, 400, 0])
    assert accelerate_map(clock_of(graph, [1000, 800]), False).tolist() == [0, 0, 1, 1, 1, 1]


def test_a_tensor_of_a_split_module_has_an_entry_of_its_own():
    modules = ("a", "a.first", "a", "a.second")
    graph = chain(modules, parameter_bytes=[400.0, 400, 400, 400])
    # The library lists a split module's own tensors before its parts.
    assert accelerate_map(clock_of(graph, [1200, 800]), False).tolist() == [0, 1, 0, 1]


def test_users_of_a_tied_weight_follow_the_first():
    modules = ("embed", "layers.0.mlp", "layers.1.mlp", "head")
    tied = np.array([0, -1, -1, 0])
    graph = chain(modules, parameter_bytes=[400.0, 400, 400, 0], colocation=tied)
    assert plan("accelerate-sequential", clock_of(graph, [800, 800, 800])).devices.tolist() == [0, 1, 1, 0]


def test_module_names_may_be_those_of_torch_attributes():
    graph = chain(("forward", "forward.parameters", "type.0.train", "a..b", "."), parameter_bytes=400.0)
    check_placement(Placement(accelerate_map(clock_of(graph, [900, 900, 900]), True)), graph, topology([900] * 3))


@settings(max_examples=40, deadline=None)
@given(
    modules=st.lists(st.lists(st.sampled_from(["a", "b", "0", "1"]), max_size=3).map(".".join), min_size=1, max_size=9),
    memory=st.lists(st.sampled_from([1, 500, 2000, 1e9]), min_size=1, max_size=4),
    balanced=st.booleans(),
    data=st.data(),
)
def test_any_modules_and_memory_give_a_valid_placement(modules, memory, balanced, data):
    sizes = st.lists(st.sampled_from([0.0, 1.0, 400.0]), min_size=len(modules), max_size=len(modules))
    graph = chain(tuple(modules), parameter_bytes=data.draw(sizes), buffer_bytes=data.draw(sizes))
    check_placement(Placement(accelerate_map(clock_of(graph, memory), balanced)), graph, topology(memory))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(SegueError, match=r"accelerate is missing; pip install 'segue\[planners\]'"):
        plan("accelerate-balanced", clock_of(chain(("a", "b")), [900, 900]))
