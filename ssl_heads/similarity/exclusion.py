"""Pairs that are no negatives of each other: a repeating diagonal, or equal ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Exclusion(NamedTuple):
    """The pairs (i, j) that a log-sum-exp over negatives leaves out.

    A pair is left out when `j == i + offset (mod period)`, and also when `query_ids[i] == key_ids[j]`.
    The diagonal needs no memory; ids cost one comparison per pair. Any two equal ids meet here, -1 and -1 as well:
    `ssl_heads.functional.groups.group_index` gives each row without an id a number of its own.

    Attributes:
        offset: Column of row 0 on the diagonal that is left out.
        period: Distance between the diagonals that are left out; 0 leaves out no diagonal.
        query_ids: Integers of shape `(n,)`, or None.
        key_ids: Integers of shape `(m,)`; given together with `query_ids`.
        keep_equal: Leave out the pairs with *different* ids instead: what is kept are the positives of a class.
    """

    offset: int = 0
    period: int = 0
    query_ids: Tensor | None = None
    key_ids: Tensor | None = None
    keep_equal: bool = False

    @classmethod
    def nothing(cls) -> Exclusion:
        """Every pair is a negative pair."""
        return cls()

    @classmethod
    def diagonal(cls, rows: int, columns: int, offset: int = 0) -> Exclusion:
        """Row `i` leaves out column `i + offset`."""
        return cls(offset=offset, period=rows + columns + abs(offset) + 1)

    @classmethod
    def modulo(cls, period: int) -> Exclusion:
        """Views of one sample, stacked view by view: row `i` leaves out every column `i (mod period)`."""
        return cls(period=period)

    @classmethod
    def equal_ids(cls, query_ids: Tensor, key_ids: Tensor | None = None) -> Exclusion:
        """Rows and columns with equal ids leave each other out."""
        return cls(query_ids=query_ids, key_ids=query_ids if key_ids is None else key_ids)

    def with_ids(self, query_ids: Tensor, key_ids: Tensor, keep_equal: bool = False) -> Exclusion:
        """The same diagonals, and also the pairs with equal ids; with `keep_equal` those with different ids."""
        return self._replace(query_ids=query_ids, key_ids=key_ids, keep_equal=keep_equal)

    def transposed(self) -> Exclusion:
        """The same pairs where rows are columns."""
        return self._replace(offset=-self.offset, query_ids=self.key_ids, key_ids=self.query_ids)

    def diagonals(self, rows: slice, columns: slice) -> Iterator[int]:
        """Diagonals of the tile `rows x columns` that are left out, in the tile's own numbering."""
        if self.period == 0:
            return
        shift = self.offset + rows.start - columns.start
        lowest = -(rows.stop - rows.start) + 1
        first = shift + -(-(lowest - shift) // self.period) * self.period
        yield from range(first, columns.stop - columns.start, self.period)

    def fill_(self, tile: Tensor, rows: slice, columns: slice, value: float) -> Tensor:
        """Write `value` into the pairs of a tile that are left out."""
        for diagonal in self.diagonals(rows, columns):
            tile.diagonal(diagonal).fill_(value)
        if self.query_ids is not None and self.key_ids is not None:
            tile.masked_fill_(self._by_ids(rows, columns), value)
        return tile

    def mask(self, rows: int, columns: int, device: torch.device) -> Tensor | None:
        """The whole `rows x columns` mask of the pairs that are left out; None when there are none."""
        mask = None
        if self.period > 0:
            i = torch.arange(rows, device=device)[:, None]
            j = torch.arange(columns, device=device)[None, :]
            mask = (j - i - self.offset) % self.period == 0
        if self.query_ids is not None and self.key_ids is not None:
            by_ids = self._by_ids(slice(rows), slice(columns))
            mask = by_ids if mask is None else mask | by_ids
        return mask

    def _by_ids(self, rows: slice, columns: slice) -> Tensor:
        assert self.query_ids is not None
        assert self.key_ids is not None
        query_ids, key_ids = self.query_ids[rows, None], self.key_ids[None, columns]
        return query_ids != key_ids if self.keep_equal else query_ids == key_ids
