"""Losses between two towers, with the signatures of open_clip: CLIP's softmax and SigLIP's sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_heads import _check, distributed
from ssl_heads._numerics import one_dtype, product_dtype
from ssl_heads.distributed import Gather, Pairs, Shard
from ssl_heads.functional._softmax import against_negatives, promoted_scalar, row_dots
from ssl_heads.similarity import IMPLS, Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    gather: Gather = "none",
    group: ProcessGroup | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""The loss of CLIP: each image finds its text, each text its image, in equal parts.

    .. math:: \frac{1}{2n}\sum_i -\log\frac{e^{S_{ii}}}{\sum_j e^{S_{ij}}} - \log\frac{e^{S_{ii}}}{\sum_j e^{S_{ji}}},
        \quad S = \text{scale} \cdot I T^\top

    Args:
        image_features: Shape (n, d), used as they come: the model normalises.
        text_features: Shape (n, d).
        logit_scale: Multiplies the similarities, already exponentiated.
        logit_bias: Accepted because models with a bias pass it; a softmax does not depend on it.
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        ValueError: If shapes differ or the batch is empty.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import clip_loss
        >>> round(clip_loss(torch.eye(2), torch.eye(2), 1.0).item(), 4)
        0.3133
    """

    def checked() -> tuple[float | Tensor, float | Tensor]:
        _check.paired("image_features", image_features, "text_features", text_features)
        _check.choice("impl", impl, IMPLS)
        bias = 0.0 if logit_bias is None else _check.scalar("logit_bias", logit_bias)
        return promoted_scalar(_check.scalar("logit_scale", logit_scale)), promoted_scalar(bias)

    facts = {"call": "clip_loss", "logit_scale": logit_scale, "logit_bias": logit_bias, "impl": impl}
    views = {"image_features": image_features, "text_features": text_features}
    shard, (scale, bias) = Shard.of(gather, group, views, facts, checked)
    image, text = one_dtype(image_features, text_features)
    positive = row_dots(image, text) * scale
    dtype = product_dtype(image_features, text_features)
    row, column = distributed.log_sum_exp(image, text, scale, Pairs(shard), columns=True, dtype=dtype, impl=impl)
    assert column is not None
    loss = shard.ddp_mean(against_negatives(row, positive) + against_negatives(column, positive)) / 2
    if logit_bias is None:
        return loss
    # DistributedDataParallel waits for a gradient of every parameter of the forward pass; a NaN bias stays visible.
    unused = 0 * bias
    return loss + (unused.to(loss.dtype) if isinstance(unused, Tensor) else unused)


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    gather: Gather = "none",
    group: ProcessGroup | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""The loss of SigLIP: every pair of an image and a text is one binary classification.

    .. math:: \frac{1}{n}\sum_i \Big[\text{softplus}(-S_{ii}) + \sum_{j \ne i} \text{softplus}(S_{ij})\Big],
        \quad S = \text{scale} \cdot I T^\top + \text{bias}

    Args:
        image_features: Shape (n, d), used as they come: the model normalises.
        text_features: Shape (n, d).
        logit_scale: Multiplies the similarities, already exponentiated.
        logit_bias: Added to every logit; -10 at the start in the paper.
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        ValueError: If shapes differ or the batch is empty.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import siglip_loss
        >>> round(siglip_loss(torch.eye(2), torch.eye(2), 1.0, 0.0).item(), 4)
        1.0064
    """

    def checked() -> tuple[float | Tensor, float | Tensor]:
        _check.paired("image_features", image_features, "text_features", text_features)
        _check.choice("impl", impl, IMPLS)
        return promoted_scalar(_check.scalar("logit_scale", logit_scale)), _check.scalar("logit_bias", logit_bias)

    facts = {"call": "siglip_loss", "logit_scale": logit_scale, "logit_bias": logit_bias, "impl": impl}
    views = {"image_features": image_features, "text_features": text_features}
    shard, (scale, offset) = Shard.of(gather, group, views, facts, checked)
    image, text = one_dtype(image_features, text_features)
    bias = torch.as_tensor(offset, dtype=image.dtype, device=image.device).reshape(())
    positive = row_dots(image, text) * scale + bias
    dtype = product_dtype(image_features, text_features)
    negative = distributed.softplus_sum(image, text, scale, bias, Pairs(shard), dtype=dtype, impl=impl)
    return shard.ddp_sum(negative + against_negatives(torch.zeros_like(positive), positive).sum()) / shard.total
