"""Embeddings as the page holds them: the largest entries of each normalised row, as 16-bit integers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.metrics._rows import unit_rows

SCALE = 32767  # an entry of a normalised row is at most 1
BLOCK = 4096
BYTES_PER_ENTRY = 4.4  # at most, in the page: 16 bits of a value, a dimension's deflated distance, base64


class Codes(NamedTuple):
    """Sparse rows.

    Attributes:
        counts: Shape (n,), the entries of each row.
        dims: Shape (m,), the dimension of each entry, ascending within a row.
        values: Shape (m,), int16: `SCALE` times the entry.
        most: The largest number of entries that a row may have.
        truncated: The number of rows that had more.
    """

    counts: Tensor
    dims: Tensor
    values: Tensor
    most: int
    truncated: int


def codes(z: Tensor, budget: float) -> Codes:
    """The rows of `z`, each cut to its largest entries if all of them would take more bytes than the budget."""
    n, d = z.shape
    most = max(min(d, int(budget / BYTES_PER_ENTRY / n)), 1)
    counts, dims, values, truncated = [], [], [], 0
    for block in torch.split(z, BLOCK):
        q = (unit_rows(block.float()) * SCALE).round().cpu()
        if most < d:
            largest = q.abs().topk(most, dim=1)
            truncated += int(((q != 0).sum(dim=1) > most).sum())
            q = torch.zeros_like(q).scatter_(1, largest.indices, q.gather(1, largest.indices))
        row, dim = (q != 0).nonzero(as_tuple=True)
        counts.append(torch.bincount(row, minlength=len(block)))
        dims.append(dim)
        values.append(q[row, dim].short())
    return Codes(torch.cat(counts), torch.cat(dims), torch.cat(values), most, truncated)
