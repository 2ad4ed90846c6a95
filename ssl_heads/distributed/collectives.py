"""Collectives whose backward is their adjoint, which is what DistributedDataParallel's mean expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_heads import _check
from ssl_heads.distributed.agreement import agree, needs_gradient, world_size
from ssl_heads.distributed.outside import outside_graph

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def all_gather_rows(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The rows of all ranks in rank order; the backward gives each row the sum of its gradients on all ranks.

    Ranks may hold different numbers of rows, also none. Use it to fill a queue with the keys of all ranks.

    Args:
        x: Shape (n, ...); the same trailing shape, dtype and need of a gradient on all ranks.
        group: The ranks that take part; None is the default group.

    Returns:
        Shape (N, ...); `x` itself without a process group or with one rank.

    Raises:
        ValueError: If trailing shape, dtype, device or the need of a gradient differ between ranks; on every rank.

    Example:
        >>> import torch
        >>> from ssl_heads.distributed import all_gather_rows
        >>> all_gather_rows(torch.eye(2)).shape
        torch.Size([2, 2])
    """
    if world_size(group) == 1:
        return x
    sizes, _ = agree(x, tensor_facts("all_gather_rows", x, first=1), lambda: _check_rows(x), group)
    return gather_sized(x, sizes, group)


def all_reduce_sum(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The sum over ranks, elementwise; the backward sums the gradients of all ranks, because all ranks use the sum.

    Args:
        x: The same shape, dtype and need of a gradient on all ranks.
        group: The ranks that take part; None is the default group.

    Returns:
        Shape of `x`; `x` itself without a process group or with one rank.

    Raises:
        ValueError: If shape, dtype, device or the need of a gradient differ between ranks; on every rank.

    Example:
        >>> import torch
        >>> from ssl_heads.distributed import all_reduce_sum
        >>> all_reduce_sum(torch.ones(2))
        tensor([1., 1.])
    """
    if world_size(group) == 1:
        return x
    agree(x, tensor_facts("all_reduce_sum", x, first=0), lambda: _check.tensor("x", x), group)
    return sum_over_ranks(x, group)


def tensor_facts(call: str, x: object, first: int) -> dict[str, object]:
    """The facts about a sent tensor that must be equal on all ranks: its shape from an axis on, dtype and device."""
    if not isinstance(x, Tensor):
        return {"call": call}
    return {
        "call": call,
        "trailing shape" if first else "shape": tuple(x.shape[first:]),
        "dtype": x.dtype,
        "device": x.device.type,
        "need of a gradient": needs_gradient(x),
    }


def _check_rows(x: Tensor) -> None:
    _check.tensor("x", x)
    if x.ndim == 0:
        raise ValueError("x must have rows, shape (n, ...), got shape ()")


def gather_sized(x: Tensor, sizes: Sequence[int], group: ProcessGroup | None) -> Tensor:
    """`all_gather_rows` where the number of rows of each rank is known."""
    gathered: Tensor = _gather(x, tuple(sizes), group)
    return gathered


def sum_over_ranks(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """`all_reduce_sum` where there are other ranks."""
    total: Tensor = _sum(x, group)
    return total


class _AllGatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...], group: ProcessGroup | None) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        longest = max(sizes)
        everyone = x.new_empty(len(sizes) * longest, *x.shape[1:])
        _all_gather_into(everyone, padded(x, longest), group)
        if min(sizes) == longest:
            return everyone
        return torch.cat([block[:size] for block, size in zip(torch.split(everyone, longest), sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        sizes, rank = ctx.sizes, dist.get_rank(ctx.group)
        if not has_reduce_scatter(gradient, ctx.group):
            return torch.split(_all_reduced(gradient, ctx.group), sizes)[rank], None, None
        longest = max(sizes)
        blocks = torch.cat([padded(block, longest) for block in torch.split(gradient, sizes)])
        own = gradient.new_empty(longest, *gradient.shape[1:])
        _reduce_scatter_into(own, blocks, ctx.group)
        return own[: sizes[rank]], None, None


_gather = outside_graph(_AllGatherRows.apply)


def has_reduce_scatter(x: Tensor, group: ProcessGroup | None) -> bool:
    """Gloo has none in older releases, and an all-reduce under this name in newer ones."""
    return x.device.type != "cpu" and dist.get_backend(group) != "gloo"


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
        return sum_over_ranks(gradients[0], ctx.group), None


_sum = outside_graph(_AllReduceSum.apply)


def _all_reduced(x: Tensor, group: ProcessGroup | None, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    total = x.contiguous().clone()
    dist.all_reduce(total, operation, group=group)
    return total


@outside_graph
def _maximum(x: Tensor, group: ProcessGroup | None) -> Tensor:
    return _all_reduced(x, group, dist.ReduceOp.MAX)


def global_log_sum_exp(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The elementwise log-sum-exp over ranks: of columns whose rows are spread over them."""
    largest = _maximum(x.detach(), group)
    # of a column that is -inf on all ranks, the logarithm of zero would make the gradient NaN
    empty = largest == -torch.inf
    total = sum_over_ranks(torch.exp(x - largest.masked_fill(empty, 0)), group)
    return torch.log(total.masked_fill(empty, 1)) + largest
