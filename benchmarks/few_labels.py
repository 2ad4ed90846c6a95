"""Do anchors help where few images have a label?

    python benchmarks/few_labels.py --root data [--download]     # what is missing of the grid, the table, the picture
    python benchmarks/few_labels.py --only 'simclr*/0.1/*'       # some cells: ARM/LABELLED/LR/BATCH/SEED
    python benchmarks/few_labels.py --list                       # the cells, and which are done

SimCLR and SupCon on Fashion-MNIST, with and without anchors, from the same initial weights, on the same batches, labels
and augmentations, over learning rates and batch sizes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from pages import markdown
from probes import UNLABELLED, few_labels, linear_probe
from records import Records, mean_and_spread, parser, picture_path, publish, run_missing
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_heads import NTXentLoss, OrthonormalAnchorRegression, SupConLoss, metrics
from ssl_heads.optim import param_groups

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from images import augment, load, pixels

SEEDS = range(3)


class Cell(NamedTuple):
    """One run on Fashion-MNIST."""

    arm: str
    fraction: float
    lr: float
    batch_size: int
    seed: int


ARMS = ("simclr", "simclr+anchors", "supcon", "supcon+anchors")
FRACTIONS = (0.01, 0.05, 0.1)
RATES, BATCHES = (5e-4, 2e-3, 8e-3), (64, 256)
TRAINED, VALIDATED, EPOCHS, WIDTH = 10_000, 5_000, 6, 128


def grid(seeds: Sequence[int]) -> Iterator[Cell]:
    for seed in seeds:
        for batch_size in BATCHES:
            for lr in RATES:
                for arm in ARMS:
                    for fraction in FRACTIONS:
                        yield Cell(arm, fraction, lr, batch_size, seed)


@dataclass(frozen=True, eq=False)
class FashionMnist:
    """Ten thousand training images, five thousand to choose learning rates with, the test set."""

    images: Tensor
    classes: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def fashion_mnist(root: Path, download: bool) -> FashionMnist:
    train, test = load("fashion-mnist", root, download, 28)
    last = slice(TRAINED, TRAINED + VALIDATED)
    return FashionMnist(
        train.images[:TRAINED],
        train.labels[:TRAINED],
        (train.images[last], train.labels[last]),
        (test.images, test.labels),
    )


class Network(nn.Module):
    """A small convolutional network and a projection head."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out, stride in ((1, 16, 2), (16, 32, 2), (32, 64, 2), (64, WIDTH, 1)):
            layers += [nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(
            nn.Linear(WIDTH, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, WIDTH)
        )


def run(cell: Cell, data: FashionMnist) -> dict[str, object]:
    labels = few_labels(data.classes, cell.fraction, torch.Generator().manual_seed(cell.seed))
    # SimCLR reads no label: one training serves every share of them.
    trained = train_without_labels(cell.lr, cell.batch_size, cell.seed, data) if cell.arm == "simclr" else None
    model, seconds = trained or train(cell.arm, labels, cell.lr, cell.batch_size, cell.seed, data)
    row = evaluate(model.eval(), data, labels)
    return {**row, "seconds": f"{seconds:.0f}"}


@lru_cache(maxsize=1)
def train_without_labels(lr: float, batch_size: int, seed: int, data: FashionMnist) -> tuple[Network, float]:
    return train("simclr", torch.full_like(data.classes, UNLABELLED), lr, batch_size, seed, data)


def train(arm: str, labels: Tensor, lr: float, batch_size: int, seed: int, data: FashionMnist) -> tuple[Network, float]:
    """Returns the network and the seconds it took."""
    torch.manual_seed(seed)
    model, anchored = Network().to(memory_format=torch.channels_last), OrthonormalAnchorRegression(10, WIDTH)
    contrast, supervised = NTXentLoss(0.2), SupConLoss(0.2)
    steps = TRAINED // batch_size * EPOCHS
    optimizer = torch.optim.AdamW(param_groups(model, lr=lr, weight_decay=1e-4))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    start = time.perf_counter()
    for step in range(steps):
        epoch, batch = divmod(step, TRAINED // batch_size)
        order = torch.randperm(TRAINED, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        chosen = order[batch * batch_size :][:batch_size]
        torch.manual_seed(1_000_003 * seed + step)  # every arm sees the same views
        x = pixels(data.images[chosen], "cpu")
        z = model.head(model.backbone(torch.cat([augment(x), augment(x)])))
        known = labels[chosen]
        if arm.startswith("supcon"):
            alone = 10 + torch.arange(len(known))  # an image without a label is a class of its own two views
            loss = supervised(z, torch.where(known == UNLABELLED, alone, known).repeat(2))
        else:
            loss = contrast(*z.chunk(2))
        if arm.endswith("anchors"):
            loss = loss + anchored(z, known.repeat(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return model, time.perf_counter() - start


@torch.no_grad()
def features(model: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    backbone = torch.cat([model.backbone(pixels(part, "cpu")) for part in images.split(500)])
    return backbone, F.normalize(model.head(backbone), dim=1)


def evaluate(model: Network, data: FashionMnist, labels: Tensor) -> dict[str, object]:
    """A probe on the backbone, and the nearest class mean in the embedding, both from the labelled images alone."""
    labelled = labels != UNLABELLED
    x, z = features(model, data.images[labelled])
    means = torch.stack([z[labels[labelled] == label].mean(0) for label in range(10)])
    row: dict[str, object] = {}
    for name, (images, classes) in (("validation", data.validation), ("test", data.test)):
        x_new, z_new = features(model, images)
        with torch.enable_grad():
            row[f"probe_{name}"] = f"{linear_probe(x, labels[labelled], x_new, classes):.4f}"
        row[f"class_mean_{name}"] = f"{float(((z_new @ means.T).argmax(1) == classes).double().mean()):.4f}"
    row["effective_rank"] = f"{metrics.effective_rank(z_new):.2f}"
    return row


def table(records: Records) -> str:
    """Per arm, label share and batch size: the test accuracy at the learning rate that validates best."""
    body = []
    for arm in ARMS:
        for fraction in FRACTIONS:
            for batch_size in BATCHES:
                where: dict[str, object] = {"arm": arm, "fraction": fraction, "batch_size": batch_size}
                best = best_rate(records, where)
                if best is None:
                    continue
                probe, mean, rank = (
                    mean_and_spread(records.numbers(name, **where, lr=best), digits)
                    for name, digits in (("probe_test", 3), ("class_mean_test", 3), ("effective_rank", 1))
                )
                body.append([arm, f"{fraction:.0%}", str(batch_size), str(best), probe, mean, rank])
    return markdown(["arm", "labels", "batch", "lr", "probe", "class mean", "effective rank"], body)


def best_rate(records: Records, where: dict[str, object]) -> float | None:
    scores = {rate: records.numbers("probe_validation", **where, lr=rate) for rate in RATES}
    scores = {rate: values for rate, values in scores.items() if values}
    return max(scores, key=lambda rate: sum(scores[rate]) / len(scores[rate])) if scores else None


def picture(records: Records, path: Path) -> None:
    """Test accuracy against the learning rate, a panel a share of labels and a line an arm."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(BATCHES), len(FRACTIONS), figsize=(9, 5), sharey=True, sharex=True, layout="constrained"
    )
    colours = dict(zip(ARMS, ("#9e9e9e", "#2166ac", "#fdb863", "#b2182b"), strict=True))
    for row, batch_size in zip(axes, BATCHES, strict=True):
        for ax, fraction in zip(row, FRACTIONS, strict=True):
            for arm in ARMS:
                where = {"arm": arm, "fraction": fraction, "batch_size": batch_size}
                scores = [(rate, records.numbers("probe_test", **where, lr=rate)) for rate in RATES]
                scores = [(rate, values) for rate, values in scores if values]
                for rate, values in scores:
                    ax.plot([rate] * len(values), values, ".", color=colours[arm], alpha=0.5)
                means = [sum(values) / len(values) for _, values in scores]
                ax.plot([rate for rate, _ in scores], means, color=colours[arm], label=arm)
            ax.set_xscale("log")
            ax.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
            ax.minorticks_off()
            ax.set_title(f"{fraction:.0%} labels, batch {batch_size}", fontsize=9)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.supxlabel("learning rate")
    figure.supylabel("test accuracy of a linear probe")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "few-labels", SEEDS)
    made.add_argument("--root", type=Path, default=Path("data"), help="where torchvision's Fashion-MNIST is")
    made.add_argument("--download", action="store_true", help="let torchvision download it")
    args = made.parse_args(argv)
    torch.set_num_threads(1)
    data = None if args.list or args.draw else fashion_mnist(args.root, args.download)
    records = run_missing(args, grid(args.seeds), lambda cell: run(cell, data))
    publish(args.docs, "few-labels", table(records))
    picture(records, picture_path(args.docs, "few-labels"))


if __name__ == "__main__":
    main()
