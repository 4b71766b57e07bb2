"""VGG-16 with batch norm."""

import torch
from torch import nn


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five parts and three linear layers, which hold most of the parameters.

    After Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1,
    column D, with a batch norm behind every convolution. The linear layers take 7x7 features whatever the images' size.

    Args:
        channels: of the images, which are 32 pixels or more high and wide.
        classes: number of classes.
    """

    def __init__(self, channels: int = 3, classes: int = 10):
        super().__init__()
        parts, inputs = [], channels
        for convolutions, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            part: list[nn.Module] = []
            for _ in range(convolutions):
                part += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            parts.append(nn.Sequential(*part, nn.MaxPool2d(2)))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(7),
            nn.Flatten(),
            nn.Linear(49 * inputs, 4096),
            nn.ReLU(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[N, channels, H, W]` to logits `[N, classes]`."""
        return self.classifier(self.features(images))
