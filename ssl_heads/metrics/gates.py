"""How many gates are open."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads._check import fraction
from ssl_heads.metrics._inputs import ArrayLike, as_matrix
from ssl_heads.metrics._rows import sum_of
from ssl_heads.metrics.streaming import StreamingMetric


class GateStatistics(NamedTuple):
    """The result of `gate_statistics`.

    Attributes:
        open: Share of gates that are open.
        always_open: Number of dimensions whose gate is open on every row: the gate decides nothing there.
        always_closed: Number of dimensions whose gate is open on no row.
        closed_rows: Number of rows without an open gate, whose embedding is zero.
        per_dimension: Shape (d,), the share of rows on which each gate is open, float64, on the CPU.
    """

    open: float
    always_open: int
    always_closed: int
    closed_rows: int
    per_dimension: Tensor


def gate_statistics(gate: ArrayLike, threshold: float = 0.5) -> GateStatistics:
    r"""Count open gates, by dimension and by row.

    .. math:: \mathrm{open}_j = \frac1n \sum_i 1[m_{ij} > t]

    Args:
        gate: Shape (n, d), in [0, 1]: the `gate` or the `probability` of `ssl_heads.GatedEmbedding`.
        threshold: Value above which a gate is open.

    Returns:
        With NaN or infinity every share is NaN, and every count -1.

    Raises:
        ValueError: If an entry lies outside [0, 1], or `threshold` is not between 0 and 1.

    Reference:
        BayesNCL (ICML 2026), the open rate.

    Example:
        >>> gate_statistics([[1.0, 0.2, 0.9], [0.7, 0.1, 0.0]]).per_dimension
        tensor([1.0000, 0.0000, 0.5000], dtype=torch.float64)
    """
    metric = StreamingGateStatistics(threshold)
    metric.update(gate)
    return metric.compute()


class StreamingGateStatistics(StreamingMetric):
    """`gate_statistics` of rows that come part by part.

    Args:
        threshold: Value above which a gate is open.

    Attributes:
        open_rows: Shape (d,), the rows on which each gate is open.
        closed_rows: Shape (), the rows without an open gate.

    Example:
        >>> metric = StreamingGateStatistics()
        >>> metric.update([[1.0, 0.2]])
        >>> metric.update([[0.1, 0.2]])
        >>> metric.compute().closed_rows
        1
    """

    settings = ("threshold",)
    sums = ("open_rows", "closed_rows")
    open_rows: Tensor
    closed_rows: Tensor

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = fraction("threshold", threshold)
        super().__init__()

    @torch.no_grad()
    def update(self, gate: ArrayLike) -> None:
        """Take in the gates of rows, (n, d)."""
        m = as_matrix("gate", gate)
        outside = m[((m < 0) | (m > 1)) & m.isfinite()]
        if len(outside):
            raise ValueError(f"gate must lie between 0 and 1, got {outside[0].item()}; pass gate or probability")
        part = self._part(m)
        if part.finite:
            is_open = m > self.threshold
            part.open_rows = sum_of(is_open)
            part.closed_rows = (~is_open.any(dim=1)).sum().cpu().double()
        self.merge(part)

    def compute(self) -> GateStatistics:
        """The numbers of all rows seen."""
        if not self._known():
            return GateStatistics(math.nan, -1, -1, -1, self._unknown())
        share = self.open_rows / self.rows
        always, never = int((share == 1).sum()), int((share == 0).sum())
        return GateStatistics(float(share.mean()), always, never, int(self.closed_rows), share)
