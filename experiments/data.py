"""Image data sets and their batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..placement.errors import SegueError

IMAGE_FOLDER = "imagefolder:"
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image data set in memory.

    Attributes:
        name: what it was loaded from.
        images: `float32[N, C, H, W]`, zero mean and unit variance over the whole set.
        labels: class of every image, `int64[N]`.
        class_names: in label order.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.images.shape[1]


def load_data(spec: str, image_size: int) -> ImageData:
    """Load a data set.

    Args:
        spec: `digits` (1797 scanned handwritten digits that come with scikit-learn), or `imagefolder:PATH` (a folder for
            each class, with PNG or JPEG files).
        image_size: height and width that images are resized to.

    Raises:
        SegueError: if there is no such data set, or a folder or file cannot be used.
    """
    if image_size < 1:
        raise SegueError(f"image size must be >= 1, got {image_size}")
    if spec == "digits":
        return _digits(image_size)
    if spec.startswith(IMAGE_FOLDER):
        return _image_folder(Path(spec.removeprefix(IMAGE_FOLDER)), image_size)
    raise SegueError(f"data {spec!r}: no such data set; known: digits, {IMAGE_FOLDER}PATH")


def batches(
    data: ImageData, batch_size: int, seed: int, steps: int, start_step: int = 0, *, drop_last: bool = True
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches `start_step` to `steps - 1` of a run, the same ones whatever `start_step` is.

    Args:
        data: the data set.
        batch_size: images in a batch.
        seed: with the epoch's number, decides the epoch's order.
        steps: steps of the whole run.
        start_step: first step to return; a resumed run passes the step it resumes at.
        drop_last: whether an epoch leaves out its last batch where that would be short.

    Yields:
        `(images, labels)`, `float32[B, C, H, W]` and `int64[B]`.

    Raises:
        SegueError: at the call, if no full batch can be made.
    """
    count = len(data.labels)
    if batch_size < 1:
        raise SegueError(f"batch size must be >= 1, got {batch_size}")
    if drop_last and batch_size > count:
        raise SegueError(f"batch size {batch_size} is more than the {count} images of {data.name}")
    per_epoch = count // batch_size if drop_last else -(-count // batch_size)
    return _batches(data, batch_size, seed, range(start_step, steps), per_epoch)


def _batches(
    data: ImageData, batch_size: int, seed: int, steps: range, per_epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    shuffled, order = -1, torch.empty(0, dtype=torch.int64)
    for step in steps:
        epoch, position = divmod(step, per_epoch)
        if epoch != shuffled:
            shuffled, order = (
                epoch,
                torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(data.labels))),
            )
        chosen = order[position * batch_size : (position + 1) * batch_size]
        yield data.images[chosen], data.labels[chosen]


def _digits(image_size: int) -> ImageData:
    # Imported here because scikit-learn takes a second to load.
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None]
    images = torch.nn.functional.interpolate(images, size=(image_size, image_size), mode="bilinear")
    labels = torch.from_numpy(digits.target).long()
    return ImageData("digits", _normalised(images), labels, tuple(str(name) for name in digits.target_names))


def _image_folder(folder: Path, image_size: int) -> ImageData:
    where = f"data {IMAGE_FOLDER}{folder}"
    if not folder.is_dir():
        raise SegueError(f"{where}: no such folder")
    files: list[tuple[Path, int]] = []
    classes = []
    for directory in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = sorted(path for path in directory.iterdir() if path.suffix.lower() in SUFFIXES)
        if found:
            files += [(path, len(classes)) for path in found]
            classes.append(directory.name)
    if not classes:
        raise SegueError(
            f"{where}: expected a folder for each class with {', '.join(SUFFIXES)} files in it, found none"
        )
    images = torch.stack([_read(path, image_size) for path, _ in files])
    labels = torch.tensor([label for _, label in files])
    return ImageData(f"{IMAGE_FOLDER}{folder}", _normalised(images), labels, tuple(classes))


def _read(path: Path, image_size: int) -> torch.Tensor:
    """One image as `float32[3, H, W]`."""
    try:
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((image_size, image_size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SegueError(f"{path}: not a readable image: {error}") from error
    return torch.from_numpy(np.asarray(resized, np.float32).transpose(2, 0, 1).copy())


def _normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - images.mean()) / images.std().clamp_min(1e-6)
