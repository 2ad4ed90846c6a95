"""What a metric keeps of the rows that it has seen: a state that adds up, so that parts in any order give the whole."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from ssl_heads._check import positive
from ssl_heads.distributed import world_size
from ssl_heads.metrics._inputs import finite
from ssl_heads.metrics._rows import EPS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class StreamingMetric(ABC):
    r"""The base of a metric that sees its rows part by part: `update`, `compute`, `reset`, `merge`.

    A mean over batches is not the number of the whole: a dimension that is silent in most batches is alive. So a metric
    keeps a state :math:`s` that adds up, :math:`s(A \cup B) = s(A) + s(B)`, and computes its number from the state
    alone. The state is tensors in plain attributes, in float64, on the CPU; they are replaced and never written into,
    so that a copy is cheap.

    A subclass has an `update` that takes what its function takes. A part without a labelled row changes nothing; NaN in
    any part makes every number NaN.

    Attributes:
        rows: Shape (), the rows seen, without those whose label is -1.
        finite: Shape (), whether no entry was NaN or infinite.
        widths: Shape (m,), the width of each input; empty before the first update.

    Raises:
        ValueError: If rows are of another width than before (`update`), class, settings or widths differ (`merge`), or
            no row was seen (`compute`).

    Example:
        >>> from ssl_heads.metrics import StreamingSparsity
        >>> first, second = StreamingSparsity(), StreamingSparsity()
        >>> first.update([[0.0, 1.0]])
        >>> second.update([[1.0, 1.0], [2.0, 3.0]])
        >>> round(first.merge(second).compute(), 4)
        0.1667
    """

    settings: ClassVar[tuple[str, ...]] = ()
    sums: ClassVar[tuple[str, ...]] = ()
    rows: Tensor
    finite: Tensor
    widths: Tensor

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self.rows = torch.zeros((), dtype=torch.int64, device="cpu")
        self.finite = torch.ones((), dtype=torch.bool, device="cpu")
        self.widths = torch.zeros(0, dtype=torch.int64, device="cpu")
        for name in self.sums:
            setattr(self, name, torch.zeros((), dtype=torch.float64, device="cpu"))

    def merge(self, other: Self) -> Self:
        """Take in what another metric of the same class and settings has seen; returns this metric."""
        mine, theirs = self._configuration(), other._configuration()
        if mine != theirs:
            raise ValueError(f"metrics of one class and the same settings can be merged, got {mine} and {theirs}")
        if int(other.rows) == 0:
            return self
        if int(self.rows) == 0:
            vars(self).update(vars(other))
            return self
        if not torch.equal(self.widths, other.widths):
            seen, given = self.widths.tolist(), other.widths.tolist()
            raise ValueError(f"expected rows as wide as those seen before, {seen}, got {given}")
        if self.finite and other.finite:
            self._add(other)
        self.rows, self.finite = self.rows + other.rows, self.finite & other.finite
        return self

    def merge_ranks(self, group: ProcessGroup | None = None) -> Self:
        """A new metric that has seen the rows of all ranks of a group; every rank gets the same."""
        whole = copy.copy(self)
        if world_size(group) == 1:
            return whole
        parts: list[Self] = [self] * world_size(group)
        dist.all_gather_object(parts, self, group=group)
        whole.reset()
        for part in parts:
            whole.merge(part)
        return whole

    @abstractmethod
    def compute(self) -> Any:
        """The number, or the tuple of numbers, of all rows seen."""

    def _add(self, other: Self) -> None:
        """Add the state of another metric, both with rows and finite."""
        for name in self.sums:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def _part(self, *inputs: Tensor) -> Self:
        """A metric of the same settings for the rows of one update; its sums are still to be filled."""
        part = copy.copy(self)
        part.reset()
        part.rows = torch.full((), len(inputs[0]), dtype=torch.int64, device="cpu")
        part.widths = torch.tensor([x.shape[1] for x in inputs], device="cpu")
        part.finite = torch.full((), finite(*inputs), dtype=torch.bool, device="cpu")
        return part

    def _known(self) -> bool:
        """Whether the number exists; an error where no row was seen."""
        if int(self.rows) == 0:
            raise ValueError(f"{type(self).__name__} has seen no row: update comes before compute")
        return bool(self.finite)

    def _unknown(self, value: float = torch.nan, of: int = 0) -> Tensor:
        """One value for each dimension of an input, for rows that are not finite: NaN, or -1 for an integer."""
        dtype = torch.int64 if isinstance(value, int) else torch.float64
        return torch.full((int(self.widths[of]),), value, dtype=dtype, device="cpu")

    def _configuration(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.settings)})"


class ByActivity(StreamingMetric):
    """A metric that asks where a dimension is active.

    Args:
        eps: Magnitude of a normalised entry above which a dimension is active.
    """

    settings: ClassVar[tuple[str, ...]] = ("eps",)

    def __init__(self, *, eps: float = EPS) -> None:
        self.eps = float(positive("eps", eps))
        super().__init__()


class ByClass(ByActivity):
    """Sums of the rows of each class; classes appear as they are seen.

    Attributes:
        classes: Shape (c,), the classes seen, ascending, int64.
        class_rows: Shape (c,), the rows of each.
    """

    classes: Tensor
    class_rows: Tensor
    per_class: ClassVar[tuple[str, ...]] = ("class_rows",)

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self.classes = torch.zeros(0, dtype=torch.int64, device="cpu")
        for name in self.per_class:
            setattr(self, name, torch.zeros(0, dtype=torch.float64, device="cpu"))

    def _add(self, other: Self) -> None:
        super()._add(other)
        classes = torch.unique(torch.cat([self.classes, other.classes]))
        for name in self.per_class:
            tables = (_rows_of(getattr(part, name), part.classes, classes) for part in (self, other))
            setattr(self, name, sum(tables))
        self.classes = classes


class KeepsRows(StreamingMetric):
    """A metric whose number needs all rows: a tuple of the parts for each input, in the order of the updates."""

    kept: ClassVar[tuple[str, ...]] = ()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        for name in self.kept:
            setattr(self, name, ())

    def _add(self, other: Self) -> None:
        super()._add(other)
        for name in self.kept:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def class_index(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The classes that occur, which of them each row (n,) has, and the rows of each."""
    classes, which, rows = torch.unique(labels, return_inverse=True, return_counts=True)
    return classes.cpu(), which, rows.cpu().double()


def _rows_of(table: Tensor, classes: Tensor, of: Tensor) -> Tensor:
    """A table with a row for each class of a larger set; rows of zeros for the others."""
    larger = table.new_zeros(len(of), *table.shape[1:])
    larger[torch.searchsorted(of, classes)] = table
    return larger
