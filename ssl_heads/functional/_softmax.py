"""The parts that softmax and quadratic losses share: rows, positives, and the loss of a positive against negatives."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ssl_heads import distributed, similarity
from ssl_heads._numerics import promote
from ssl_heads.distributed import Pairs, Shard
from ssl_heads.functional.normalize import safe_normalize
from ssl_heads.similarity import Impl
from ssl_heads.similarity.backend import KERNELS


def unit_rows(x: Tensor, normalize: bool, impl: Impl = "tiled") -> Tensor:
    """Rows in float32 or float64, of length one on request."""
    if normalize and similarity.implementation(impl, x, len(x)) in KERNELS:
        similarity.refuse_transforms()
        from ssl_heads.rowwise import host as fused

        rows: Tensor = fused.normalized_rows(x)[0]
        return rows
    x = promote(x)
    return safe_normalize(x) if normalize else x


def promoted_scalar(value: float | Tensor) -> float | Tensor:
    """A float unchanged; a tensor with no dimension left, in float32 or wider, so that no product becomes wider."""
    return promote(value).reshape(()) if isinstance(value, Tensor) else value


def inverse(temperature: float | Tensor) -> float | Tensor:
    """The scale of the logits, `1 / T`, in float32 or wider, because the gradient of T is a sum over all pairs.

    A T that is not above zero gives NaN where reading the value would wait for a device.
    """
    if not isinstance(temperature, Tensor):
        return 1 / temperature
    t = promote(temperature).reshape(())
    return torch.where((t > 0) & t.isfinite(), 1 / t, torch.nan)


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """`<a_i, b_i>` of shape (n,).

    Losses compute positives before the log-sum-exp: the backward then reaches them last, and their gradients take no
    memory beside the engine's.
    """
    return (a * b).sum(dim=1)


def against_negatives(log_sum: Tensor, positive: Tensor) -> Tensor:
    """`-log(e^positive / (e^positive + e^log_sum))`, exact when the positive wins by far."""
    # 0 * positive: an infinite row has a NaN gradient, and the loss must be NaN as well
    return 0 * positive - F.logsigmoid(positive - log_sum)


def cosine_bound(scale: float | Tensor, normalize: bool) -> float:
    """The largest logit of unit rows, where the scale is a number; infinity where it is not known."""
    known = normalize and not isinstance(scale, Tensor)
    return abs(float(scale)) * 1.001 if known else math.inf


def nt_xent_of_rows(
    u: Tensor,
    scale: float | Tensor,
    importance: Tensor | None,
    ids: Tensor | None,
    bound: float,
    shard: Shard,
    dtype: torch.dtype,
    impl: Impl,
) -> Tensor:
    """NT-Xent of stacked views `u` of shape (2n, d) with logits `scale * u diag(importance) u^T`.

    The ids are those of the samples of all ranks, as `group_index` numbers them. Kernels may round to `dtype`.
    """
    query = u if importance is None else u * importance
    positive = row_dots(query[: shard.rows], u[shard.rows :]) * scale
    log_sum = distributed.self_log_sum_exp(
        u, scale, Pairs(shard, ids), weight=importance, bound=bound, dtype=dtype, impl=impl
    )
    return shard.ddp_mean(against_negatives(rearrange(log_sum, "(views n) -> views n", views=2), positive))
