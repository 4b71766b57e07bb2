"""The model zoo: small image classifiers by name, and models from the user's own files."""

import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..placement.errors import SegueError


class ConvUnit(nn.Sequential):
    """Convolution, batch norm, ReLU; the size stays but for the stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )


class InceptionBlock(nn.Module):
    """Four branches side by side, concatenated: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; pool, 1x1.

    After Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, figure 5.
    """

    def __init__(self, inputs: int, width: int):
        super().__init__()
        narrow = width * 3 // 4
        self.branch1x1 = ConvUnit(inputs, width, 1)
        self.branch3x3 = nn.Sequential(ConvUnit(inputs, narrow, 1), ConvUnit(narrow, width))
        self.branch5x5 = nn.Sequential(ConvUnit(inputs, narrow, 1), ConvUnit(narrow, width), ConvUnit(width, width))
        self.branch_pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvUnit(inputs, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, inputs, H, W]` to `[N, 4 * width, H, W]`."""
        return torch.cat([self.branch1x1(x), self.branch3x3(x), self.branch5x5(x), self.branch_pool(x)], dim=1)


class ReductionBlock(nn.Module):
    """Three branches that halve the size: 3x3; 1x1, 3x3, 3x3; pool."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.branch3x3 = ConvUnit(inputs, width, 3, 2)
        self.branch5x5 = nn.Sequential(ConvUnit(inputs, width, 1), ConvUnit(width, width), ConvUnit(width, width, 3, 2))
        self.branch_pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, inputs, H, W]` to `[N, 2 * width + inputs, H / 2, W / 2]`."""
        return torch.cat([self.branch3x3(x), self.branch5x5(x), self.branch_pool(x)], dim=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = ConvUnit(inputs, outputs, 3, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, H / stride, W / stride]`."""
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


def _head(features: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def _inception(channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [ConvUnit(channels, 16), ConvUnit(16, 32, 3, 2)]
    features = 32
    for blocks, width in ((2, 16), (3, 24), (2, 32)):
        if width > 16:
            layers.append(ReductionBlock(features, width))
            features += 2 * width
        for _ in range(blocks):
            layers.append(InceptionBlock(features, width))
            features = 4 * width
    return nn.Sequential(*layers, *_head(features, classes))


def _resnet(channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [ConvUnit(channels, 16)]
    features = 16
    for width, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        layers.append(ResidualBlock(features, width, stride))
        features = width
    return nn.Sequential(*layers, *_head(features, classes))


def _vgg(channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    features = channels
    for width in (16, 32, 64):
        layers += [ConvUnit(features, width), ConvUnit(width, width), nn.MaxPool2d(2)]
        features = width
    return nn.Sequential(*layers, *_head(features, classes))


def _mlp(image_size: int, channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    features = channels * image_size * image_size
    for width in (512, 256, 128):
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


MODELS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "inception": lambda image_size, channels, classes: _inception(channels, classes),
    "resnet": lambda image_size, channels, classes: _resnet(channels, classes),
    "vgg": lambda image_size, channels, classes: _vgg(channels, classes),
    "mlp": _mlp,
}
"""Name -> builder of `(image_size, channels, classes)`."""


def build_model(name: str, image_size: int = 32, channels: int = 1, classes: int = 10, seed: int = 0) -> nn.Module:
    """A zoo model in train() mode, its weights drawn from `seed` (the caller's random state is left alone).

    Args:
        name: a key of `MODELS`.
        image_size: height and width of the images, 8 or more.
        channels: 1 or 3.
        classes: number of classes.
        seed: of the weights.

    Raises:
        SegueError: if there is no model of that name.
    """
    if name not in MODELS:
        raise SegueError(f"model {name!r}: no such model; known: {', '.join(MODELS)}; or give path/to/file.py:function")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](image_size, channels, classes).train()


def load_user_model(spec: str) -> tuple[nn.Module, Any]:
    """The `(model, example_batch)` that a function in the user's file returns.

    Args:
        spec: `path/to/file.py:function`; the function takes no arguments.

    Raises:
        SegueError: if the file or the function is missing, fails, or returns something else.
    """
    path, _, function = spec.rpartition(":")
    if not path.endswith(".py") or not function:
        raise SegueError(f"model {spec!r}: expected path/to/file.py:function")
    if not Path(path).is_file():
        raise SegueError(f"model {spec!r}: no such file: {path}")
    try:
        build = getattr(_import_file(Path(path).resolve()), function, None)
        if not callable(build):
            raise SegueError(f"model {spec!r}: {path} has no function {function!r}")
        result: Any = build()
    except SegueError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise SegueError(f"model {spec!r}: raised {type(error).__name__}: {reason}") from error
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], nn.Module):
        raise SegueError(
            f"model {spec!r}: {function}() must return (nn.Module, example_batch), got {type(result).__name__}"
        )
    return result


def _import_file(path: Path) -> ModuleType:
    """The file as a module under its own name, with its folder importable, as `python file.py` has it."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    sys.modules[path.stem] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    SourceFileLoader(path.stem, str(path)).exec_module(module)
    return module
