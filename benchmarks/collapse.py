"""How often does an embedding collapse, with and without a few anchored labels?

    python benchmarks/collapse.py                          # what is missing of the grid, then the table and the picture
    python benchmarks/collapse.py --only 'none/0.3/*'      # some cells: NORM/LR/ANCHORS/SEED
    python benchmarks/collapse.py --list                   # the cells, and which are done

The toy of the orthonormal-anchor paper, fully specified: three clusters on three lines, the second view
is the antipode.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pages import markdown
from probes import few_labels, linear_probe
from records import Records, parser, picture_path, publish, run_missing
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_heads import NTXentLoss, OrthonormalAnchorRegression, metrics
from ssl_heads.functional import class_anchors

SEEDS = range(6)


class Cell(NamedTuple):
    """One run on three clusters."""

    norm: str
    lr: float
    anchors: str
    seed: int


def grid(seeds: Sequence[int]) -> Iterator[Cell]:
    for seed in seeds:
        for norm, rates in (("none", (0.1, 0.3, 1.0)), ("batch", (0.01, 0.1, 1.0, 10.0, 100.0))):
            for lr in rates:
                for anchors in ("without", "with"):
                    yield Cell(norm, lr, anchors, seed)


def three_clusters(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fifty points about each of three orthogonal lines; the other view is the antipode; one label in ten."""
    generator = torch.Generator().manual_seed(1000 + seed)  # not the anchors' seed
    axes = class_anchors(3, 3, "qr", generator)
    classes = torch.arange(3).repeat_interleave(50)
    radius = 0.5 + 0.5 * torch.rand(150, 1, generator=generator)
    sign = torch.randint(0, 2, (150, 1), generator=generator) * 2 - 1
    x = radius * sign * axes[classes] + 0.08 * torch.randn(150, 3, generator=generator)
    other = -x + 0.05 * torch.randn(150, 3, generator=generator)
    return torch.stack([x, other]), classes, few_labels(classes, 0.1, generator)


def network(norm: str) -> nn.Sequential:
    def hidden(wide: int) -> list[nn.Module]:
        return [nn.Linear(wide, 64), *([nn.BatchNorm1d(64)] if norm == "batch" else []), nn.ReLU()]

    return nn.Sequential(*hidden(3), *hidden(64), nn.Linear(64, 3))


def run(cell: Cell) -> dict[str, object]:
    views, classes, labels = three_clusters(cell.seed)
    torch.manual_seed(cell.seed)
    model, contrast, anchored = network(cell.norm), NTXentLoss(0.5), OrthonormalAnchorRegression(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=cell.lr, momentum=0.9 if cell.norm == "none" else 0.0)
    steps = 500 if cell.norm == "none" else 800
    start = time.perf_counter()
    for _ in range(steps):
        z = model(views.flatten(0, 1))
        base = contrast(*z.chunk(2))
        loss = base + anchored(z, labels.repeat(2)) if cell.anchors == "with" else base
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z = F.normalize(model(views.flatten(0, 1)), dim=1)
    return {
        "effective_rank": f"{metrics.effective_rank(z):.3f}",
        "contrast": f"{base.item():.4f}",
        "linear_accuracy": f"{linear_probe(z[:150], classes, z[150:], classes):.4f}",
        "seconds": f"{time.perf_counter() - start:.1f}",
    }


def table(records: Records) -> str:
    body = []
    keys = dict.fromkeys((row["norm"], row["lr"]) for row in records.rows())
    for norm, lr in keys:
        counts = []
        for anchors in ("without", "with"):
            ranks = records.numbers("effective_rank", norm=norm, lr=lr, anchors=anchors)
            counts.append(f"{sum(r < 1.5 for r in ranks)} / {sum(r > 2.9 for r in ranks)} of {len(ranks)}")
        body.append([norm, lr, *counts])
    return markdown(["norm", "lr", "without anchors: rank < 1.5 / > 2.9", "with anchors"], body)


def picture(records: Records, path: Path) -> None:
    """The rank of every run: a column of dots a learning rate."""
    from matplotlib import pyplot as plt

    rows = records.rows()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for ax, norm in zip(axes, ("none", "batch"), strict=True):
        rates = list(dict.fromkeys(row["lr"] for row in rows if row["norm"] == norm))
        for shift, anchors, colour in ((-0.12, "without", "#9e9e9e"), (0.12, "with", "#2166ac")):
            for i, lr in enumerate(rates):
                ranks = records.numbers("effective_rank", norm=norm, lr=lr, anchors=anchors)
                xs = [i + shift + 0.02 * (k - len(ranks) / 2) for k in range(len(ranks))]
                ax.plot(xs, ranks, "o", color=colour, markersize=4, label=f"{anchors} anchors" if i == 0 else None)
        ax.set_xticks(range(len(rates)), rates)
        ax.set_xlabel("learning rate")
        ax.set_title("no normalisation" if norm == "none" else "batch normalisation", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("effective rank of 3")
    handles, names = max((ax.get_legend_handles_labels() for ax in axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, names, loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser(__doc__, "collapse", SEEDS).parse_args(argv)
    torch.set_num_threads(1)  # the matrices are small
    records = run_missing(args, grid(args.seeds), run)
    publish(args.docs, "collapse", table(records))
    picture(records, picture_path(args.docs, "collapse"))


if __name__ == "__main__":
    main()
