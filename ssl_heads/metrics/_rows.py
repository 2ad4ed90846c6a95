"""When a dimension is active on a row: one definition for every metric and picture."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

EPS = 1e-5  # the papers' threshold
CHUNK = 1024  # rows that are held in float64 at a time


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length one, whatever their scale; a row of zeros stays.

    The largest entry becomes one first: squares of 1e-30 and of 1e30 do not exist in float32.
    """
    largest = x.abs().amax(dim=1, keepdim=True)
    scaled = x / torch.where(largest > 0, largest, 1.0)
    unit: Tensor = scaled / scaled.norm(dim=1, keepdim=True).clamp_min(1.0)
    return unit


def active(x: Tensor, eps: float) -> Tensor:
    r"""Where :math:`|q_{ij}| > \varepsilon` in rows of length one."""
    return unit_rows(x).abs() > eps


def double(x: Tensor) -> Tensor:
    """In float64; on the CPU where the device has no float64."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def doubles(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows in float64, chunk by chunk."""
    for chunk in zip(*(torch.split(x, CHUNK) for x in rows), strict=True):
        yield tuple(map(double, chunk))


def refuse_zero_rows(name: str, x: Tensor) -> None:
    """For cosines: a row of zeros has no direction."""
    zero = (x == 0).all(dim=1).nonzero()[:, 0].tolist()
    if zero:
        raise ValueError(f"{len(zero)} of {len(x)} rows of {name} are zero and have no direction; one is row {zero[0]}")


def active_rows(x: Tensor, eps: float) -> Tensor:
    """On how many rows each dimension is active: (n, d) to (d,), float64, on the CPU."""
    counts = torch.stack([active(part, eps).sum(dim=0) for part in torch.split(x, CHUNK)])
    return counts.sum(dim=0).cpu().double()


def sum_of(x: Tensor) -> Tensor:
    """The sum of the rows: (n, d) to (d,), float64, on the CPU."""
    total = x.new_zeros(x.shape[1], dtype=torch.float64, device="cpu")
    for (part,) in doubles(x):
        total = total + part.sum(dim=0).cpu()
    return total


def products(x: Tensor, y: Tensor) -> Tensor:
    """The product of columns, x^T y: (n, d) and (n, e) to (d, e), float64, on the CPU."""
    total = x.new_zeros(x.shape[1], y.shape[1], dtype=torch.float64, device="cpu")
    for a, b in doubles(x, y):
        total = total + (a.mT @ b).cpu()
    return total


def sum_by_class(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sums of the rows (n, d) of each class: (c, d), float64, on the CPU."""
    device = "cpu" if x.device.type == "mps" else x.device
    sums = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=device)
    for part, of in zip(doubles(x), torch.split(labels, CHUNK), strict=True):
        sums.index_add_(0, of.to(device), part[0])
    return sums.cpu()
