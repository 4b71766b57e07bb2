"""`hf:NAME`: any architecture that transformers builds from its config, with random weights and nothing downloaded."""

import difflib
import inspect
import json
import re
from typing import Any

import torch
from torch import nn

from ...placement.errors import SegueError
from .batches import masked_tokens

# An encoder-decoder often has a class in all three text mappings, and an encoder one for causal language models too: what
# it was made for is tried first.
_HEADS = {
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING",
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
}


def build_huggingface(spec: str, batch_size: int, image_size: int, length: int) -> tuple[nn.Module, dict[str, Any]]:
    """A model with its training loss, and a batch of its keyword arguments, labels included, both drawn at random.

    The head is the first that transformers has of: sequence to sequence, masked and causal language model, image
    classification. Attention is the architecture's default (one fused op where it has that). Sizes are the config's own
    where the spec does not say otherwise; dropout too, which may be given as a setting.

    Args:
        spec: `hf:TYPE` or `hf:TYPE,key=value,...` with a model type of transformers and settings of its config, whose
            values may be numbers, booleans, names or lists (`hf:convnext,depths=[1,1],hidden_sizes=[8,16],num_stages=2`).
        batch_size: samples in the batch.
        image_size: height and width of the images, for an architecture whose config does not set them.
        length: tokens of a sequence.

    Raises:
        SegueError: if transformers is missing, if it has no such type, setting or training head, if it refuses a value, or
            if the sequences are too long.
    """
    try:
        import transformers
    except ImportError as error:
        raise SegueError(f"model {spec!r}: needs transformers: pip install 'segue[hf]'") from error
    config = _config(transformers, spec)
    head = next((head for head, mapping in _HEADS.items() if type(config) in getattr(transformers, mapping)), None)
    if head is None:
        raise SegueError(f"model {spec!r}: transformers has no language model and no image classifier of this type")
    model = _model(transformers, config, head, spec)
    if head == "image":
        return model, _images(model, batch_size, image_size)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < length:
        raise SegueError(
            f"model {spec!r}: sequence length must be <= {longest} (max_position_embeddings), got {length}"
        )
    return model, _tokens(model, head, batch_size, length)


def _config(transformers: Any, spec: str) -> Any:
    """The config with the spec's settings."""
    name, *settings = re.split(r",(?![^\[]*\])", spec.removeprefix("hf:"))
    known = list(transformers.CONFIG_MAPPING.keys())
    if name not in known:
        near = difflib.get_close_matches(name, known, 5, 0.5)
        hint = f"; near: {', '.join(near)}" if near else " such as gpt2, bert, llama, t5, mixtral, vit, resnet"
        raise SegueError(f"model 'hf:{name}': not a model type of transformers{hint}")
    build = transformers.CONFIG_MAPPING[name]
    values = dict(_setting(spec, setting) for setting in settings)
    try:
        default = build()
        for key in values:
            if not hasattr(default, key) or callable(getattr(default, key)):  # methods are no settings
                near = difflib.get_close_matches(key, [*default.to_dict(), *default.attribute_map], 3)
                hint = f"; near: {', '.join(near)}" if near else ""
                raise SegueError(f"model {spec!r}: {key}: not a setting of {type(default).__name__}{hint}")
        return build(**values)
    except SegueError:
        raise
    except Exception as error:
        raise _refused(spec, error) from error


def _setting(spec: str, setting: str) -> tuple[str, Any]:
    key, equals, value = setting.partition("=")
    if not key or not equals or not value:
        raise SegueError(f"model {spec!r}: expected hf:TYPE,key=value,..., got {setting!r}")
    try:
        return key, json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
    except ValueError:
        return key, value


def _refused(spec: str, error: Exception) -> SegueError:
    return SegueError(
        f"model {spec!r}: transformers refuses it: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    )


def _model(transformers: Any, config: Any, head: str, spec: str) -> Any:
    """The model, with the settings that training needs."""
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if head == "image":
        # Else the model finds the loss from the labels, and changes its config in its first forward pass.
        config.problem_type = "single_label_classification"
    if head == "seq2seq":
        # What published checkpoints set, and the configs of T5 and of paired models alone do not.
        for role in ("pad_token_id", "decoder_start_token_id"):
            if getattr(config, role, None) is None:
                setattr(config, role, getattr(config, "pad_token_id", None) or 0)
    try:
        classes = getattr(transformers, _HEADS[head])[type(config)]
        model = (classes[0] if isinstance(classes, list | tuple) else classes)(config)
    except Exception as error:
        raise _refused(spec, error) from error
    if head == "causal" and getattr(model, "loss_type", "") is None:
        model.loss_type = "ForCausalLM"  # what it takes anyway, after a warning, where the class is not named so
    return model


def _images(model: Any, batch_size: int, image_size: int) -> dict[str, Any]:
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", None) or image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    images = torch.randn(batch_size, getattr(config, "num_channels", 3), height, width)
    return {model.main_input_name: images, "labels": torch.randint(model.config.num_labels, (batch_size,))}


def _tokens(model: Any, head: str, batch_size: int, length: int) -> dict[str, Any]:
    """Token ids without special ones, which some models take for padding, and the labels that the head learns."""
    config = model.config.get_text_config()
    roles = (getattr(config, f"{role}_token_id", None) for role in ("pad", "bos", "eos", "decoder_start"))
    special = {token for role in roles for token in (role if isinstance(role, list) else [role])}
    usable = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    tokens = usable[torch.randint(len(usable), (batch_size, length))]
    if head == "masked":
        mask = getattr(config, "mask_token_id", None)
        tokens, labels = masked_tokens(tokens, usable[0] if mask is None else mask)
        return {model.main_input_name: tokens, "labels": labels}
    batch = {model.main_input_name: tokens, "labels": tokens.clone()}
    if head == "causal" and "attention_mask" in inspect.signature(model.forward).parameters:
        # Without it, decoders search the batch for several texts packed into one sequence.
        batch["attention_mask"] = torch.ones_like(tokens)
    return batch
