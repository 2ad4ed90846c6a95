"""The tiled passes as operators that autograd, autocast and torch.compile know.

Saved for backward: the inputs and vectors of length n. A second derivative has no tiled form; it says so.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssl_heads.similarity import tiled
from ssl_heads.similarity.exclusion import Exclusion


def _bound(bound: float, query: Tensor, key: Tensor, weight: Tensor | None = None) -> float:
    """A finite bound on the logits where one is known without waiting for a device."""
    if math.isfinite(bound) or query.device.type != "cpu":
        return bound
    return tiled.largest_logit(query if weight is None else query * weight, key)


def _no_second_derivative(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError('the tiled similarity has no second derivative; pass impl="dense" to differentiate twice')


def _ignore_inputs(ctx: Any, inputs: Any, output: Any) -> None:
    """A context that keeps nothing."""


# ------------------------------------------------------------------------------------------------------------ two sets


@torch.library.custom_op("ssl_heads::pair_lse", mutates_args=())
def pair_lse(
    query: Tensor,
    key: Tensor,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    columns: bool,
    bound: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp over the negatives of ``q k^T``, by rows, on request by columns, and what the backward uses again."""
    exclusion = Exclusion(offset, period, query_ids, key_ids, keep_equal)
    with torch.autocast(query.device.type, enabled=False):
        return tiled.pair_forward(query, key, exclusion, columns, _bound(bound, query, key))


@pair_lse.register_fake
def _(query, key, offset, period, query_ids, key_ids, keep_equal, columns, bound):  # type: ignore[no-untyped-def]
    n, m = query.shape[0], key.shape[0]
    kept = query.new_empty(tiled.kept_shape(n, m, query.dtype))
    return query.new_empty(n), query.new_empty(m if columns else 0), kept


@torch.library.custom_op("ssl_heads::pair_lse_backward", mutates_args=())
def pair_lse_backward(
    query: Tensor,
    key: Tensor,
    row: Tensor,
    column: Tensor,
    kept: Tensor,
    row_gradient: Tensor,
    column_gradient: Tensor,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    bound: float,
    needs_query: bool,
    needs_key: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `pair_lse` with respect to query and key; empty where not needed."""
    exclusion = Exclusion(offset, period, query_ids, key_ids, keep_equal)
    with torch.autocast(query.device.type, enabled=False):
        return tiled.pair_backward(
            query,
            key,
            row,
            column,
            kept,
            row_gradient,
            column_gradient,
            exclusion,
            _bound(bound, query, key),
            needs_query,
            needs_key,
        )


@pair_lse_backward.register_fake
def _(query, key, *rest):  # type: ignore[no-untyped-def]
    *_, needs_query, needs_key = rest
    return (
        query.new_empty(query.shape) if needs_query else query.new_empty(0),
        key.new_empty(key.shape) if needs_key else key.new_empty(0),
    )


def _pair_setup(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal, ctx.columns, ctx.bound = inputs
    ctx.save_for_backward(query, key, query_ids, key_ids, *output)
    ctx.set_materialize_grads(False)


def _pair_backward(
    ctx: Any, row_gradient: Tensor | None, column_gradient: Tensor | None, kept_gradient: Tensor | None
) -> Any:
    query, key, query_ids, key_ids, row, column, kept = ctx.saved_tensors
    if row_gradient is None and column_gradient is None:
        return (None,) * 9
    row_gradient = torch.zeros_like(row) if row_gradient is None else row_gradient
    column_gradient = torch.zeros_like(column) if column_gradient is None else column_gradient
    needs_query, needs_key = ctx.needs_input_grad[:2]
    exclusion = (ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal)
    query_gradient, key_gradient = pair_lse_backward(
        query, key, row, column, kept, row_gradient, column_gradient, *exclusion, ctx.bound, needs_query, needs_key
    )
    return query_gradient if needs_query else None, key_gradient if needs_key else None, *[None] * 7


pair_lse.register_autograd(_pair_backward, setup_context=_pair_setup)
pair_lse_backward.register_autograd(_no_second_derivative, setup_context=_ignore_inputs)


# ------------------------------------------------------------------------------------------------------------- one set


@torch.library.custom_op("ssl_heads::self_lse", mutates_args=())
def self_lse(
    x: Tensor, weight: Tensor, offset: int, period: int, ids: Tensor | None, keep_equal: bool, bound: float
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the negatives of the rows of ``x diag(w) x^T``, and what the backward can use again."""
    exclusion = Exclusion(offset, period, ids, ids, keep_equal)
    with torch.autocast(x.device.type, enabled=False):
        return tiled.self_forward(x, weight, exclusion, _bound(bound, x, x, weight))


@self_lse.register_fake
def _(x, weight, offset, period, ids, keep_equal, bound):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0]), x.new_empty(tiled.kept_shape(x.shape[0], x.shape[0], x.dtype))


@torch.library.custom_op("ssl_heads::self_lse_backward", mutates_args=())
def self_lse_backward(
    x: Tensor,
    weight: Tensor,
    row: Tensor,
    kept: Tensor,
    row_gradient: Tensor,
    offset: int,
    period: int,
    ids: Tensor | None,
    keep_equal: bool,
    bound: float,
) -> Tensor:
    """``(W + W^T) x``, from which the gradients with respect to x and the weight follow row by row."""
    exclusion = Exclusion(offset, period, ids, ids, keep_equal)
    with torch.autocast(x.device.type, enabled=False):
        return tiled.self_backward(x, weight, row, kept, row_gradient, exclusion, _bound(bound, x, x, weight))


@self_lse_backward.register_fake
def _(x, *rest):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


def _self_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, ctx.offset, ctx.period, ids, ctx.keep_equal, ctx.bound = inputs
    ctx.save_for_backward(x, weight, ids, *output)
    ctx.set_materialize_grads(False)


def _self_backward(ctx: Any, row_gradient: Tensor | None, kept_gradient: Tensor | None) -> Any:
    if row_gradient is None:
        return (None,) * 7
    x, weight, ids, row, kept = ctx.saved_tensors
    exclusion = (ctx.offset, ctx.period, ids, ctx.keep_equal)
    product = self_lse_backward(x, weight, row, kept, row_gradient, *exclusion, ctx.bound)
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    return (
        product * weight if needs_x else None,
        (x * product).sum(0) / 2 if needs_weight else None,
        *[None] * 5,
    )


self_lse.register_autograd(_self_backward, setup_context=_self_setup)
self_lse_backward.register_autograd(_no_second_derivative, setup_context=_ignore_inputs)


# ----------------------------------------------------------------------------------------- keys that need no gradient


@torch.library.custom_op("ssl_heads::attend_lse", mutates_args=())
def attend_lse(
    query: Tensor,
    key: Tensor,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    bound: float,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the negatives of the rows of ``q k^T``, and its derivative with respect to the query."""
    exclusion = Exclusion(offset, period, query_ids, key_ids, keep_equal)
    with torch.autocast(query.device.type, enabled=False):
        return tiled.attend(query, key, exclusion, _bound(bound, query, key))


@attend_lse.register_fake
def _(query, key, offset, period, query_ids, key_ids, keep_equal, bound):  # type: ignore[no-untyped-def]
    return query.new_empty(query.shape[0]), query.new_empty(query.shape)


def _attend_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _attend_backward(ctx: Any, row_gradient: Tensor | None, mean_key_gradient: Tensor | None) -> Any:
    if mean_key_gradient is not None:
        _no_second_derivative(ctx)
    (mean_key,) = ctx.saved_tensors
    return None if row_gradient is None else mean_key * row_gradient[:, None], *[None] * 7


attend_lse.register_autograd(_attend_backward, setup_context=_attend_setup)


# --------------------------------------------------------------------------------------------------------- elementwise


@torch.library.custom_op("ssl_heads::softplus_sum", mutates_args=())
def softplus_sum(
    query: Tensor, key: Tensor, bias: Tensor, offset: int, period: int, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``sum_ij softplus(<q_i, k_j> + b)`` over negatives; with it, on request, its gradients."""
    with torch.autocast(query.device.type, enabled=False):
        return tiled.softplus_sum(query, key, bias, Exclusion(offset, period), needs_gradient)


@softplus_sum.register_fake
def _(query, key, bias, offset, period, needs_gradient):  # type: ignore[no-untyped-def]
    gradients = (
        (query.new_empty(query.shape), key.new_empty(key.shape))
        if needs_gradient
        else (query.new_empty(0), key.new_empty(0))
    )
    return bias.new_empty(()), *gradients, bias.new_empty(())


def _softplus_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _softplus_backward(ctx: Any, gradient: Tensor | None, *others: Tensor | None) -> Any:
    if any(other is not None for other in others):
        _no_second_derivative(ctx)
    if gradient is None:
        return (None,) * 6
    return *[g * gradient for g in ctx.saved_tensors], None, None, None


softplus_sum.register_autograd(_softplus_backward, setup_context=_softplus_setup)
