"""Pictures as people have them: what the examples make of their pixels, and of folders of them."""

from __future__ import annotations

import io
from pathlib import Path

import images
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps


def reopened(image: Image.Image, kind: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def grey(values: np.ndarray, kind: str = "TIFF") -> Image.Image:
    return reopened(Image.fromarray(values), kind)


RAMP = np.linspace(0, 1, 16 * 16).reshape(16, 16)
EXPECTED = torch.from_numpy((RAMP * 255).round().astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_stands_as_its_orientation_says(kind: str, orientation: int):
    quarters = Image.new("RGB", (32, 32), "white")
    quarters.paste("black", (0, 0, 16, 32))
    quarters.paste("red", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    upright = ImageOps.exif_transpose(reopened(quarters, kind, exif=exif, **options)).convert("RGB")
    seen = images.square(reopened(quarters, kind, exif=exif, **options), 32).float()
    assert torch.equal(seen, images.square(upright, 32).float())
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    red = seen[:, 8 + 16 * corner[0], 8 + 16 * corner[1]]
    assert red[0] > 240
    assert red[1:].max() < 20


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((RAMP * 65535).astype("<u2"), "PNG"),
        ((RAMP * 65535).astype("<u2"), "TIFF"),
        ((RAMP * 65535).astype(np.int32), "TIFF"),
        ((RAMP * 255).round().astype(np.int32), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        ((RAMP * 255).astype(np.float32), "TIFF"),
        ((RAMP * 65535).astype(np.float32), "TIFF"),
        ((RAMP * 255).round().astype(np.uint8), "PNG"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype} to {value.max():g}",
)
def test_grey_levels_of_any_depth_are_scaled(values: np.ndarray, kind: str):
    seen = images.square(grey(values, kind), 16)
    assert (seen.int() - EXPECTED.int()).abs().max() <= 1
    assert torch.equal(seen[0], seen[2])


def test_sixteen_bits_in_the_other_order_of_bytes():
    big_endian = Image.frombytes("I;16B", (16, 16), (RAMP * 65535).astype(">u2").tobytes())
    for image in (big_endian, reopened(big_endian, "TIFF")):
        assert image.mode == "I;16B"
        assert (images.square(image, 16).int() - EXPECTED.int()).abs().max() <= 1


def test_floats_may_overshoot_by_a_tenth_and_no_further():
    assert images.square(Image.fromarray((RAMP * 1.1 - 0.05).astype(np.float32)), 16).min() == 0
    for wrong in (RAMP - 0.5, 2 * RAMP - 1, RAMP * np.nan, RAMP * 2, RAMP * 1e6):
        with pytest.raises(ValueError, match=r"values from .* to .* in mode F; scale them to 0\.\.1"):
            images.square(Image.fromarray(wrong.astype(np.float32)), 16)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_is_white(mode: str):
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 4, 8))
    if mode == "P":
        image = reopened(half.quantize(4), "PNG")
    elif mode in ("L", "RGB"):  # one colour of the file is transparent
        opaque = Image.new(mode, (8, 8), "black")
        opaque.paste("red" if mode == "RGB" else 200, (0, 0, 4, 8))
        image = reopened(opaque, "PNG", transparency=(255, 0, 0) if mode == "RGB" else 200)
    else:
        image = half.convert(mode)
    seen = images.square(image, 8)
    assert (seen[:, :, :4] == 255).all()
    assert (seen[:, :, 4:] == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_other_modes_become_the_same_colours(mode: str):
    colours = Image.new("RGB", (8, 8), "white")
    colours.paste("black", (0, 0, 4, 8))
    seen = images.square(colours.convert(mode), 8)
    assert (seen[:, :, :4] < 3).all()
    assert (seen[:, :, 4:] > 252).all()


# ----------------------------------------------------------------------------------------------------------- folders
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of six 16-bit images, and what macOS and notebooks leave beside them."""
    for c, shade in (("dark", 8000), ("light", 50000)):
        (tmp_path / c).mkdir()
        for i in range(6):
            Image.fromarray(np.full((9, 9), shade, dtype=np.uint16)).save(tmp_path / c / f"{i}.PNG")
            (tmp_path / c / f"._{i}.PNG").write_bytes(b"resource fork")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / ".ipynb_checkpoints" / "x.png")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_a_folder_is_read_as_single_pictures_are(folder: Path):
    train, test = images.image_folder(folder, 8)
    assert len(train.images) == 10
    assert len(test.images) == 2
    assert train.images[train.labels == 0].unique().tolist() == [31]
    assert train.images[train.labels == 1].unique().tolist() == [195]


def test_labels_of_both_splits_are_those_of_the_training_folder(folder: Path):
    for split, names in (("train", "abc"), ("test", "ac")):
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("L", (8, 8), 10 * ord(name) % 256).save(folder / split / name / f"{i}.png")
    train, test = images.image_folder(folder, 8)
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels.tolist() == [0, 0, 2, 2]
    (folder / "test" / "c").rename(folder / "test" / "d")
    with pytest.raises(ValueError, match=r"test has classes that .*train has not: \['d'\]"):
        images.image_folder(folder, 8)


def test_a_picture_that_cannot_be_read_is_named(folder: Path):
    whole = (folder / "dark" / "1.PNG").read_bytes()
    for content in (b"", b"no picture", whole[: len(whole) // 2]):
        (folder / "dark" / "3.PNG").write_bytes(content)
        with pytest.raises(ValueError, match=r"dark.3\.PNG cannot be read as an image; .* \(.*Error"):
            images.image_folder(folder, 8)


def test_folders_that_are_no_classes_say_so(folder: Path):
    (folder / "light").rename(folder / ".light")
    with pytest.raises(ValueError, match=r"has one class, 'dark'; the accuracies need two"):
        images.image_folder(folder, 8)
    (folder / ".light").rename(folder / "light")
    with pytest.raises(ValueError, match=r"the image size must be positive, got 0"):
        images.image_folder(folder, 0)
    for i in range(2, 6):
        for c in ("dark", "light"):
            (folder / c / f"{i}.PNG").unlink()
    with pytest.raises(ValueError, match="no class has five images"):
        images.image_folder(folder, 8)
