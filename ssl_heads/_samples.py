"""Samples of a dimension: the strongest, the evenly spread, the near misses; block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ssl_heads.metrics._rows import unit_rows

MOST_ENTRIES = 2**22  # of a block of rows or of columns


def blocks(z: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The positive part of the normalised rows, block by block, each with the number of its first row."""
    step = max(MOST_ENTRIES // z.shape[1], 1)
    for first in range(0, len(z), step):
        yield first, unit_rows(z[first : first + step]).clamp_min(0)


def strongest_and_spread(z: Tensor, num_strongest: int, num_spread: int, eps: float) -> tuple[Tensor, Tensor]:
    """Samples of largest activation (d, k), and samples at even ranks among the other active ones (d, s)."""
    n, d = z.shape
    found = torch.full((d, num_strongest + num_spread), -1, device="cpu")
    if found.numel() == 0:
        return found, found
    largest = z.abs().amax(dim=1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    parts = zip(torch.split(z, 1024), torch.split(largest, 1024), strict=True)
    norm = torch.cat([(part / scale).norm(dim=1, keepdim=True) for part, scale in parts]).clamp_min(1.0)
    step = max(MOST_ENTRIES // n, 1)
    for first in range(0, d, step):
        columns = (z[:, first : first + step] / largest / norm).T.cpu().contiguous()
        for j, column in enumerate(columns, start=first):
            on = (column > eps).nonzero()[:, 0]
            order = on[column[on].argsort(descending=True, stable=True)]
            strongest, rest = order[:num_strongest], order[num_strongest:]
            if len(rest) > num_spread:
                rest = rest[torch.linspace(0, len(rest) - 1, num_spread, device="cpu").round().long()]
            found[j, : len(strongest)] = strongest
            found[j, num_strongest : num_strongest + len(rest)] = rest
    return found[:, :num_strongest], found[:, num_strongest:]


def near_misses(z: Tensor, gram: Tensor, count: int, eps: float) -> Tensor:
    r"""Inactive samples of largest :math:`q_i^\top \sum_l q_{lj} q_l`, block by block."""
    d = z.shape[1]
    if count == 0:
        return torch.full((d, 0), -1, device="cpu")
    towards = gram.to(z)
    best = torch.full((count, d), -math.inf, device=z.device, dtype=z.dtype)
    index = torch.full((count, d), -1, device=z.device)
    for first, q in blocks(z):
        score = (q @ towards).masked_fill(q > eps, -math.inf)
        top = score.topk(min(count, len(q)), dim=0)
        values, rows = torch.cat([best, top.values]), torch.cat([index, top.indices + first])
        best, kept = values.topk(count, dim=0)
        index = rows.gather(0, kept)
    return torch.where(best > 0, index, -1).T.cpu()
