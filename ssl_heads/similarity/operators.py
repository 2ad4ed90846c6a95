"""The engine as torch operators: one registration for each structure of the matrix, whatever computes it.

What computes is a backend, see `ssl_heads.similarity.backend`. Saved for backward are the inputs, vectors of length n,
and what the backend names in `saved_shape`. There is no second derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_heads._modes import without_autocast
from ssl_heads._numerics import accumulator
from ssl_heads.similarity import dense, tiled
from ssl_heads.similarity.backend import Backend, BlockBackend, LogSum, Matrix, Needs
from ssl_heads.similarity.exclusion import Exclusion


def backend(impl: str) -> Backend:
    """The module that computes a whole matrix; Triton is imported when a call needs it."""
    if impl == "tiled":
        return tiled
    if impl == "triton":
        from ssl_heads.similarity.triton import backend as fused

        return fused
    raise ValueError(f"the backend of a whole matrix must be one of 'tiled', 'triton'; got {impl!r}")


def block_backend(impl: str) -> BlockBackend:
    """The module that computes a block of a matrix."""
    return dense if impl == "dense" else backend(impl)


def scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """A number as operators take it: shape (1,), in the dtype of the sums, on the device of the rows."""
    if isinstance(value, Tensor):
        return value.to(like.device, accumulator(like)).reshape(1)
    return torch.full((1,), value, dtype=accumulator(like), device=like.device)


def no_second_derivative(ctx: Any, *gradients: Any) -> Any:
    """The backward of operators that are derivatives themselves."""
    raise RuntimeError('tiles and kernels have no second derivative; pass impl="dense" to differentiate twice')


def _empty(x: Tensor, *shape: int) -> Tensor:
    """A result of this shape, as the compiler sees it."""
    return x.new_empty(shape, dtype=accumulator(x))


# ------------------------------------------------------------------------------------------------------------ two sets


@torch.library.custom_op("ssl_heads::pair_lse", mutates_args=())
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
    one_sweep: bool,
    bound: float,
    dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp over negatives of `scale q k^T` by rows, on request by columns, and what the backward reuses."""
    exclusion = Exclusion(offset, period, query_ids, key_ids, keep_equal)
    with without_autocast(query):
        matrix = Matrix(query.to(dtype), key.to(dtype), scale, exclusion, bound)
        return backend(impl).pair_forward(matrix, columns, one_sweep)


@pair_lse.register_fake
def _(query, key, scale, *rest):  # type: ignore[no-untyped-def]
    *_, columns, one_sweep, _, dtype, impl = rest
    (n, d), m = query.shape, key.shape[0]
    saved = backend(impl).saved_shape(n, m, d, dtype, one_sweep)
    return _empty(query, n), _empty(query, m if columns else 0), _empty(query, *saved)


@torch.library.custom_op("ssl_heads::pair_lse_backward", mutates_args=())
def pair_lse_backward(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    row: Tensor,
    column: Tensor,
    saved: Tensor,
    row_gradient: Tensor,
    column_gradient: Tensor,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    one_sweep: bool,
    bound: float,
    dtype: torch.dtype,
    impl: str,
    needs_query: bool,
    needs_key: bool,
    needs_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `pair_lse` with respect to query and key, empty where not needed, and to the scale."""
    exclusion = Exclusion(offset, period, query_ids, key_ids, keep_equal)
    needs = Needs(needs_query, needs_key, needs_scale)
    of_columns = LogSum(column, column_gradient) if column.numel() > 0 else None
    with without_autocast(query):
        matrix = Matrix(query.to(dtype), key.to(dtype), scale, exclusion, bound)
        return backend(impl).pair_backward(matrix, LogSum(row, row_gradient), of_columns, saved, one_sweep, needs)


@pair_lse_backward.register_fake
def _(query, key, scale, *rest):  # type: ignore[no-untyped-def]
    *_, needs_query, needs_key, _ = rest
    shapes = (query.shape if needs_query else (0,)), (key.shape if needs_key else (0,)), (1,)
    return tuple(_empty(query, *shape) for shape in shapes)


def _pair_setup(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, scale, ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal, _, *ctx.settings = inputs
    ctx.save_for_backward(query, key, scale, query_ids, key_ids, *output)
    ctx.set_materialize_grads(False)


def _pair_backward(ctx: Any, row_gradient: Tensor | None, column_gradient: Tensor | None, _: Tensor | None) -> Any:
    query, key, scale, query_ids, key_ids, row, column, saved = ctx.saved_tensors
    if row_gradient is None and column_gradient is None:
        return (None,) * 13
    row_gradient = torch.zeros_like(row) if row_gradient is None else row_gradient
    column_gradient = torch.zeros_like(column) if column_gradient is None else column_gradient
    needs = ctx.needs_input_grad[:3]
    sums = (row, column, saved, row_gradient, column_gradient)
    exclusion = (ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal)
    gradients = pair_lse_backward(query, key, scale, *sums, *exclusion, *ctx.settings, *needs)
    found = zip(gradients, (query, key, scale), needs, strict=True)
    return *(gradient.to(x.dtype) if needed else None for gradient, x, needed in found), *[None] * 10


pair_lse.register_autograd(_pair_backward, setup_context=_pair_setup)
pair_lse_backward.register_autograd(no_second_derivative)


# ------------------------------------------------------------------------------------- one set: the matrix is symmetric


@torch.library.custom_op("ssl_heads::self_lse", mutates_args=())
def self_lse(
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    offset: int,
    period: int,
    ids: Tensor | None,
    keep_equal: bool,
    bound: float,
    dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the negatives of the rows of `scale x diag(weight) x^T`, and what the backward reuses."""
    exclusion = Exclusion(offset, period, ids, ids, keep_equal)
    with without_autocast(x):
        return backend(impl).self_forward(_symmetric(x, weight, scale, exclusion, bound, dtype))


def _symmetric(
    x: Tensor, weight: Tensor | None, scale: Tensor, exclusion: Exclusion, bound: float, dtype: torch.dtype
) -> Matrix:
    """The matrix of one set; without a weight, queries and keys are one tensor."""
    key = x.to(dtype)
    return Matrix(key if weight is None else (x * weight).to(dtype), key, scale, exclusion, bound)


@self_lse.register_fake
def _(x, weight, scale, *rest):  # type: ignore[no-untyped-def]
    *_, dtype, impl = rest
    n, d = x.shape
    return _empty(x, n), _empty(x, *backend(impl).saved_shape(n, n, d, dtype, False))


@torch.library.custom_op("ssl_heads::self_lse_backward", mutates_args=())
def self_lse_backward(
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    row: Tensor,
    saved: Tensor,
    row_gradient: Tensor,
    offset: int,
    period: int,
    ids: Tensor | None,
    keep_equal: bool,
    bound: float,
    dtype: torch.dtype,
    impl: str,
    needs_scale: bool,
) -> tuple[Tensor, Tensor]:
    """`scale (W + W^T) x`, from which the gradients of x and the weight follow row by row; that of the scale."""
    exclusion = Exclusion(offset, period, ids, ids, keep_equal)
    with without_autocast(x):
        matrix = _symmetric(x, weight, scale, exclusion, bound, dtype)
        return backend(impl).self_backward(matrix, LogSum(row, row_gradient), saved, needs_scale)


@self_lse_backward.register_fake
def _(x, weight, scale, *rest):  # type: ignore[no-untyped-def]
    return _empty(x, *x.shape), _empty(x, 1)


def _self_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, scale, ctx.offset, ctx.period, ids, *ctx.settings = inputs
    ctx.save_for_backward(x, weight, scale, ids, *output)
    ctx.set_materialize_grads(False)


def _self_backward(ctx: Any, row_gradient: Tensor | None, _: Tensor | None) -> Any:
    if row_gradient is None:
        return (None,) * 10
    x, weight, scale, ids, row, saved = ctx.saved_tensors
    needs_x, needs_weight, needs_scale = ctx.needs_input_grad[:3]
    product, scale_gradient = self_lse_backward(
        x, weight, scale, row, saved, row_gradient, ctx.offset, ctx.period, ids, *ctx.settings, needs_scale
    )
    return (
        (product if weight is None else product * weight).to(x.dtype) if needs_x else None,
        (x * product).sum(0) / 2 if needs_weight else None,
        scale_gradient if needs_scale else None,
        *[None] * 7,
    )


self_lse.register_autograd(_self_backward, setup_context=_self_setup)
self_lse_backward.register_autograd(no_second_derivative)


# --------------------------------------------------------------------------------------------------------- elementwise


@torch.library.custom_op("ssl_heads::pair_softplus", mutates_args=())
def pair_softplus(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    dtype: torch.dtype,
    impl: str,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`sum_ij softplus(scale <q_i, k_j> + bias)` over negatives; on request its gradients, empty otherwise."""
    exclusion = Exclusion(offset, period, query_ids, key_ids, keep_equal)
    with without_autocast(query):
        return backend(impl).softplus(Matrix(query.to(dtype), key.to(dtype), scale, exclusion), bias, gradient)


@pair_softplus.register_fake
def _(query, key, *rest):  # type: ignore[no-untyped-def]
    shapes = (query.shape, key.shape, (1,), (1,)) if rest[-1] else ((0,),) * 4
    return _empty(query), *(_empty(query, *shape) for shape in shapes)


def _softplus_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.dtypes = [x.dtype for x in inputs[:4]]
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _softplus_backward(ctx: Any, upstream: Tensor | None, *others: Tensor | None) -> Any:
    if any(other is not None for other in others):
        no_second_derivative(ctx)
    if upstream is None:
        return (None,) * 12
    needs = ctx.needs_input_grad[:4]
    found = zip(ctx.saved_tensors, ctx.dtypes, needs, strict=True)
    return *((gradient * upstream).to(dtype) if needed else None for gradient, dtype, needed in found), *[None] * 8


pair_softplus.register_autograd(_softplus_backward, setup_context=_softplus_setup)
