"""The fused similarity as operators that autograd, autocast and torch.compile know.

Saved for backward: the inputs and vectors of length n. Every operator takes one dtype for query and key, the autocast
dtype where autocast is on; reductions come back in float32, gradients in the dtype of their input.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton import differentiate, reduce
from ssl_heads.similarity.triton.differentiate import Needs


def log_sum_exp(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float = 1.0,
    *,
    exclusion: Exclusion = Exclusion(),
    columns: bool = False,
    bound: float = math.inf,
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp over the negatives of the rows, and on request of the columns, of ``scale * q k^T``.

    Differentiable in query, key and scale; a key without gradient costs no product. Float32 whatever the input.
    """
    query, key = _compute(query, key)
    row, column = pair_lse(query, key, _scalar(scale, query), *exclusion, columns, bound)
    return row, column if columns else None


def self_log_sum_exp(
    x: Tensor,
    scale: Tensor | float = 1.0,
    *,
    weight: Tensor | None = None,
    exclusion: Exclusion = Exclusion(),
    bound: float = math.inf,
) -> Tensor:
    """Log-sum-exp over the negatives of the rows of the symmetric ``scale * x diag(weight) x^T``.

    Half of the products forward, two thirds backward. Differentiable in x, scale and weight.
    """
    (x,) = _compute(x)
    weight = None if weight is None else weight.float()
    ids = (exclusion.query_ids, exclusion.keep_equal)
    row: Tensor = self_lse(x, weight, _scalar(scale, x), exclusion.offset, exclusion.period, *ids, bound)
    return row


def softplus_sum(
    query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor | float, *, exclusion: Exclusion = Exclusion()
) -> Tensor:
    """``sum_ij softplus(scale * <q_i, k_j> + bias)`` over the negatives; a float32 scalar, differentiable in all."""
    query, key = _compute(query, key)
    rows: Tensor = softplus_rows(query, key, _scalar(scale, query), _scalar(bias, query), *exclusion)
    return rows.sum()


def _compute(*tensors: Tensor) -> tuple[Tensor, ...]:
    """One dtype for all: that of autocast where it is on, else the widest."""
    device = tensors[0].device.type
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) for x in tensors)


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(like.device, torch.float32).reshape(1)
    return torch.full((1,), value, dtype=torch.float32, device=like.device)


def _no_second_derivative(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError('the fused similarity has no second derivative; pass impl="dense" to differentiate twice')


def _ignore_inputs(ctx: Any, inputs: Any, output: Any) -> None:
    """A context that keeps nothing."""


def _vector(x: Tensor, rows: int) -> Tensor:
    return x.new_empty(rows, dtype=torch.float32)


# ------------------------------------------------------------------------------------------------------------ two sets


@torch.library.custom_op("ssl_heads::triton_pair_lse", mutates_args=())
def pair_lse(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    columns: bool,
    bound: float,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the negatives, by rows and on request by columns (else an empty tensor)."""
    exclusion = Exclusion(offset, period, query_ids, key_ids, keep_equal)
    row, column = reduce.pair_forward(query, key, exclusion, scale=scale, columns=columns, bound=bound)
    return row, _vector(query, 0) if column is None else column


@pair_lse.register_fake
def _(query, key, scale, offset, period, query_ids, key_ids, keep_equal, columns, bound):  # type: ignore[no-untyped-def]
    return _vector(query, query.shape[0]), _vector(key, key.shape[0] if columns else 0)


@torch.library.custom_op("ssl_heads::triton_pair_lse_backward", mutates_args=())
def pair_lse_backward(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    row: Tensor,
    row_gradient: Tensor,
    column: Tensor | None,
    column_gradient: Tensor | None,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    bound: float,
    needs_query: bool,
    needs_key: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query and key, empty where not needed, and of the scale."""
    found = differentiate.pair_backward(
        query,
        key,
        Exclusion(offset, period, query_ids, key_ids, keep_equal),
        row,
        row_gradient,
        column,
        column_gradient,
        scale=scale,
        bound=bound,
        needs=Needs(needs_query, needs_key),
    )
    return _or_empty(found.query, needs_query, query), _or_empty(found.key, needs_key, key), found.scale


def _or_empty(gradient: Tensor | None, needed: bool, like: Tensor) -> Tensor:
    return gradient if needed and gradient is not None else like.new_empty(0)


@pair_lse_backward.register_fake
def _(query, key, scale, *rest):  # type: ignore[no-untyped-def]
    *_, needs_query, needs_key = rest
    return (
        query.new_empty(query.shape if needs_query else 0),
        key.new_empty(key.shape if needs_key else 0),
        torch.empty_like(scale),
    )


def _pair_setup(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, scale, ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal, ctx.columns, ctx.bound = inputs
    ctx.save_for_backward(query, key, scale, query_ids, key_ids, *output)


def _pair_backward(ctx: Any, row_gradient: Tensor, column_gradient: Tensor) -> Any:
    query, key, scale, query_ids, key_ids, row, column = ctx.saved_tensors
    needs_query, needs_key, needs_scale = ctx.needs_input_grad[:3]
    by_column = (column, column_gradient) if ctx.columns else (None, None)
    pattern = (ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal)
    query_gradient, key_gradient, scale_gradient = pair_lse_backward(
        query, key, scale, row, row_gradient, *by_column, *pattern, ctx.bound, needs_query, needs_key
    )
    return (
        query_gradient if needs_query else None,
        key_gradient if needs_key else None,
        scale_gradient if needs_scale else None,
        *[None] * 7,
    )


pair_lse.register_autograd(_pair_backward, setup_context=_pair_setup)
pair_lse_backward.register_autograd(_no_second_derivative, setup_context=_ignore_inputs)


# ------------------------------------------------------------------------------------------------------------- one set


@torch.library.custom_op("ssl_heads::triton_self_lse", mutates_args=())
def self_lse(
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    offset: int,
    period: int,
    ids: Tensor | None,
    keep_equal: bool,
    bound: float,
) -> Tensor:
    """Log-sum-exp over the negatives of the rows of ``scale x diag(w) x^T``."""
    exclusion = Exclusion(offset, period, ids, ids, keep_equal)
    return reduce.self_forward(_weighted(x, weight), x, exclusion, scale=scale, bound=bound)


@self_lse.register_fake
def _(x, *rest):  # type: ignore[no-untyped-def]
    return _vector(x, x.shape[0])


def _weighted(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else (x * weight).to(x.dtype)


@torch.library.custom_op("ssl_heads::triton_self_lse_backward", mutates_args=())
def self_lse_backward(
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    row: Tensor,
    row_gradient: Tensor,
    offset: int,
    period: int,
    ids: Tensor | None,
    keep_equal: bool,
    bound: float,
) -> tuple[Tensor, Tensor]:
    """``scale (W + W^T) x``, from which the gradients of x and the weight follow row by row; that of the scale."""
    exclusion = Exclusion(offset, period, ids, ids, keep_equal)
    found = differentiate.self_backward(_weighted(x, weight), x, exclusion, row, row_gradient, scale=scale, bound=bound)
    assert found.query is not None
    return found.query, found.scale


@self_lse_backward.register_fake
def _(x, weight, scale, *rest):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), torch.empty_like(scale)


def _self_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, scale, ctx.offset, ctx.period, ids, ctx.keep_equal, ctx.bound = inputs
    ctx.save_for_backward(x, weight, scale, ids, output)


def _self_backward(ctx: Any, row_gradient: Tensor) -> Any:
    x, weight, scale, ids, row = ctx.saved_tensors
    needs_x, needs_weight, needs_scale = ctx.needs_input_grad[:3]
    pattern = (ctx.offset, ctx.period, ids, ctx.keep_equal)
    product, scale_gradient = self_lse_backward(x, weight, scale, row, row_gradient, *pattern, ctx.bound)
    return (
        _weighted(product, weight) if needs_x else None,
        (x.float() * product.float()).sum(0) / 2 if needs_weight else None,
        scale_gradient if needs_scale else None,
        *[None] * 5,
    )


self_lse.register_autograd(_self_backward, setup_context=_self_setup)
self_lse_backward.register_autograd(_no_second_derivative, setup_context=_ignore_inputs)


# --------------------------------------------------------------------------------------------------------- elementwise


@torch.library.custom_op("ssl_heads::triton_softplus_rows", mutates_args=())
def softplus_rows(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
) -> Tensor:
    """``sum_j softplus(scale <q_i, k_j> + bias)`` over the negatives of each row."""
    exclusion = Exclusion(offset, period, query_ids, key_ids, keep_equal)
    return reduce.softplus_forward(query, key, exclusion, scale=scale, row_bias=bias.expand(query.shape[0]))


@softplus_rows.register_fake
def _(query, *rest):  # type: ignore[no-untyped-def]
    return _vector(query, query.shape[0])


@torch.library.custom_op("ssl_heads::triton_softplus_rows_backward", mutates_args=())
def softplus_rows_backward(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_gradient: Tensor,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    needs_query: bool,
    needs_key: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query and key, empty where not needed, of the scale and of the bias."""
    found = differentiate.softplus_backward(
        query,
        key,
        Exclusion(offset, period, query_ids, key_ids, keep_equal),
        row_gradient,
        scale=scale,
        row_bias=bias.expand(query.shape[0]),
        needs=Needs(needs_query, needs_key, row_bias=True),
    )
    assert found.row_bias is not None
    gradients = _or_empty(found.query, needs_query, query), _or_empty(found.key, needs_key, key)
    return *gradients, found.scale, found.row_bias.sum().reshape(1)


@softplus_rows_backward.register_fake
def _(query, key, scale, bias, *rest):  # type: ignore[no-untyped-def]
    *_, needs_query, needs_key = rest
    return (
        query.new_empty(query.shape if needs_query else 0),
        key.new_empty(key.shape if needs_key else 0),
        torch.empty_like(scale),
        torch.empty_like(bias),
    )


def _softplus_setup(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, scale, bias, ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal = inputs
    ctx.save_for_backward(query, key, scale, bias, query_ids, key_ids)


def _softplus_backward(ctx: Any, row_gradient: Tensor) -> Any:
    query, key, scale, bias, query_ids, key_ids = ctx.saved_tensors
    needed = ctx.needs_input_grad[:4]
    pattern = (ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal)
    gradients = softplus_rows_backward(query, key, scale, bias, row_gradient, *pattern, *needed[:2])
    return *(gradient if need else None for gradient, need in zip(gradients, needed, strict=True)), *[None] * 5


softplus_rows.register_autograd(_softplus_backward, setup_context=_softplus_setup)
softplus_rows_backward.register_autograd(_no_second_derivative, setup_context=_ignore_inputs)
