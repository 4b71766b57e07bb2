"""`build_example`: any model by name, ready to train: the model, its loss, and a batch of random data."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...placement.capture import capture_program
from ...placement.costs import Profile
from ...placement.errors import SegueError
from ...placement.profile import measure_profile
from ...placement.program import Program
from ...placement.training_step import TrainingStep
from ..models import MODELS, build_model, load_user_model
from . import batches
from .bert import BERT
from .gpt import GPT
from .huggingface import build_huggingface
from .inception import InceptionV3
from .moe import MoE
from .recommender import TABLES, Recommender
from .resnet import ResNet50
from .seq2seq import Seq2Seq
from .unet import UNet
from .vgg import VGG16

VOCABULARY = 8192
DENSE_FEATURES = 13


@dataclass(frozen=True)
class Sizes:
    """Of the batch that a model is built for: samples, pixels of an image's side, tokens of a sequence."""

    batch: int
    image: int
    length: int


@dataclass(frozen=True, eq=False)
class Example:
    """A model with its loss, in train() mode, and a batch.

    Attributes:
        name: what it was asked for by.
        step: from batch to loss.
        batch: what `step` takes; the first dimension of every tensor is the batch.
    """

    name: str
    step: TrainingStep
    batch: Any

    def capture(self) -> Program:
        """The captured step, its names those of the model; raises `SegueError` as `capture_program` does."""
        return capture_program(self.step, (self.batch,), name=self.name, prefix="model.")

    def measure(self, program: Program, device: torch.device | str = "cpu", **options: Any) -> Profile:
        """Op times of `program`, captured from this example, on a device; `options` are `measure_profile`'s."""
        model = self.step.model
        tensors = {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        return measure_profile(program, tensors, program.flatten(self.batch), device, **options)


def _classifier(model: nn.Module, sizes: Sizes) -> tuple[TrainingStep, Any]:
    return TrainingStep(model, nn.CrossEntropyLoss()), batches.classified_images(sizes.batch, 3, sizes.image)


def _unet(sizes: Sizes) -> tuple[TrainingStep, Any]:
    step = TrainingStep(UNet(3, batches.CLASSES), nn.CrossEntropyLoss())
    return step, batches.segmented_images(sizes.batch, 3, sizes.image)


def _seq2seq(sizes: Sizes) -> tuple[TrainingStep, Any]:
    return TrainingStep(Seq2Seq(VOCABULARY)), batches.sentence_pairs(sizes.batch, sizes.length, VOCABULARY)


def _decoder(model: nn.Module, sizes: Sizes) -> tuple[TrainingStep, Any]:
    return TrainingStep(model), batches.next_tokens(sizes.batch, sizes.length, VOCABULARY)


def _bert(sizes: Sizes) -> tuple[TrainingStep, Any]:
    step = TrainingStep(BERT(sizes.length, VOCABULARY))
    tokens, targets = batches.masked_tokens(torch.randint(1, VOCABULARY, (sizes.batch, sizes.length)), 0)
    return step, {"tokens": tokens, "targets": targets}


def _recommender(sizes: Sizes) -> tuple[TrainingStep, Any]:
    step = TrainingStep(Recommender(DENSE_FEATURES, TABLES), nn.BCEWithLogitsLoss())
    return step, batches.clicks(sizes.batch, DENSE_FEATURES, TABLES)


ZOO: dict[str, Callable[[Sizes], tuple[TrainingStep, Any]]] = {
    "resnet50": lambda sizes: _classifier(ResNet50(sizes.image, 3, batches.CLASSES), sizes),
    "inception-v3": lambda sizes: _classifier(InceptionV3(sizes.image, 3, batches.CLASSES), sizes),
    "vgg16": lambda sizes: _classifier(VGG16(3, batches.CLASSES), sizes),
    "unet": _unet,
    "lstm-seq2seq": _seq2seq,
    "gpt": lambda sizes: _decoder(GPT(sizes.length, VOCABULARY), sizes),
    "bert": _bert,
    "moe": lambda sizes: _decoder(MoE(sizes.length, VOCABULARY), sizes),
    "recommender": _recommender,
}
"""Name -> builder, beside the small image classifiers of `models.MODELS`."""

_IMAGE_SIZES = {"resnet50": (32, 1), "inception-v3": (32, 1), "vgg16": (32, 1), "unet": (32, 16)}
"""Name -> the smallest image size, and what it must be a multiple of; the small classifiers take 8 or more."""


def build_example(
    spec: str,
    batch_size: int,
    *,
    seed: int = 0,
    image_size: int = 32,
    sequence_length: int = 64,
    device: str = "cpu",
) -> Example:
    """The model of that name with its loss, in train() mode, and a batch of random data.

    Args:
        spec: one of
            - a name of `ZOO` or of `models.MODELS` (small classifiers of one-channel images, weights as `build_model`'s);
            - `hf:TYPE` with settings, as in `build_huggingface`;
            - `path/to/file.py:function`, as in `load_user_model`. A batch of two entries is `(inputs, target)` and the
              loss cross-entropy; with any other batch the model returns its own loss.
        batch_size: samples in the batch. Of a user's batch the first ones are taken, or all where it has fewer.
        seed: of the weights and the batch; the caller's random state is left alone.
        image_size: height and width of the images.
        sequence_length: tokens of a sequence.
        device: `cpu`, or `meta` for a model without storage, however large (nothing is drawn).

    Raises:
        SegueError: if there is no such model, it cannot be built, or a size or the device is not one that it takes.
    """
    sizes = Sizes(batch_size, image_size, sequence_length)
    _check(spec, sizes, device)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        step, batch = _build(spec, sizes, seed)
    return Example(
        spec, step.to(device).train(), pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(device), batch)
    )


def _build(spec: str, sizes: Sizes, seed: int) -> tuple[TrainingStep, Any]:
    if spec.startswith("hf:"):
        model, batch = build_huggingface(spec, sizes.batch, sizes.image, sizes.length)
        return TrainingStep(model), batch
    if ".py:" in spec:
        return _user_model(spec, sizes.batch)
    if spec in MODELS:
        model = build_model(spec, sizes.image, 1, batches.CLASSES, seed)
        return TrainingStep(model, nn.CrossEntropyLoss()), batches.classified_images(sizes.batch, 1, sizes.image)
    return ZOO[spec](sizes)


def _user_model(spec: str, batch_size: int) -> tuple[TrainingStep, Any]:
    model, batch = load_user_model(spec)
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(batch)):
        raise SegueError(f"model {spec!r}: its example batch has no tensor")
    batch = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf[:batch_size] if leaf.dim() else leaf, batch)
    has_target = isinstance(batch, tuple | list) and len(batch) == 2
    return TrainingStep(model, nn.CrossEntropyLoss() if has_target else None), batch


def _check(spec: str, sizes: Sizes, device: str) -> None:
    """Raise `SegueError` for an unknown name, and for sizes and devices that no model or not this one takes."""
    if not spec.startswith("hf:") and ".py:" not in spec and spec not in MODELS and spec not in ZOO:
        near = difflib.get_close_matches(spec, [*MODELS, *ZOO], 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        known = ", ".join([*MODELS, *ZOO])
        raise SegueError(f"model {spec!r}: no such model{hint}; known: {known}, hf:TYPE, path/to/file.py:function")
    if device not in ("cpu", "meta"):
        raise SegueError(f"model {spec!r}: device must be cpu or meta, got {device!r}")
    for name, size in (("batch size", sizes.batch), ("image size", sizes.image), ("sequence length", sizes.length)):
        if size < 1:
            raise SegueError(f"model {spec!r}: {name} must be >= 1, got {size}")
    smallest, multiple = _IMAGE_SIZES.get(spec, (8 if spec in MODELS else 1, 1))
    if sizes.image < smallest or sizes.image % multiple:
        what = f">= {smallest}" + (f" and a multiple of {multiple}" if multiple > 1 else "")
        raise SegueError(f"model {spec!r}: image size must be {what}, got {sizes.image}")
