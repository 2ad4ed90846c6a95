"""The monosemanticity score in closed form beside the released loop over pairs.

    python benchmarks/monosemanticity.py                     # what is missing, then the table
    python benchmarks/monosemanticity.py --only 'closed*'    # some cells: FORM/ROWS/WIDTH/EMBEDDING
    python benchmarks/monosemanticity.py --list

Half of the activations are zero. The loop goes over all pairs, as the released one does, one row against all rows
after it. It runs at small sizes; its time a pair times the pairs of 50,000 rows is what it would take there. Both are
float64, and the largest difference of their scores stands in the record.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from pages import markdown
from records import Records, parser, publish, run_missing
from torch import Tensor

from ssl_heads.metrics import monosemanticity

SIZES = ((500, 256, 768), (1000, 256, 768), (2000, 256, 768), (50_000, 2048, 768))
LOOPED = 2000
"""Rows up to which the loop runs."""


class Cell(NamedTuple):
    """One form of the score at one size."""

    form: str
    rows: int
    width: int
    embedding: int
    seed: int


def grid(seeds: list[int]) -> Iterator[Cell]:
    for rows, width, embedding in SIZES:
        for seed in seeds:
            yield Cell("closed", rows, width, embedding, seed)
            if rows <= LOOPED:
                yield Cell("pairs", rows, width, embedding, seed)


def by_pairs(activations: Tensor, embeddings: Tensor) -> Tensor:
    """All pairs of rows, one row against those after it."""
    a, e = activations.double(), torch.nn.functional.normalize(embeddings.double())
    a = (a - a.amin(0)) / (a.amax(0) - a.amin(0))
    alike, weights = torch.zeros(2, a.shape[1], dtype=torch.float64)
    for n in range(len(a) - 1):
        pairs = a[n] * a[n + 1 :]
        weights += pairs.sum(0)
        alike += (e[n + 1 :] @ e[n]) @ pairs
    return alike / weights


def run(cell: Cell) -> dict[str, object]:
    torch.manual_seed(cell.seed)
    activations = torch.randn(cell.rows, cell.width).relu_()
    embeddings = torch.randn(cell.rows, cell.embedding)
    form = monosemanticity if cell.form == "closed" else by_pairs
    start = time.perf_counter()
    score = form(activations, embeddings)
    seconds = time.perf_counter() - start
    difference = float("nan")
    if cell.rows <= LOOPED:
        other = by_pairs if cell.form == "closed" else monosemanticity
        difference = float((other(activations, embeddings) - score).abs().max())
    pairs = cell.rows * (cell.rows - 1) // 2
    return {"seconds": f"{seconds:.3f}", "pairs": pairs, "largest_difference": f"{difference:.1e}"}


def table(records: Records) -> str:
    rows = [
        [
            {"closed": "closed form", "pairs": "all pairs"}[row["form"]],
            *(row[name] for name in ("rows", "width", "embedding", "seconds")),
            row["largest_difference"].replace("nan", "not measured"),
        ]
        for row in records.rows()
    ]
    return markdown(["form", "rows", "dimensions", "embedding", "seconds", "largest difference"], rows)


def main(args: argparse.Namespace) -> None:
    records = run_missing(args, grid(args.seeds), run)
    publish(args.docs, "monosemanticity", table(records), page="metrics.md")


if __name__ == "__main__":
    made = parser(__doc__, "monosemanticity", seeds=(0,))
    made.add_argument("--threads", type=int, default=1, help="threads of torch")
    chosen = made.parse_args()
    torch.set_num_threads(chosen.threads)
    main(chosen)
