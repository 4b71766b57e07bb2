import numpy as np
import pytest
import torch
from PIL import Image

from segue.experiments.data import ImageData, batches, load_data
from segue.placement.errors import SegueError


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", 32)


def make_folder(root, names=("cat", "dog")):
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir()
        for number, suffix in enumerate(("png", "jpg", "jpeg")):
            pixels = rng.integers(0, 255, (10 + number, 12, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.{suffix}")
    return f"imagefolder:{root}"


def test_digits_are_real_images_of_the_asked_size(digits):
    assert digits.images.shape == (1797, 1, 32, 32)
    assert digits.images.dtype == torch.float32
    assert digits.labels.dtype == torch.int64
    assert digits.class_names == tuple("0123456789")
    assert abs(float(digits.images.mean())) < 1e-4
    assert float(digits.images.std()) == pytest.approx(1, abs=1e-3)


def test_imagefolder_has_a_class_a_folder(tmp_path):
    (tmp_path / "notes").mkdir()
    data = load_data(make_folder(tmp_path), 16)
    assert data.images.shape == (6, 3, 16, 16)
    assert data.channels == 3
    assert data.class_names == ("cat", "dog")
    assert data.classes == 2
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_unusable_data_is_named(tmp_path):
    with pytest.raises(SegueError, match="data 'mnist': no such data set; known: digits"):
        load_data("mnist", 32)
    with pytest.raises(SegueError, match="nowhere: no such folder"):
        load_data(f"imagefolder:{tmp_path}/nowhere", 32)
    with pytest.raises(SegueError, match="expected a folder for each class"):
        load_data(f"imagefolder:{tmp_path}", 32)
    spec = make_folder(tmp_path)
    (tmp_path / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(SegueError, match=r"dog/broken\.png: not a readable image"):
        load_data(spec, 32)


def test_batches_cover_an_epoch_once_and_differ_between_epochs():
    numbered = ImageData("numbers", torch.arange(50.0).view(50, 1, 1, 1), torch.arange(50), ("one",))
    labels = torch.cat([batch for _, batch in batches(numbered, 10, seed=1, steps=10)]).tolist()
    first, second = labels[:50], labels[50:]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert torch.cat([batch for _, batch in batches(numbered, 10, seed=2, steps=5)]).tolist() != first


def test_a_resumed_run_sees_the_same_batches(digits):
    whole = list(batches(digits, 64, seed=3, steps=60))
    resumed = list(batches(digits, 64, seed=3, steps=60, start_step=41))
    assert len(whole) == 60
    assert len(resumed) == 19
    for (images, labels), (again, labels_again) in zip(whole[41:], resumed, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)


def test_the_short_last_batch_is_dropped_unless_kept(digits):
    steps = 1797 // 500 + 1
    assert [len(labels) for _, labels in batches(digits, 500, 0, steps)] == [500] * 4
    assert [len(labels) for _, labels in batches(digits, 500, 0, steps, drop_last=False)] == [500, 500, 500, 297]


def test_a_batch_of_more_images_than_there_are_is_refused_at_the_call(digits):
    with pytest.raises(SegueError, match="batch size 2000 is more than the 1797 images of digits"):
        batches(digits, 2000, 0, 1)
    with pytest.raises(SegueError, match="batch size must be >= 1, got 0"):
        batches(digits, 0, 0, 1)
