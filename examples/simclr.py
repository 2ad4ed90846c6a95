"""SimCLR with a plain head and with three readable ones: one script, four arms.

    python examples/simclr.py --arm ncl                                      # one arm on 5,000 MNIST digits
    python examples/simclr.py --arms all --picture runs/demo.png             # four arms, one table, one picture
    python examples/simclr.py --arm bayes --data cifar10 --download --epochs 200 --checkpoint runs/bayes.pt

The arms differ in the classes `SimCLR`, `NCL`, `BayesNCL` and `TriCL` and nowhere else. Ctrl-C saves the checkpoint;
the same command continues from it as if nothing had happened.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    WIDTH,
    Checkpoint,
    check_batch,
    check_device,
    check_picture,
    digest,
    interrupt_after_step,
    markdown,
    one_line_errors,
    small_convnet,
    warmup_then_cosine,
    writable_folder,
)
from images import Split, augment, load, pixels
from torch import Tensor, nn
from tqdm import tqdm

from ssl_heads import BayesianGate, FeatureImportance, NonNegProjection, NTXentLoss, TriFactorContrast, metrics, plots
from ssl_heads.optim import param_groups

WEIGHT_DECAY = 1e-4


# ---------------------------------------------------------------------------------------------------- the four arms
class SimCLR(nn.Module):
    """Two views of an image attract, all other images repel. The embedding is signed and dense."""

    def __init__(self, backbone: nn.Module, temperature: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head: nn.Module = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.BatchNorm1d(4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.criterion: nn.Module = NTXentLoss(temperature)

    def embed(self, features: Tensor) -> Tensor:
        return self.head(features)

    def loss(self, features: Tensor) -> Tensor:
        return self.criterion(*self.embed(features).chunk(2))

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return param_groups(self, lr=lr, weight_decay=WEIGHT_DECAY)

    def order(self, embeddings: Tensor) -> Tensor:
        """The dimensions, the most used first: by their mean share of a row's squared norm."""
        return nn.functional.normalize(embeddings).square().mean(dim=0).argsort(descending=True)


class NCL(SimCLR):
    """The same loss on an embedding that cannot be negative."""

    def __init__(self, backbone: nn.Module, temperature: float) -> None:
        super().__init__(backbone, temperature)
        self.head = NonNegProjection(WIDTH, 4 * WIDTH, WIDTH)


class BayesNCL(NCL):
    """A gate decides, image by image, which dimensions of the non-negative embedding are in use."""

    def __init__(self, backbone: nn.Module, temperature: float) -> None:
        super().__init__(backbone, temperature)
        self.gate = BayesianGate(WIDTH, WIDTH, hidden_features=4 * WIDTH, prior=0.8)

    def embed(self, features: Tensor) -> Tensor:
        return self.gate(features, self.head(features)).embeddings

    def loss(self, features: Tensor) -> Tensor:
        gated = self.gate(features, self.head(features))
        return self.criterion(*gated.embeddings.chunk(2)) + 3e-5 * gated.kl

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return param_groups(self, lr=lr, weight_decay=WEIGHT_DECAY, gate_lr=1.5 * lr)


class TriCL(SimCLR):
    """Signed, with decorrelated dimensions and a trained importance s of each: the similarity is z^T diag(s) z'."""

    def __init__(self, backbone: nn.Module, temperature: float) -> None:
        super().__init__(backbone, temperature)
        self.importance = FeatureImportance(WIDTH)
        self.criterion = TriFactorContrast(importance=self.importance, temperature=temperature)

    def embed(self, features: Tensor) -> Tensor:
        return self.head(features) * self.importance().sqrt()

    def loss(self, features: Tensor) -> Tensor:
        return self.criterion(*self.head(features).chunk(2))

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        networks = param_groups(self.backbone, self.head, lr=lr, weight_decay=WEIGHT_DECAY)
        return networks + param_groups(self.importance, lr=30 * lr, weight_decay=0.0)  # it has far to go

    def order(self, embeddings: Tensor) -> Tensor:
        """By importance: it needs no data."""
        return self.importance.order()


ARMS = {"simclr": SimCLR, "ncl": NCL, "bayes": BayesNCL, "tricl": TriCL}
TITLES = {
    "simclr": "plain SimCLR",
    "ncl": "non-negative (NCL)",
    "bayes": "gated (BayesNCL)",
    "tricl": "tri-factor (triCL)",
}


# --------------------------------------------------------------------------------------------------------- training
def train(arm: str, data: Split, args: argparse.Namespace, checkpoint: Checkpoint) -> tuple[SimCLR, float]:
    """Train one arm, from its checkpoint if it has one; returns the model and the seconds spent in training."""
    batches = len(data.images) // args.batch_size
    steps = batches * args.epochs
    torch.manual_seed(args.seed)
    model = ARMS[arm](small_convnet(data.images.shape[1]), args.temperature).to(args.device)
    optimizer = torch.optim.AdamW(model.param_groups(args.lr))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_then_cosine(step / steps))
    stateful = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    step, seconds = checkpoint.restore(arm, stateful)

    start = time.perf_counter() - seconds
    with tqdm(total=steps, initial=step, desc=f"{arm:>6}", unit="step") as bar, interrupt_after_step() as interrupt:
        while step < steps:
            # Order and augmentation follow from seed and step alone, so a resumed run draws what it would have drawn.
            epoch, batch = divmod(step, batches)
            order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(args.seed + epoch))
            torch.manual_seed(args.seed * 1_000_003 + step)
            images = pixels(data.images[order[batch * args.batch_size :][: args.batch_size]], args.device)
            loss = model.loss(model.backbone(torch.cat([augment(images), augment(images)])))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
            if interrupt.is_set() or step % batches == 0:
                checkpoint.save(arm, stateful, step, time.perf_counter() - start)
            if interrupt.is_set():
                raise KeyboardInterrupt
    return model.eval(), time.perf_counter() - start


# ------------------------------------------------------------------------------------------------------- evaluation
COLUMNS = (
    *("10-NN backbone", "10-NN embedding", "10-NN first 16 dims", "10-NN last 16 dims"),
    *("consistency", "consistency q > 0", "chance-corrected q > 0", "sparsity", "alive dims", "seconds"),
)


@torch.no_grad()
def encode(model: SimCLR, images: Tensor, device: str) -> tuple[Tensor, Tensor]:
    features = torch.cat([model.backbone(pixels(batch, device)) for batch in images.split(500)])
    return features, torch.cat([model.embed(batch) for batch in features.split(500)])


def evaluate(model: SimCLR, train: Split, test: Split, device: str) -> tuple[list[str], Tensor, Tensor]:
    """A row of the table (see docs/demo.md for its columns), the test embeddings, the order of the dimensions."""
    train_labels, labels = train.labels.to(device), test.labels.to(device)
    train_features, train_z = encode(model, train.images, device)
    features, z = encode(model, test.images, device)
    order = model.order(train_z)
    first, last = order[:16], order[-16:]
    support = max(30, len(z) // 1000)
    consistency = metrics.class_consistency(z, labels, min_support=support)
    positive = metrics.class_consistency(z.clamp(min=0), labels, min_support=support)
    row = [
        metrics.knn_accuracy(train_features, train_labels, features, labels),
        metrics.knn_accuracy(train_z, train_labels, z, labels),
        metrics.knn_accuracy(train_z[:, first], train_labels, z[:, first], labels),
        metrics.knn_accuracy(train_z[:, last], train_labels, z[:, last], labels),
        *(consistency.mean, positive.mean, positive.chance_corrected, metrics.sparsity(z)),
    ]
    return [*(f"{value:.3f}" for value in row), str(metrics.alive_dimensions(z))], z, order


def write_embeddings(arm: str, model: SimCLR, test: Split, images: Tensor, args: argparse.Namespace) -> None:
    """What `python -m ssl_heads report` reads: ARM.npz, and ARM_untrained.npz of a model that took no step.

    Batch norm of the untrained model has the statistics of a few batches of training images.
    """
    untrained = metrics.untrained_copy(model, args.seed)
    encode(untrained.train(), images[:2000], args.device)
    args.embeddings.mkdir(parents=True, exist_ok=True)
    for name, encoder in ((arm, model), (f"{arm}_untrained", untrained.eval())):
        _, z = encode(encoder, test.images, args.device)
        columns = {"embeddings": z, "labels": test.labels, "images": test.images}
        if isinstance(encoder, TriCL):
            columns["importance"] = encoder.importance().detach()
        np.savez_compressed(args.embeddings / f"{name}.npz", **{key: x.cpu().numpy() for key, x in columns.items()})


def draw(shown: dict[str, tuple[Tensor, Tensor]], test: Split, path: Path) -> None:
    """The test images that activate each arm's first dimensions."""
    from matplotlib import pyplot as plt

    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    size = (7.6 * columns, 3.8 * rows + 0.3)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for ax, (arm, (z, order)) in zip(axes.flat, shown.items(), strict=False):
        z, dims, title = z.cpu(), order[:8].cpu(), TITLES[arm]
        plots.top_activating(test.images, z, test.labels, dims=dims, num_images=6, num_spread=10, title=title, ax=ax)
    figure.suptitle(
        "left: the strongest images of a dimension; right: from strong to weak among the rest; frame: class"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--arm", "--arms", dest="arms", nargs="+", choices=[*ARMS, "all"], default=["simclr"])
    add("--data", default="mnist-5k", help="mnist-5k, fashion-mnist, cifar10, cifar100 or folder:PATH")
    add("--root", type=Path, default=Path("data"), help="where torchvision's data sets are")
    add("--download", action="store_true", help="let torchvision download what is missing")
    add("--image-size", type=int, default=64, help="of the images of a folder")
    add("--epochs", type=int, default=20)
    add("--batch-size", type=int, default=256)
    add("--lr", type=float, default=2e-3)
    add("--temperature", type=float, default=0.2)
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--checkpoint", type=Path, help="written after every epoch and on Ctrl-C; resumed from if it exists")
    add("--embeddings", type=Path, help="a folder for ARM.npz and ARM_untrained.npz, which ssl_heads report reads")
    add("--picture", type=Path, help="write images that activate each arm's first dimensions here")
    args = parser.parse_args(argv)
    args.arms = list(ARMS) if "all" in args.arms else args.arms
    return args


def check(args: argparse.Namespace) -> None:
    """What can be refused before anything is read."""
    for name in ("image_size", "epochs", "lr", "temperature"):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}")
    check_device(args.device)
    if args.picture is not None:
        check_picture(args.picture)
    if args.embeddings is not None:
        writable_folder(args.embeddings / "arm.npz")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    try:
        with one_line_errors():
            run(args)
    except KeyboardInterrupt:
        kept = f"{args.checkpoint} continues with the same command" if args.checkpoint else "nothing was kept"
        print(f"\ninterrupted: {kept}", file=sys.stderr)
        sys.exit(130)


def run(args: argparse.Namespace) -> None:
    check(args)
    names = ("data", "image_size", "epochs", "batch_size", "lr", "temperature", "seed")
    checkpoint = Checkpoint(args.checkpoint, {name: getattr(args, name) for name in names})
    train_split, test_split = load(args.data, args.root, args.download, args.image_size)
    checkpoint.same_data(digest(*train_split, *test_split))
    check_batch(args.batch_size, len(train_split.images))
    rows, shown = {}, {}
    for arm in args.arms:
        model, seconds = train(arm, train_split, args, checkpoint)
        row, *shown[arm] = evaluate(model, train_split, test_split, args.device)
        rows[TITLES[arm]] = [*row, f"{seconds:.0f}"]
        if args.embeddings:
            write_embeddings(arm, model, test_split, train_split.images, args)
    print(markdown(rows, COLUMNS))
    if args.picture:
        draw(shown, test_split, args.picture)
        print(f"\ntest images that activate each arm's first dimensions: {args.picture}")


if __name__ == "__main__":
    main()
