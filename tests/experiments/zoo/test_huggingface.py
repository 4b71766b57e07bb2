import sys

import pytest
import torch

from segue.experiments.zoo.example import build_example
from segue.placement.errors import SegueError

pytest.importorskip("transformers")

TEXT = "num_hidden_layers=2,hidden_size=32,num_attention_heads=4,intermediate_size=64"
TINY = {
    "gpt2": ("n_layer=2,n_embd=32,n_head=4", "GPT2LMHeadModel"),
    "bert": (TEXT, "BertForMaskedLM"),
    "llama": (f"{TEXT},num_key_value_heads=4", "LlamaForCausalLM"),
    "t5": ("num_layers=2,d_model=32,num_heads=4,d_kv=8,d_ff=64", "T5ForConditionalGeneration"),
    "mixtral": (f"{TEXT},num_key_value_heads=4,num_local_experts=4", "MixtralForCausalLM"),
    "vit": (f"{TEXT},image_size=32,patch_size=8", "ViTForImageClassification"),
    "convnext": ("num_stages=2,depths=[1,1],hidden_sizes=[8,16],image_size=32", "ConvNextForImageClassification"),
    "resnet": ("embedding_size=8,depths=[1,1],hidden_sizes=[16,32],layer_type=basic", "ResNetForImageClassification"),
}


def build(name, **sizes):
    return build_example(f"hf:{name},{TINY[name][0]}", **{"batch_size": 2, "sequence_length": 16, **sizes})


@pytest.mark.parametrize("name", TINY)
def test_an_architecture_gets_a_head_with_a_loss_and_a_batch_with_labels(name):
    example = build(name)
    assert type(example.step.model).__name__ == TINY[name][1]
    assert {tensor.shape[0] for tensor in example.batch.values()} == {2}
    loss = example.step(example.batch)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in example.step.parameters())


@pytest.mark.parametrize("name", ["bert", "convnext"])
def test_weights_and_batch_follow_from_the_seed_alone(name):
    state = torch.random.get_rng_state()
    first, second, other = (build(name, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights, same, different = (list(example.step.parameters()) for example in (first, second, other))
    assert all(map(torch.equal, weights, same))
    assert not all(map(torch.equal, weights, different))
    assert all(torch.equal(first.batch[key], second.batch[key]) for key in first.batch)
    assert not any(torch.equal(first.batch[key], other.batch[key]) for key in first.batch)


def test_a_masked_language_model_learns_the_masked_tokens():
    labels = build("bert", sequence_length=40).batch["labels"]
    assert (labels != -100).sum(1).tolist() == [6, 6]


def test_settings_are_numbers_booleans_names_and_lists():
    config = build_example(
        "hf:gpt2,n_layer=1,n_embd=16,n_head=2,resid_pdrop=0.5,activation_function=relu,scale_attn_weights=false", 1
    ).step.model.config
    assert (config.n_layer, config.resid_pdrop, config.activation_function) == (1, 0.5, "relu")
    assert config.scale_attn_weights is False
    assert config.use_cache is False
    assert build("convnext").step.model.config.depths == [1, 1]


def test_images_are_as_large_as_the_config_says_and_else_as_asked():
    assert build("vit", image_size=64).batch["pixel_values"].shape == (2, 3, 32, 32)
    assert build("resnet", image_size=64).batch["pixel_values"].shape == (2, 3, 64, 64)


def test_a_model_of_seven_billion_parameters_is_built_on_meta():
    example = build_example("hf:llama", 4, device="meta")
    assert sum(p.numel() for p in example.step.parameters()) == 6_738_415_616
    held = (*example.step.parameters(), *example.step.buffers(), *example.batch.values())
    assert {tensor.device.type for tensor in held} == {"meta"}


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("hf:llamma", "model 'hf:llamma': not a model type of transformers; near: llama"),
        ("hf:", "not a model type of transformers such as gpt2"),
        ("hf:llama,hiden_size=32", "hiden_size: not a setting of LlamaConfig; near: hidden_size"),
        ("hf:llama,to_dict=1", "to_dict: not a setting of LlamaConfig"),
        ("hf:llama,hidden_size", "expected hf:TYPE,key=value,..., got 'hidden_size'"),
        ("hf:llama,hidden_size=big", "transformers refuses it: .*hidden_size.* expected int"),
        ("hf:llama,hidden_size=30", "transformers refuses it: .*30.* not a multiple of"),
        ("hf:wav2vec2", "no language model and no image classifier of this type"),
        ("hf:gpt2,n_positions=8", r"sequence length must be <= 8 \(max_position_embeddings\), got 64"),
    ],
)
def test_what_cannot_be_built_says_why_in_one_line(spec, reason):
    with pytest.raises(SegueError, match=reason) as caught:
        build_example(spec, 2, device="meta")
    assert "\n" not in str(caught.value)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SegueError, match=r"needs transformers: pip install 'segue\[hf\]'"):
        build_example("hf:gpt2", 2)
