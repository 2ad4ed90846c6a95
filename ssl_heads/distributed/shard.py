"""Where the rows of a rank lie in the batch of all ranks, and which pairs of rows are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import torch.distributed as dist
from einops import rearrange, repeat
from torch import Tensor

from ssl_heads import _check
from ssl_heads.distributed.agreement import agree, embedding_facts, world_size
from ssl_heads.distributed.collectives import gather_sized, sum_over_ranks
from ssl_heads.similarity import Exclusion

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Gather = Literal["none", "all", "ring"]
"""Whose rows a loss compares: those of this rank, or those of all ranks, gathered or sent round a ring."""

GATHERS = get_args(Gather)

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Where the rows of this rank lie in the batch of all ranks.

    Attributes:
        gather: Whose rows are compared.
        group: Whose ranks hold the batch; None is the default group.
        rank: The position of this rank in the group.
        sizes: Rows of each rank, in rank order, which is the order of everything that is gathered.
        exchanged: What was gathered, beside the own rows; it lives as long as the call.
    """

    gather: Gather
    group: ProcessGroup | None
    rank: int
    sizes: tuple[int, ...]
    exchanged: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        gather: Gather,
        group: ProcessGroup | None,
        views: Mapping[str, Tensor],
        facts: Mapping[str, object],
        check: Callable[[], T],
    ) -> tuple[Shard, T]:
        """Check the own inputs, and exchange with all ranks what they must agree about; they call it together.

        Args:
            gather: ``"none"`` exchanges nothing: the own rows are the batch.
            group: The ranks that hold the batch.
            views: The embeddings by name, one row a sample.
            facts: The name of the loss as ``"call"``, its configuration and its optional inputs, by name.
            check: Raises an error for inputs that are refused, and returns what the loss goes on with.

        Returns:
            The shard, and what the check returned.

        Raises:
            ValueError: If one rank has no rows or refuses its inputs, or a fact, or the width, dtype, device or
                need of a gradient of a view differs; on every rank.
        """
        _check.choice("gather", gather, GATHERS)
        first = next(iter(views.values()))
        if gather == "none" or world_size(group) == 1:
            checked = check()
            return cls("none", None, 0, (first.shape[0],)), checked
        agreed: dict[str, object] = {**facts, "gather": gather}
        for name, view in views.items():
            agreed |= embedding_facts(name, view)
        sizes, checked = agree(first, agreed, check, group, least=1)
        return cls(gather, group, dist.get_rank(group), sizes), checked

    @property
    def is_local(self) -> bool:
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

    def ddp_sum(self, x: Tensor) -> Tensor:
        """This rank's part of a sum over the batch: the *mean* of the parts over ranks is the sum."""
        return x.sum() * self.world

    def ddp_mean(self, x: Tensor) -> Tensor:
        """This rank's part of a mean over the batch, of equally many values a row: their *mean* is the mean."""
        return x.mean() * (self.world * self.rows / self.total)

    def gathered(self, x: Tensor) -> Tensor:
        """Rows of all ranks, in rank order; stacked views stay stacked view by view.

        Two reductions of one call that read the same keys exchange them once, and one sum of gradients.
        """
        if self.is_local:
            return x
        for sent, everyone in self.exchanged:
            if sent is x:
                return everyone
        views = x.shape[0] // self.rows
        rows = rearrange(x, "(views n) ... -> n views ...", views=views)
        everyone = rearrange(gather_sized(rows, self.sizes, self.group), "n views ... -> (views n) ...")
        self.exchanged.append((x, everyone))
        return everyone

    def first(self, x: Tensor, count: int) -> Tensor:
        """The first rows of the batch of all ranks, at most `count`, without gradient."""
        if self.is_local:
            return x[:count]
        sizes = [max(0, min(count - self.span(rank).start, size)) for rank, size in enumerate(self.sizes)]
        return gather_sized(x[: sizes[self.rank]], sizes, self.group)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The elementwise sum over ranks, for the moments of a batch; differentiable."""
        return x if self.is_local else sum_over_ranks(x, self.group)


@dataclass(frozen=True)
class Pairs:
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

    def exclusion_for_block(self, rank: int, query: Tensor, key: Tensor) -> Exclusion:
        """The own rows against those of one rank, both stacked view by view."""
        exclusion = Exclusion.modulo(self.shard.rows) if rank == self.shard.rank else Exclusion.nothing()
        if self.ids is None:
            return exclusion
        query_ids, key_ids = self.ids[self.shard.own], self.ids[self.shard.span(rank)]
        query_ids = repeat(query_ids, "n -> (views n)", views=len(query) // len(query_ids))
        key_ids = repeat(key_ids, "n -> (views n)", views=len(key) // len(key_ids))
        return exclusion.with_ids(query_ids, key_ids, self.keep_equal)

    def exclusion_for_all(self, key_views: int) -> Exclusion:
        """One view of the own rows against the rows of all ranks, stacked view by view."""
        exclusion = Exclusion(offset=self.shard.own.start, period=self.shard.total)
        if self.ids is None:
            return exclusion
        query_ids = self.ids[self.shard.own].contiguous()
        key_ids = repeat(self.ids, "n -> (views n)", views=key_views)
        return exclusion.with_ids(query_ids, key_ids, self.keep_equal)
