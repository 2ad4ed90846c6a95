"""The embedding in a few plain sentences, beside what chance and random codes would give."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.dimensions import Dimensions
from ssl_heads.report.twins import SAME, Twins

BLOCK = 4096


class Row(NamedTuple):
    """One embedding in the table of controls; shares are weighted by support, and NaN without labels.

    Corrected is (share - chance) / (1 - chance): embeddings of unlike sparsity compare by it. The ceiling divides
    nothing: a dimension that fires on half of all samples comes close to its low ceiling, and means no class.
    """

    name: str
    alive: int
    width: int
    active: float
    share: float
    chance: float
    ceiling: float
    corrected: float


def row(name: str, table: Dimensions) -> Row:
    """The averages of a table of dimensions."""
    weight = table.counts.sum(dim=1).double()
    columns = (table.share, table.chance, table.ceiling)
    share, chance, ceiling = (float((x.nan_to_num() * weight).sum() / weight.sum()) for x in columns)
    corrected = (share - chance) / (1 - chance) if chance != 1 else 0.0
    alive, active = int((~table.dead).sum()), float(table.support.sum()) / table.samples
    return Row(name, alive, len(table.support), active, share, chance, ceiling, corrected)


def as_sparse(w: Tensor, active: float) -> Tensor:
    """The largest positive entries of every row, as many as are active on average elsewhere; zero for the others.

    Sparser codes score higher whatever they mean, so a control is made as sparse as what stands beside it.
    """
    most = min(max(round(active), 1), w.shape[1])
    kept = torch.zeros_like(w, device="cpu")
    for first in range(0, len(w), BLOCK):
        largest = w[first : first + BLOCK].cpu().clamp_min(0).topk(most, dim=1)
        kept[first : first + BLOCK].scatter_(1, largest.indices, largest.values)
    return kept


def sentences(table: Dimensions, rows: list[Row], pairs: Twins | None) -> list[str]:
    """What a reader should know before looking at a single dimension."""
    mine, controls = rows[0], rows[1:]
    dead = mine.width - mine.alive
    silent = f", {dead:,} on none" if dead else ""
    said = [
        f"{table.samples:,} samples, {mine.width:,} dimensions: {mine.alive:,} fire on some sample{silent}. "
        f"On average {mine.active:.1f} fire on a sample."
    ]
    if len(table.classes) == 1:
        said.append("All labels are of one class, so how far dimensions follow classes cannot be seen.")
    elif len(table.classes) > 1 and mine.alive:
        others = ", ".join(f"{control.name} {_percent(control.corrected)}" for control in controls)
        said.append(
            f"When a dimension fires, {_percent(mine.share)} of the time the sample belongs to that dimension's "
            f"commonest class; chance gives {_percent(mine.chance)}, and the sizes of the classes allow at most "
            f"{_percent(mine.ceiling)}. Corrected for chance that is {_percent(mine.corrected)} ({others})."
        )
    always_on, repeated = int(table.always_on.sum()), int((table.duplicate_of >= 0).sum())
    flags = [f"{always_on:,} always on"] * bool(always_on) + [f"{repeated:,} repeating another"] * bool(repeated)
    if flags:
        said.append(f"Flagged dimensions: {', '.join(flags)}.")
    if pairs is not None:
        agreement = pairs.correlation.abs()[~table.dead]
        said.append(
            f"In the other seed {float((agreement > SAME).double().mean()):.0%} of the dimensions that fire come back "
            f"(correlation above {SAME}); the mean is {float(agreement.mean()):.2f}, and {pairs.by_chance:.2f} for "
            "shuffled samples."
            if len(agreement)
            else "No dimension fires, so there is nothing to find again in the other seed."
        )
    return said


def _percent(x: float) -> str:
    return f"{max(x, 0.0):.0%}"
