"""ResNet-50."""

import torch
from torch import nn


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the 3x3 carries the stride."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.layers = nn.Sequential(
            *_convolution(inputs, width, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride),
            nn.ReLU(),
            *_convolution(width, outputs, 1),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, inputs, H, W]` to `[N, 4 * width, H / stride, W / stride]`."""
        return self.relu(self.layers(x) + self.shortcut(x))


class ResNet50(nn.Module):
    """The 50-layer residual network.

    After He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1.

    Args:
        image_size: height and width of the images, 32 or more; below 64 the first pooling is left out, so that the last
            stage still has several pixels to norm over.
        channels: of the images.
        classes: number of classes.
    """

    def __init__(self, image_size: int, channels: int = 3, classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(*_convolution(channels, 64, 7, 2), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1) if image_size >= 64 else nn.Identity()
        stages, inputs = [], 64
        for blocks, width, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
            stage = []
            for block in range(blocks):
                stage.append(Bottleneck(inputs, width, stride if block == 0 else 1))
                inputs = 4 * width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[N, channels, image_size, image_size]` to logits `[N, classes]`."""
        return self.head(self.stages(self.pool(self.stem(images))))
