"""A ring of ranks: each compares its rows with the block of keys it holds, while the next block arrives.

The backward sends the keys round once more, and the sum of their gradients after them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_heads._modes import without_autocast
from ssl_heads.distributed.outside import outside_graph
from ssl_heads.distributed.shard import Pairs, Shard
from ssl_heads.similarity import Impl, implementation
from ssl_heads.similarity.backend import KERNELS, LogSum, Matrix, Needs
from ssl_heads.similarity.operators import block_backend

P = ParamSpec("P")
R = TypeVar("R")


def log_sum_exp(
    query: Tensor, key: Tensor, pairs: Pairs, columns: bool, bound: float, dtype: torch.dtype | None, impl: Impl
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the own rows, and of the own columns on request (else an empty tensor)."""
    impl = resolve_impl(impl, query, key, pairs.shard)
    row, column = _log_sum_exp(query, key, pairs, columns, bound, dtype, impl)
    return row, column


def softplus_sum(
    query: Tensor, key: Tensor, bias: Tensor, pairs: Pairs, dtype: torch.dtype | None, impl: Impl
) -> Tensor:
    """`sum_ij softplus(S_ij + b)` of the own rows."""
    impl = resolve_impl(impl, query, key, pairs.shard)
    total: Tensor = _softplus_sum(query, key, bias, pairs, dtype, impl)
    return total


def class_sum(keys: Tensor, labels: Tensor, shard: Shard) -> Tensor:
    """For each own row the sum of the keys of its class over all ranks."""
    total: Tensor = _class_sum(keys, labels, shard)
    return total


# ------------------------------------------------------------------------------------------------------ what is sent


def resolve_impl(impl: Impl, query: Tensor, key: Tensor, shard: Shard) -> Impl:
    """The choice of `auto` for a block of mean size: every rank chooses alike, so that one dtype is sent."""
    rows, columns = (x.shape[0] // shard.rows * shard.total // shard.world for x in (query, key))
    return implementation(impl, query[:1], rows * columns)


def rows_to_send(impl: Impl, dtype: torch.dtype | None, *rows: Tensor) -> tuple[Tensor, ...]:
    """The rows in the dtype that the kernels read; unchanged for other backends."""
    return rows if dtype is None or impl not in KERNELS else tuple(x.to(dtype) for x in rows)


class RingExchange:
    """Tensors on their way to the next rank, while others arrive from the previous one."""

    def __init__(self, shard: Shard, tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]], tag: int) -> None:
        following, previous = (_peer(shard, step) for step in (1, -1))
        # `leaving` keeps the sent memory until the exchange has ended.
        self.leaving = [tensor.contiguous() for tensor in tensors]
        self.arriving = [tensor.new_empty(*shape) for tensor, shape in zip(tensors, shapes, strict=True)]
        operations = [
            dist.P2POp(operation, tensor, peer, shard.group, tag + i)
            for operation, batch, peer in ((dist.isend, self.leaving, following), (dist.irecv, self.arriving, previous))
            for i, tensor in enumerate(batch)
        ]
        self.work = dist.batch_isend_irecv(operations)

    def wait(self) -> list[Tensor]:
        """The tensors that have arrived."""
        for work in self.work:
            work.wait()
        return self.arriving


def _peer(shard: Shard, step: int) -> int:
    rank = (shard.rank + step) % shard.world
    return rank if shard.group is None else dist.get_global_rank(shard.group, rank)


def _shapes_at(shard: Shard, tensors: Sequence[Tensor], here: int, there: int) -> list[tuple[int, ...]]:
    """The shapes of tensors that belong to one rank's block, for the block of another rank."""
    return [(t.shape[0] // shard.sizes[here] * shard.sizes[there], *t.shape[1:]) for t in tensors]


KEYS, SUMS = 0, 8
"""First message tags; distinct, so that blocks and partial sums in flight cannot be confused."""


def ring_blocks(shard: Shard, *tensors: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    """Every rank's tensors with its rank, the own first; the next arrive while the caller works with these."""
    block = list(tensors)
    for hop in range(shard.world):
        source, upcoming = (shard.rank - hop) % shard.world, (shard.rank - hop - 1) % shard.world
        last = hop == shard.world - 1
        exchange = None if last else RingExchange(shard, block, _shapes_at(shard, block, source, upcoming), KEYS)
        yield source, block
        block = block if exchange is None else exchange.wait()


class RingReduce:
    """A sum over ranks for each block: partial sums go round behind the blocks, and end at the owner of the block."""

    def __init__(self, shard: Shard, add_: Callable[[Tensor, Tensor], Tensor] = Tensor.add_) -> None:
        self.shard, self.add_ = shard, add_
        self.exchange: RingExchange | None = None

    def put(self, source: int, part: Tensor) -> None:
        """Add this rank's part to the sum that belongs to the block of `source`, and send the sum on."""
        if self.exchange is not None:
            part = self.add_(self.exchange.wait()[0], part)
            self.exchange = None  # frees the sent buffer before the next one is made
        shapes = _shapes_at(self.shard, [part], source, (source - 1) % self.shard.world)
        self.exchange = RingExchange(self.shard, [part], shapes, SUMS)

    def result(self) -> Tensor:
        """The sum that belongs to the own block."""
        assert self.exchange is not None
        return self.exchange.wait()[0]


def logaddexp_(a: Tensor, b: Tensor) -> Tensor:
    """`log(e^a + e^b)` in the place of `a`."""
    return torch.logaddexp(a, b, out=a)


# ------------------------------------------------------------------------------------------- what is reduced on the way


def in_own_precision(run: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A forward or backward pass with autocast off, whatever surrounds the call."""

    @functools.wraps(run)
    def call(ctx: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        with without_autocast(first):
            return run(ctx, *args, **kwargs)

    return call


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    @in_own_precision
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        pairs: Pairs,
        columns: bool,
        bound: float,
        dtype: torch.dtype | None,
        impl: Impl,
    ) -> tuple[Tensor, Tensor]:
        shard = pairs.shard
        row = query.new_full((query.shape[0],), -torch.inf)
        query, key = rows_to_send(impl, dtype, query, key)
        column = RingReduce(shard, logaddexp_)
        for source, (block,) in ring_blocks(shard, key):
            matrix = Matrix(query, block, exclusion=pairs.exclusion_for_block(source, query, block), bound=bound)
            by_row, by_column, _ = block_backend(impl).pair_forward(matrix, columns, one_sweep=False)
            logaddexp_(row, by_row)
            if columns:
                column.put(source, by_column)
        own_column = column.result() if columns else row.new_empty(0)
        ctx.save_for_backward(query, key, row, own_column)
        ctx.pairs, ctx.bound, ctx.impl = pairs, bound, impl
        return row, own_column

    @staticmethod
    @once_differentiable
    @in_own_precision
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, row, own_column = ctx.saved_tensors
        row_gradient, own_column_gradient = (gradient.contiguous() for gradient in gradients)
        pairs, shard = ctx.pairs, ctx.pairs.shard
        needs_query, needs_key = ctx.needs_input_grad[:2]
        needs, nothing = Needs(needs_query, needs_key, scale=False), row.new_empty(0)
        query_gradient, key_gradient = torch.zeros_like(query, dtype=row.dtype), RingReduce(shard)
        sent = (key, own_column, own_column_gradient) if len(own_column) else (key,)
        for source, (block, *of_columns) in ring_blocks(shard, *sent):
            column = LogSum(*of_columns) if of_columns else None
            matrix = Matrix(query, block, exclusion=pairs.exclusion_for_block(source, query, block), bound=ctx.bound)
            backward = block_backend(ctx.impl).pair_backward
            by_query, by_key, _ = backward(matrix, LogSum(row, row_gradient), column, nothing, False, needs)
            if needs_query:
                query_gradient += by_query
            if needs_key:
                key_gradient.put(source, by_key)
        return query_gradient if needs_query else None, key_gradient.result() if needs_key else None, *[None] * 5


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    @in_own_precision
    def forward(
        ctx: Any, query: Tensor, key: Tensor, bias: Tensor, pairs: Pairs, dtype: torch.dtype | None, impl: Impl
    ) -> Tensor:
        query, key = rows_to_send(impl, dtype, query, key)
        ctx.save_for_backward(query, key, bias)
        ctx.pairs, ctx.impl = pairs, impl
        total = bias.new_zeros(())
        for source, (block,) in ring_blocks(pairs.shard, key):
            matrix = Matrix(query, block, exclusion=pairs.exclusion_for_block(source, query, block))
            total += block_backend(impl).softplus(matrix, bias, gradient=False)[0]
        return total

    @staticmethod
    @once_differentiable
    @in_own_precision
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, bias = ctx.saved_tensors
        (upstream,) = gradients
        query_gradient, bias_gradient = torch.zeros_like(query, dtype=bias.dtype), torch.zeros_like(bias)
        key_gradient = RingReduce(ctx.pairs.shard)
        for source, (block,) in ring_blocks(ctx.pairs.shard, key):
            matrix = Matrix(query, block, exclusion=ctx.pairs.exclusion_for_block(source, query, block))
            found = block_backend(ctx.impl).softplus(matrix, bias, gradient=True)
            _, by_query, by_key, _, by_bias = found
            query_gradient += by_query
            bias_gradient += by_bias.reshape(())
            if ctx.needs_input_grad[1]:
                key_gradient.put(source, by_key * upstream)
        by_owner = key_gradient.result() if ctx.needs_input_grad[1] else None
        return query_gradient * upstream, by_owner, bias_gradient * upstream, None, None, None


class _ClassSum(torch.autograd.Function):
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
    for source, (block,) in ring_blocks(shard, keys):
        theirs = labels[shard.span(source)]
        place = torch.searchsorted(table, theirs).clamp_max(len(table) - 1)
        of_class.index_add_(0, place, block * (table[place] == theirs)[:, None])
    return of_class[torch.searchsorted(table, own)]


_log_sum_exp, _softplus_sum, _class_sum = (outside_graph(f.apply) for f in (_LogSumExp, _SoftplusSum, _ClassSum))
