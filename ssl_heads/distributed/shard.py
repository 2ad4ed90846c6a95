"""Where the rows of a rank lie in the batch of all ranks, and which pairs of rows are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from einops import rearrange, repeat
from torch import Tensor

from ssl_heads import _check
from ssl_heads.distributed.collectives import exchange, gather_sized, sum_over_ranks, world_size
from ssl_heads.similarity import Exclusion, product_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Gather = Literal["none", "all", "ring"]
"""Whose rows a loss compares: those of this rank, or those of all ranks, gathered or travelling."""

GATHERS = get_args(Gather)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_gather(gather: str) -> None:
    """Raise ``ValueError`` for an unknown way of gathering."""
    _check.choice("gather", gather, GATHERS)


@dataclass(frozen=True)
class Shard:
    """Where the rows of this rank lie in the batch of all ranks.

    Attributes:
        gather: How other ranks' rows are met.
        group: Whose ranks hold the batch; None is the default group.
        rank: The position of this rank in the group.
        sizes: Rows of each rank, in rank order, which is the order of everything that is gathered.
        dtype: What kernels may round the rows to for their products, see `ssl_heads.similarity.product_dtype`.
    """

    gather: Gather
    group: ProcessGroup | None
    rank: int
    sizes: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, gather: Gather, group: ProcessGroup | None, *views: Tensor) -> Shard:
        """Exchange the number of rows; all ranks must call it together.

        Args:
            gather: ``"none"`` exchanges nothing: the own rows are the batch.
            group: The ranks that hold the batch.
            views: The embeddings, one row a sample.

        Raises:
            ValueError: On every rank, if one has no rows, or width, dtype or the need of a gradient differ.
        """
        check_gather(gather)
        for view in views:
            _check.tensor("embeddings", view)
        x, dtype_of_products = views[0], product_dtype(*views)
        if gather == "none" or world_size(group) == 1:
            return cls("none", None, 0, (x.shape[0],), dtype_of_products)
        facts = (
            x.shape[0],
            x.shape[-1] if x.ndim == 2 else -1,
            DTYPES.index(x.dtype) if x.dtype in DTYPES else -1,
            sum(2**i for i, view in enumerate(views) if view.requires_grad and torch.is_grad_enabled()),
            int(all(view.shape == x.shape for view in views)),
        )
        rows, width, dtype, gradients, paired = zip(*exchange(facts, x.device, group), strict=True)
        if min(rows) == 0:
            advice = "each needs at least one; drop a last batch that is too small on all of them"
            raise ValueError(f"the ranks hold {list(rows)} rows: {advice}")
        if not all(paired):
            unequal = [rank for rank, equal in enumerate(paired) if not equal]
            raise ValueError(f"the views of a sample must have one shape (n, d), and have not on ranks {unequal}")
        named = {"width": width, "dtype": [str(DTYPES[i]) for i in dtype], "need of a gradient": gradients}
        for name, values in named.items():
            if len(set(values)) > 1:
                raise ValueError(f"the {name} of the embeddings must be the same on all ranks, got {list(values)}")
        return cls(gather, group, dist.get_rank(group), rows, dtype_of_products)

    @property
    def alone(self) -> bool:
        """Whether the own rows are the whole batch."""
        return len(self.sizes) == 1

    @property
    def world(self) -> int:
        """Number of ranks."""
        return len(self.sizes)

    @property
    def rows(self) -> int:
        """Rows of this rank."""
        return self.sizes[self.rank]

    @property
    def total(self) -> int:
        """Rows of all ranks."""
        return sum(self.sizes)

    def span(self, rank: int) -> slice:
        """Where the rows of a rank lie in what is gathered."""
        start = sum(self.sizes[:rank])
        return slice(start, start + self.sizes[rank])

    @property
    def own(self) -> slice:
        """Where the rows of this rank lie in what is gathered."""
        return self.span(self.rank)

    def sum(self, x: Tensor) -> Tensor:
        """This rank's part of a sum over the batch: the *mean* of the parts over ranks is the sum."""
        return x.sum() * self.world

    def mean(self, x: Tensor) -> Tensor:
        """This rank's part of a mean over the batch, of one value a row or a few: their mean over ranks is the mean."""
        return x.mean() * (self.world * self.rows / self.total)

    def gathered(self, x: Tensor) -> Tensor:
        """Rows of all ranks, in rank order; those of views that are stacked come out stacked view by view."""
        if self.alone:
            return x
        views = x.shape[0] // self.rows
        rows = rearrange(x, "(views n) ... -> n views ...", views=views)
        return rearrange(gather_sized(rows, self.sizes, self.group), "n views ... -> (views n) ...")

    def global_sum(self, x: Tensor) -> Tensor:
        """The elementwise sum over ranks, for the moments of a batch; differentiable."""
        return x if self.alone else sum_over_ranks(x, self.group)


class Pairs(NamedTuple):
    """Which pairs count, where rows and columns are views of samples that are spread over ranks.

    Views of one sample are never negatives of each other. Beyond that, samples with equal ids leave each other out.

    Attributes:
        shard: Where the samples lie.
        ids: Integers of all N samples, in rank order, or None. Equal ones belong together, -1 and -1 as well: see
            `ssl_heads.functional.groups.group_index`.
        keep_equal: Leave out the samples with *different* ids instead.
    """

    shard: Shard
    ids: Tensor | None = None
    keep_equal: bool = False

    def with_block(self, rank: int, query_views: int, key_views: int) -> Exclusion:
        """The own rows against those of one rank, both stacked view by view."""
        exclusion = Exclusion.modulo(self.shard.rows) if rank == self.shard.rank else Exclusion.nothing()
        if self.ids is None:
            return exclusion
        query_ids = repeat(self.ids[self.shard.own], "n -> (views n)", views=query_views)
        key_ids = repeat(self.ids[self.shard.span(rank)], "n -> (views n)", views=key_views)
        return exclusion.with_ids(query_ids, key_ids, self.keep_equal)

    def with_all(self, key_views: int) -> Exclusion:
        """One view of the own rows against the rows of all ranks, stacked view by view."""
        exclusion = Exclusion(offset=self.shard.own.start, period=self.shard.total)
        if self.ids is None:
            return exclusion
        query_ids = self.ids[self.shard.own].contiguous()
        key_ids = repeat(self.ids, "n -> (views n)", views=key_views)
        return exclusion.with_ids(query_ids, key_ids, self.keep_equal)
