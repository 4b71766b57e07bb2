"""Inception-v3: branches side by side, in five kinds of blocks.

After Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016; figures and widths are that
paper's, without its auxiliary classifier, and with padded convolutions throughout, so that small images work.
"""

import torch
from torch import nn

Size = int | tuple[int, int]


class Unit(nn.Sequential):
    """Convolution, batch norm, ReLU, padded to keep the size but for the stride."""

    def __init__(self, inputs: int, outputs: int, kernel: Size = 1, stride: int = 1):
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        super().__init__(
            nn.Conv2d(inputs, outputs, (high, wide), stride, (high // 2, wide // 2), bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


def _chain(*layers: tuple[int, Size], inputs: int, stride: int = 1) -> nn.Sequential:
    """Units of the given `(width, kernel)` one behind the other; the last one has the stride."""
    units = []
    for position, (width, kernel) in enumerate(layers):
        units.append(Unit(inputs, width, kernel, stride if position == len(layers) - 1 else 1))
        inputs = width
    return nn.Sequential(*units)


class Branches(nn.Module):
    """Branches over the same input, concatenated along the features.

    Args:
        branches: modules whose results have one size.
    """

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, features, H, W]` to the branches' features, side by side."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _pooled(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), Unit(inputs, width))


class SmallBlock(Branches):
    """Figure 5: 1x1; 5x5; two 3x3; pool. `pool + 224` features out."""

    def __init__(self, inputs: int, pool: int):
        super().__init__(
            Unit(inputs, 64),
            _chain((48, 1), (64, 5), inputs=inputs),
            _chain((64, 1), (96, 3), (96, 3), inputs=inputs),
            _pooled(inputs, pool),
        )


class FirstReduction(Branches):
    """Figure 10: 3x3; 1x1 and two 3x3; pool, all halving the size. `inputs + 480` features out."""

    def __init__(self, inputs: int):
        super().__init__(
            Unit(inputs, 384, 3, 2),
            _chain((64, 1), (96, 3), (96, 3), inputs=inputs, stride=2),
            nn.MaxPool2d(3, 2, 1),
        )


class FactorisedBlock(Branches):
    """Figure 6 with n = 7: 1x1; 1x7 and 7x1; twice that; pool. 768 features out."""

    def __init__(self, inputs: int, width: int):
        row, column = (1, 7), (7, 1)
        super().__init__(
            Unit(inputs, 192),
            _chain((width, 1), (width, row), (192, column), inputs=inputs),
            _chain((width, 1), (width, column), (width, row), (width, column), (192, row), inputs=inputs),
            _pooled(inputs, 192),
        )


class SecondReduction(Branches):
    """1x1 and 3x3; 1x1, 1x7, 7x1 and 3x3; pool, all halving the size. `inputs + 512` features out."""

    def __init__(self, inputs: int):
        super().__init__(
            _chain((192, 1), (320, 3), inputs=inputs, stride=2),
            _chain((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), inputs=inputs, stride=2),
            nn.MaxPool2d(3, 2, 1),
        )


class WideBlock(Branches):
    """Figure 7: 1x1; 1x3 beside 3x1; the same behind a 3x3; pool. 2048 features out."""

    def __init__(self, inputs: int):
        def split() -> Branches:
            return Branches(Unit(384, 384, (1, 3)), Unit(384, 384, (3, 1)))

        super().__init__(
            Unit(inputs, 320),
            nn.Sequential(Unit(inputs, 384), split()),
            nn.Sequential(_chain((448, 1), (384, 3), inputs=inputs), split()),
            _pooled(inputs, 192),
        )


class InceptionV3(nn.Module):
    """Inception-v3.

    Args:
        image_size: height and width of the images, 32 or more; below 64 the first pooling is left out, so that the last
            blocks still have several pixels to norm over.
        channels: of the images.
        classes: number of classes.
    """

    def __init__(self, image_size: int, channels: int = 3, classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(
            Unit(channels, 32, 3, 2),
            Unit(32, 32, 3),
            Unit(32, 64, 3),
            nn.MaxPool2d(3, 2, 1) if image_size >= 64 else nn.Identity(),
            Unit(64, 80),
            Unit(80, 192, 3),
            nn.MaxPool2d(3, 2, 1),
        )
        self.blocks = nn.Sequential(
            *(SmallBlock(192, 32), SmallBlock(256, 64), SmallBlock(288, 64), FirstReduction(288)),
            *(FactorisedBlock(768, width) for width in (128, 160, 160, 192)),
            *(SecondReduction(768), WideBlock(1280), WideBlock(2048)),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[N, channels, image_size, image_size]` to logits `[N, classes]`."""
        return self.head(self.blocks(self.stem(images)))
