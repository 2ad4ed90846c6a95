r"""One batch that is spread over processes: value and gradients equal one process on the whole batch.

The contract. N rows lie on W ranks, in rank order. Each rank returns

.. math:: L_r = \frac{W}{N} \sum_{i \in r} l_i,

which is the mean over its own rows where all ranks hold equally many; the mean of :math:`L_r` over ranks is the loss of
the whole batch. The backward of every collective here is its adjoint, so the gradient that reaches a parameter on all
ranks together is that of :math:`\sum_r L_r`, and the mean that DistributedDataParallel takes is the gradient of the
loss of the whole batch. This holds for features, temperatures, scales, biases and importances alike.

Two ways of meeting the keys of other ranks:

- ``"all"``: every rank gathers the keys once and compares its own rows with all columns. Memory O(N d).
- ``"ring"``: keys travel from rank to rank, and the next block arrives while this one is compared. Memory O(N d / W);
  the backward sends the keys round once more, and their gradients after them.

Rank and size are read from the group in each call. Without a process group, or with one rank, nothing is sent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_heads import _check, similarity
from ssl_heads.similarity import Exclusion, Impl, partial

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Gather = Literal["none", "all", "ring"]
"""Whose rows a loss compares: those of this rank, or those of all ranks, gathered or travelling."""

__all__ = ["Gather", "Shard", "all_gather_rows", "all_reduce_sum", "check_gather", "log_sum_exp", "softplus_sum"]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_gather(gather: str) -> None:
    """Raise ``ValueError`` for an unknown way of gathering."""
    _check.choice("gather", gather, get_args(Gather))


def world_size(group: ProcessGroup | None) -> int:
    """Ranks of the group; 1 without one."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


class Shard(NamedTuple):
    """Where the rows of this rank lie in the batch of all ranks.

    Attributes:
        gather: How other ranks' rows are met.
        group: Whose ranks hold the batch; None is the default group.
        rank: The position of this rank in the group.
        sizes: Rows of each rank, in rank order, which is the order of everything that is gathered.
    """

    gather: Gather
    group: ProcessGroup | None
    rank: int
    sizes: tuple[int, ...]

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
        x = views[0]
        if gather == "none" or world_size(group) == 1:
            return cls("none", None, 0, (x.shape[0],))
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
        return cls(gather, group, dist.get_rank(group), rows)

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
        return rearrange(_all_gather(rows, self), "n views ... -> (views n) ...")

    def global_sum(self, x: Tensor) -> Tensor:
        """The elementwise sum over ranks, for the moments of a batch; differentiable."""
        return x if self.alone else _all_reduce(x, self.group)


# --------------------------------------------------------------------------------------------------------- collectives


@torch.compiler.disable  # type: ignore[untyped-decorator]
def exchange(facts: Sequence[int], device: torch.device, group: ProcessGroup | None) -> list[list[int]]:
    """A few integers of every rank; they stay on the host where the group can talk there (``cpu:gloo,cuda:nccl``)."""
    on_host = "cpu:" in dist.get_backend_config(group)
    own = torch.tensor(facts, device="cpu" if on_host else device)
    everyone = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(everyone, own, group=group)
    return torch.stack(everyone).tolist()


def all_gather_rows(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The rows of all ranks in rank order; the backward sums what all ranks say about a row and gives it to its owner.

    Ranks may hold different numbers of rows, also none. Use it to fill a queue with the keys of all ranks.

    Args:
        x: Shape (n, ...); the same trailing shape and dtype on all ranks.
        group: The ranks that take part; None is the default group.

    Returns:
        Shape (N, ...); ``x`` itself without a process group or with one rank.

    Example:
        >>> import torch
        >>> from ssl_heads.distributed import all_gather_rows
        >>> all_gather_rows(torch.eye(2)).shape
        torch.Size([2, 2])
    """
    if world_size(group) == 1:
        return x
    sizes = tuple(rows for (rows,) in exchange([x.shape[0]], x.device, group))
    return _all_gather(x, Shard("all", group, dist.get_rank(group), sizes))


def all_reduce_sum(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The sum over ranks, elementwise; the backward sums the gradients of all ranks, because all ranks use the sum.

    Args:
        x: The same shape and dtype on all ranks.
        group: The ranks that take part; None is the default group.

    Returns:
        Shape of ``x``; ``x`` itself without a process group or with one rank.

    Example:
        >>> import torch
        >>> from ssl_heads.distributed import all_reduce_sum
        >>> all_reduce_sum(torch.ones(2))
        tensor([1., 1.])
    """
    return x if world_size(group) == 1 else _all_reduce(x, group)


def _all_gather(x: Tensor, shard: Shard) -> Tensor:
    gathered: Tensor = _disabled(_AllGatherRows)(x, shard)
    return gathered


def _all_reduce(x: Tensor, group: ProcessGroup | None) -> Tensor:
    total: Tensor = _disabled(_AllReduceSum)(x, group)
    return total


def _disabled(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Collectives of a group that is named at run time break the graph of torch.compile, and only they."""
    apply: Callable[..., Any] = torch.compiler.disable(function.apply)  # type: ignore[no-untyped-call]
    return apply


class _AllGatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        longest = max(shard.sizes)
        everyone = x.new_empty(shard.world * longest, *x.shape[1:])
        _all_gather_into(everyone, padded(x, longest), shard.group)
        if min(shard.sizes) == longest:
            return everyone
        return torch.cat(
            [block[:size] for block, size in zip(torch.split(everyone, longest), shard.sizes, strict=True)]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        shard = ctx.shard
        if dist.get_backend(shard.group) == "gloo":  # has no reduce-scatter of its own
            total = gradient.contiguous().clone()
            dist.all_reduce(total, group=shard.group)
            return total[shard.own], None
        longest = max(shard.sizes)
        blocks = torch.cat([padded(block, longest) for block in torch.split(gradient, shard.sizes)])
        own = gradient.new_empty(longest, *gradient.shape[1:])
        _reduce_scatter_into(own, blocks, shard.group)
        return own[: shard.rows], None


def padded(x: Tensor, rows: int) -> Tensor:
    """Rows of zeros appended up to a number of rows, in contiguous memory."""
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, rows - x.shape[0])).contiguous()


def _all_gather_into(output: Tensor, x: Tensor, group: ProcessGroup | None) -> None:
    collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    collective(output, x, group=group)


def _reduce_scatter_into(output: Tensor, x: Tensor, group: ProcessGroup | None) -> None:
    collective = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    collective(output, x, group=group)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _all_reduced(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(gradients[0], ctx.group), None


def _all_reduced(x: Tensor, group: ProcessGroup | None) -> Tensor:
    total = x.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total


def global_log_sum_exp(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The elementwise log-sum-exp over ranks: of columns whose rows are spread over them."""
    largest = x.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    largest = torch.where(largest > -torch.inf, largest, 0)
    return torch.log(_all_reduce(torch.exp(x - largest), group)) + largest


# -------------------------------------------------------------------------------- reductions over the keys of all ranks


class Pairs(NamedTuple):
    """Which pairs count, where rows and columns are views of samples that are spread over ranks.

    Views of one sample are never negatives of each other. Beyond that, samples with equal ids leave each other out.

    Attributes:
        shard: Where the samples lie.
        ids: Integers of all N samples, in rank order, or None.
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
        return exclusion._replace(query_ids=query_ids, key_ids=key_ids, keep_equal=self.keep_equal)

    def with_all(self, key_views: int) -> Exclusion:
        """One view of the own rows against the rows of all ranks, stacked view by view."""
        exclusion = Exclusion(offset=self.shard.own.start, period=self.shard.total)
        if self.ids is None:
            return exclusion
        query_ids = self.ids[self.shard.own].contiguous()
        key_ids = repeat(self.ids, "n -> (views n)", views=key_views)
        return exclusion._replace(query_ids=query_ids, key_ids=key_ids, keep_equal=self.keep_equal)


def log_sum_exp(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    pairs: Pairs,
    *,
    columns: bool = False,
    bound: float = math.inf,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp over the negatives of the own rows among the keys of all ranks, and of the own columns on request.

    Args:
        query: The own rows, of shape (n, d), or (views n, d) stacked view by view.
        key: The own keys, of shape (views n, d) stacked view by view.
        scale: Multiplies the logits.
        pairs: Which pairs count.
        columns: Whether the log-sum-exp of the own keys over the queries of all ranks is wanted too.
        bound: The largest ``|logit|`` where the caller knows it.
        impl: See `ssl_heads.similarity.Impl`.

    Returns:
        One value an own row, and one an own key or None.
    """
    shard = pairs.shard
    if shard.gather == "ring":
        similarity.check_impl(impl)
        row, column = _disabled(_RingLogSumExp)(query * scale, key, pairs, columns, bound, impl)
        return row, column if columns else None
    keys = shard.gathered(key)
    exclusion = pairs.with_all(len(keys) // shard.total)
    views = [
        similarity.log_sum_exp(view, keys, scale, exclusion=exclusion, columns=columns, bound=bound, impl=impl)
        for view in torch.split(query, shard.rows)
    ]
    row = torch.cat([row for row, _ in views])
    if not columns:
        return row, None
    partial_column = functools.reduce(torch.logaddexp, [column for _, column in views if column is not None])
    column = global_log_sum_exp(partial_column, shard.group)
    return row, rearrange(column, "(views n) -> views n", n=shard.total)[:, shard.own].flatten()


def softplus_sum(query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor, pairs: Pairs, impl: Impl) -> Tensor:
    """``sum_ij softplus(scale * <q_i, k_j> + bias)`` over the negatives of the own rows among the keys of all ranks."""
    shard = pairs.shard
    if shard.gather == "ring":
        similarity.check_impl(impl)
        total: Tensor = _disabled(_RingSoftplusSum)(query * scale, key, bias, pairs, impl)
        return total
    keys = shard.gathered(key)
    return similarity.softplus_sum(query, keys, scale, bias, exclusion=pairs.with_all(1), impl=impl)


def class_sum(keys: Tensor, labels: Tensor, shard: Shard) -> Tensor:
    """For each own row the sum of the keys of its class over all ranks.

    The matrix [labels_i = labels_j] is symmetric, so that the backward of the travelling sum is the same sum.

    Args:
        keys: The own keys, of shape (n, d).
        labels: Integers of all N rows.
        shard: Where the rows lie.

    Returns:
        Shape (n, d).
    """
    total: Tensor = _disabled(_RingClassSum)(keys, labels, shard)
    return total


# --------------------------------------------------------------------------------------------------------- the ring


class Shift:
    """Tensors on their way to the next rank, while others arrive from the previous one."""

    def __init__(self, shard: Shard, tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]], tag: int) -> None:
        following, previous = (_peer(shard, step) for step in (1, -1))
        self.leaving = [tensor.contiguous() for tensor in tensors]  # their memory must live until they have left
        self.arriving = [tensor.new_empty(*shape) for tensor, shape in zip(tensors, shapes, strict=True)]
        operations = [
            dist.P2POp(operation, tensor, peer, shard.group, tag + i)
            for operation, batch, peer in ((dist.isend, self.leaving, following), (dist.irecv, self.arriving, previous))
            for i, tensor in enumerate(batch)
        ]
        self.work = dist.batch_isend_irecv(operations)

    def wait(self) -> list[Tensor]:
        """What has arrived."""
        for work in self.work:
            work.wait()
        return self.arriving


def _peer(shard: Shard, step: int) -> int:
    rank = (shard.rank + step) % shard.world
    return rank if shard.group is None else dist.get_global_rank(shard.group, rank)


def _shapes_at(shard: Shard, tensors: Sequence[Tensor], here: int, there: int) -> list[tuple[int, ...]]:
    """The shapes of tensors that belong to one rank's block, for the block of another rank."""
    return [(t.shape[0] // shard.sizes[here] * shard.sizes[there], *t.shape[1:]) for t in tensors]


KEYS, SUMS = 0, 8  # first tags: blocks and the sums behind them never take each other's place


def travelling(shard: Shard, *tensors: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    """Every rank's tensors with its rank, the own first; the next arrive while the caller works with these."""
    block = list(tensors)
    for hop in range(shard.world):
        source, upcoming = (shard.rank - hop) % shard.world, (shard.rank - hop - 1) % shard.world
        last = hop == shard.world - 1
        shift = None if last else Shift(shard, block, _shapes_at(shard, block, source, upcoming), KEYS)
        yield source, block
        block = block if shift is None else shift.wait()


class Homeward:
    """A sum over ranks for every block: it follows its block, each rank adds its part, and the last brings it home."""

    def __init__(self, shard: Shard, add_: Callable[[Tensor, Tensor], Tensor] = Tensor.add_) -> None:
        self.shard, self.add_ = shard, add_
        self.shift: Shift | None = None

    def put(self, source: int, part: Tensor) -> None:
        """Add this rank's part to the sum that belongs to the block of ``source``, and send it on."""
        if self.shift is not None:
            part = self.add_(self.shift.wait()[0], part)
            self.shift = None  # what has left may be freed before the next buffer is made
        shapes = _shapes_at(self.shard, [part], source, (source - 1) % self.shard.world)
        self.shift = Shift(self.shard, [part], shapes, SUMS)

    def home(self) -> Tensor:
        """The sum that belongs to the own block."""
        assert self.shift is not None
        return self.shift.wait()[0]


def logaddexp_(a: Tensor, b: Tensor) -> Tensor:
    """``log(e^a + e^b)`` in the place of ``a``."""
    return torch.logaddexp(a, b, out=a)


class _RingLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, pairs: Pairs, columns: bool, bound: float, impl: Impl
    ) -> tuple[Tensor, Tensor]:
        shard = pairs.shard
        views = query.shape[0] // shard.rows, key.shape[0] // shard.rows
        row = query.new_full((query.shape[0],), -torch.inf)
        column = Homeward(shard, logaddexp_)
        for source, (block,) in travelling(shard, key):
            exclusion = pairs.with_block(source, *views)
            by_row, by_column = partial.log_sum_exp(query, block, exclusion, columns, bound, impl)
            logaddexp_(row, by_row)
            if columns:
                column.put(source, by_column)
        own_column = column.home() if columns else row.new_empty(0)
        ctx.save_for_backward(query, key, row, own_column)
        ctx.pairs, ctx.views, ctx.bound, ctx.impl = pairs, views, bound, impl
        return row, own_column

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, row, own_column = ctx.saved_tensors
        row_gradient, own_column_gradient = gradients
        pairs, shard = ctx.pairs, ctx.pairs.shard
        needs_query, needs_key = ctx.needs_input_grad[:2]
        query_gradient, key_gradient = torch.zeros_like(query), Homeward(shard)
        blocks = travelling(shard, key, own_column, own_column_gradient) if len(own_column) else travelling(shard, key)
        for source, (block, *of_columns) in blocks:
            column, column_gradient = of_columns or (own_column, own_column_gradient)
            exclusion = pairs.with_block(source, *ctx.views)
            sums, upstream = (row, column), (row_gradient, column_gradient)
            needs = (needs_query, needs_key)
            by_query, by_key = partial.log_sum_exp_gradient(
                query, block, sums, upstream, exclusion, ctx.bound, needs, ctx.impl
            )
            if needs_query:
                query_gradient += by_query
            if needs_key:
                key_gradient.put(source, by_key)
        return query_gradient if needs_query else None, key_gradient.home() if needs_key else None, *[None] * 4


class _RingSoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, bias: Tensor, pairs: Pairs, impl: Impl) -> Tensor:
        ctx.save_for_backward(query, key, bias)
        ctx.pairs, ctx.impl = pairs, impl
        total = bias.new_zeros(())
        for source, (block,) in travelling(pairs.shard, key):
            total += partial.softplus_sum(query, block, bias, pairs.with_block(source, 1, 1), impl)[0]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, bias = ctx.saved_tensors
        (upstream,) = gradients
        query_gradient, bias_gradient = torch.zeros_like(query), torch.zeros_like(bias)
        key_gradient = Homeward(ctx.pairs.shard)
        for source, (block,) in travelling(ctx.pairs.shard, key):
            exclusion = ctx.pairs.with_block(source, 1, 1)
            _, by_query, by_key, by_bias = partial.softplus_sum(query, block, bias, exclusion, ctx.impl, gradient=True)
            query_gradient += by_query
            bias_gradient += by_bias
            if ctx.needs_input_grad[1]:
                key_gradient.put(source, by_key * upstream)
        home = key_gradient.home() if ctx.needs_input_grad[1] else None
        return query_gradient * upstream, home, bias_gradient * upstream, None, None


class _RingClassSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys: Tensor, labels: Tensor, shard: Shard) -> Tensor:
        ctx.labels, ctx.shard = labels, shard
        return _ring_class_sum(keys, labels, shard)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _ring_class_sum(gradients[0], ctx.labels, ctx.shard), None, None


def _ring_class_sum(keys: Tensor, labels: Tensor, shard: Shard) -> Tensor:
    """A table of the classes of the own rows: the first of equal labels in the sorted order holds their sum."""
    own = labels[shard.own]
    table, of_class = own.sort().values, torch.zeros_like(keys)
    for source, (block,) in travelling(shard, keys):
        theirs = labels[shard.span(source)]
        place = torch.searchsorted(table, theirs).clamp_max(len(table) - 1)
        of_class.index_add_(0, place, block * (table[place] == theirs)[:, None])
    return of_class[torch.searchsorted(table, own)]
