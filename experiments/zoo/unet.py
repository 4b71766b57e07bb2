"""U-Net."""

import torch
from torch import nn


class DoubleConvolution(nn.Sequential):
    """Two 3x3 convolutions, each with batch norm and ReLU; the size stays."""

    def __init__(self, inputs: int, outputs: int):
        layers: list[nn.Module] = []
        for features in (inputs, outputs):
            layers += [nn.Conv2d(features, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """Segmentation: a way down, a way up, and a skip connection at every size between them.

    After Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, with half its
    width, padded convolutions and batch norm. The first skip connection lives as long as the whole network takes.

    Args:
        channels: of the images, whose height and width are multiples of 16.
        classes: number of classes of a pixel.
        width: features at the full size; they double at every halving.
    """

    def __init__(self, channels: int = 3, classes: int = 10, width: int = 32):
        super().__init__()
        widths = [width << level for level in range(5)]
        self.down = nn.ModuleList(map(DoubleConvolution, [channels, *widths[:-1]], widths))
        self.pool = nn.MaxPool2d(2)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * features, features, 2, 2) for features in widths[-2::-1])
        self.up = nn.ModuleList(DoubleConvolution(2 * features, features) for features in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[N, channels, H, W]` to logits `[N, classes, H, W]`."""
        x = self.down[0](images)
        skips = []
        for level in self.down[1:]:
            skips.append(x)
            x = level(self.pool(x))
        for grow, level, skip in zip(self.grow, self.up, reversed(skips), strict=True):
            x = level(torch.cat([skip, grow(x)], dim=1))
        return self.head(x)
