"""Do two seeds find the same dimensions? triCL by importance, without a search; SimCLR as the control.

    python benchmarks/agreement.py --root data                  # what is missing, then the table
    python benchmarks/agreement.py --only 'tricl/0/1'          # some pairs of runs: ARM/FIRST/SECOND
    python benchmarks/agreement.py --list                      # the pairs, and which are done

Trains the arms of examples/simclr.py on Fashion-MNIST. The j-th dimension of one run, by importance (SimCLR: by mean
activation), is correlated with the j-th of the other on the test images; beside it stands the best matching by search.
Untrained networks show how much of it is the images' doing: few directions of variation correlate with everything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from pages import markdown
from records import Records, mean_and_spread, parser, publish, run_missing
from torch import Tensor

from ssl_heads import metrics

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import simclr
from images import Split, load

SEEDS = range(3)
ARMS = ("tricl", "simclr", "untrained")
TOP = (10, 50, 256)


class Cell(NamedTuple):
    """Two runs of one arm."""

    arm: str
    first: int
    second: int


def grid(seeds: Sequence[int]) -> Iterator[Cell]:
    for first, second in combinations(seeds, 2):
        for arm in ARMS:
            yield Cell(arm, first, second)


@cache
def embedded(arm: str, seed: int, root: Path, images: int, epochs: int) -> tuple[Tensor, Tensor, float]:
    """Embeddings of the test images, a score of every dimension that orders them, and how far importances differ."""
    train, test = load("fashion-mnist", root, False, 28)
    part = Split(train.images[:images], train.labels[:images])
    trained = "simclr" if arm == "untrained" else arm
    options = ["--arm", trained, "--data", "fashion-mnist", "--device", "cpu"]
    settings = simclr.parse([*options, "--epochs", str(epochs), "--seed", str(seed)])
    if arm == "untrained":
        torch.manual_seed(seed)
        model = simclr.SimCLR(simclr.small_convnet(1), settings.temperature).eval()
    else:
        model, _ = simclr.train(arm, part, settings, simclr.Checkpoint(None, {}))
    _, of_part = simclr.encode(model, part.images, "cpu")
    _, of_test = simclr.encode(model, test.images, "cpu")
    score = torch.empty(simclr.WIDTH)
    score[model.order(of_part)] = torch.arange(simclr.WIDTH, 0.0, -1.0)
    importance = getattr(model, "importance", lambda: torch.ones(simclr.WIDTH))().detach()
    return of_test, score, float(importance.max() / importance.median())


def run(cell: Cell, args: argparse.Namespace) -> dict[str, object]:
    (a, score_a, ratio_a), (b, score_b, ratio_b) = (
        embedded(cell.arm, seed, args.root, args.images, args.epochs) for seed in (cell.first, cell.second)
    )
    by_order = metrics.match_by_importance(a, score_a, b, score_b).per_dimension
    found = metrics.match_by_search(a, b).per_dimension[score_b.argsort(descending=True)]
    return {
        **{f"by_order_{k}": f"{float(by_order[:k].mean()):.3f}" for k in TOP},
        **{f"by_search_{k}": f"{float(found[:k].mean()):.3f}" for k in TOP},
        "largest_over_median_importance": f"{(ratio_a + ratio_b) / 2:.3f}",
        "images": args.images,
        "epochs": args.epochs,
    }


def table(records: Records) -> str:
    body = []
    for arm in ARMS:
        for how in ("order", "search"):
            cells = [mean_and_spread(records.numbers(f"by_{how}_{k}", arm=arm), 3) for k in TOP]
            if set(cells) != {"-"}:
                body.append([arm, f"by {how}", *cells])
    return markdown(["arm", "matched", *(f"first {k}" for k in TOP[:-1]), "all"], body)


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "agreement", SEEDS)
    made.add_argument("--root", type=Path, default=Path("data"), help="where torchvision's Fashion-MNIST is")
    made.add_argument("--images", type=int, default=10_000, help="of the training set")
    made.add_argument("--epochs", type=int, default=8)
    args = made.parse_args(argv)
    torch.set_num_threads(1)
    records = run_missing(args, grid(args.seeds), lambda cell: run(cell, args))
    publish(args.docs, "agreement", table(records))


if __name__ == "__main__":
    main()
