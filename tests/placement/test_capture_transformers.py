import copy
import subprocess
import sys

import pytest
import torch

from segue.placement.capture import capture_program
from segue.placement.captured import capture_any
from segue.placement.training_step import TrainingStep
from tests.placement.test_capture import run

transformers = pytest.importorskip("transformers")

TEXT = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL = TEXT | LAYERS
MODELS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", TEXT | {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "bert": ("BertForMaskedLM", "BertConfig", SMALL),
    "llama": ("LlamaForCausalLM", "LlamaConfig", SMALL),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        TEXT | {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", SMALL | {"num_key_value_heads": 2, "num_local_experts": 4}),
    "vit": ("ViTForImageClassification", "ViTConfig", LAYERS | {"image_size": 16, "patch_size": 8}),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 8, 8, 16], "depths": [1] * 4},
    ),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
}
IMAGES = ("vit", "convnext", "resnet")


def build(name):
    model, config, settings = MODELS[name]
    torch.manual_seed(0)
    settings = settings | ({"num_labels": 3} if name in IMAGES else {"use_cache": False})
    return getattr(transformers, model)(getattr(transformers, config)(**settings)).train()


def batch_of(name, samples):
    generator = torch.Generator().manual_seed(samples)
    if name in IMAGES:
        pixels = torch.randn(samples, 3, 16 if name == "vit" else 32, 16 if name == "vit" else 32, generator=generator)
        return {"pixel_values": pixels, "labels": torch.randint(0, 3, (samples,), generator=generator)}
    tokens = torch.randint(1, 50, (samples, 6), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}


@pytest.mark.parametrize("name", MODELS)
def test_a_transformers_model_is_captured_with_its_loss_and_gradients(name):
    model = build(name)
    reference = copy.deepcopy(model)
    program = capture_program(TrainingStep(model), (batch_of(name, 4),), name=name, prefix="model.")
    assert program.graph.parameter_bytes.sum() == sum(p.nbytes for p in model.parameters())
    batch = batch_of(name, 3)
    torch.manual_seed(1)
    loss = run(program, model, batch)
    torch.manual_seed(1)
    expected = TrainingStep(reference)(batch)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for (path, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), path
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, msg=path)


def test_a_transformers_model_with_a_branch_on_the_data_is_traced():
    class Early(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build("llama")

        def forward(self, **batch):
            output = self.inner(**batch)
            return output.loss * (1 if output.logits.abs().max() < 100 else 0.5)

    model = Early()
    got = capture_any(TrainingStep(model), (batch_of("llama", 4),), prefix="model.")
    assert got.method == "trace"
    assert got.graph.parameter_bytes.sum() == sum(p.nbytes for p in model.parameters())
    assert {"inner.model.layers.1.self_attn.q_proj", "inner.lm_head"} <= set(got.graph.modules)


LARGE = """
import time
import torch, transformers
from segue.placement.capture import capture_program
from segue.placement.training_step import TrainingStep

with torch.device("meta"):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(use_cache=False)).train()
    tokens = torch.zeros(2, 256, dtype=torch.long)
start = time.process_time()
batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
graph = capture_program(TrainingStep(model), (batch,), prefix="model.").graph
seconds = time.process_time() - start
flops = graph.forward_flops.sum() + graph.backward_flops.sum()
parameters = sum(p.numel() for p in model.parameters())
assert parameters > 6.7e9, parameters
assert graph.parameter_bytes.sum() == sum(p.nbytes for p in model.parameters())
assert abs(flops / (6 * parameters * tokens.numel()) - 1) < 0.15, flops
# Not ru_maxrss, which a process takes over from the one that started it.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak.split()[1]) / 1024)
"""


@pytest.mark.slow
def test_a_model_of_seven_billion_parameters_is_captured_on_the_meta_device():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LARGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, mebibytes = map(float, done.stdout.split()[-2:])
    assert seconds < 60  # of processor time; about 9 where nothing else runs
    assert mebibytes < 2048
