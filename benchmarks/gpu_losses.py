"""The losses that `gpu.py` times: each eager, fused, and as other libraries compute it, if they are installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_heads import similarity
from ssl_heads.similarity import Exclusion

Loss = Callable[[Tensor, Tensor], Tensor]
SCALE = 10.0


def wide(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def clip_eager(q: Tensor, k: Tensor) -> Tensor:
    logits = SCALE * q @ k.T
    labels = torch.arange(len(q), device=q.device)
    return (F.cross_entropy(wide(logits), labels) + F.cross_entropy(wide(logits.T), labels)) / 2


def clip_fused(q: Tensor, k: Tensor) -> Tensor:
    # no bound: the loss takes features as they come, and a scale that lives on the device
    exclusion = Exclusion.diagonal(len(q), len(k))
    row, column = similarity.log_sum_exp(q, k, SCALE, exclusion=exclusion, columns=True, dtype=q.dtype, impl="triton")
    assert column is not None
    positive = SCALE * (q.float() * k.float()).sum(1)
    return (F.softplus(row - positive) + F.softplus(column - positive)).mean() / 2


def clip_linear_cross_entropy(q: Tensor, k: Tensor) -> Tensor:
    labels = torch.arange(len(q), device=q.device)
    chunked = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    options = {} if chunked is None else {"options": chunked()}
    loss = F.linear_cross_entropy
    return (loss(SCALE * q, k, labels, **options) + loss(SCALE * k, q, labels, **options)) / 2


def clip_open_clip(q: Tensor, k: Tensor) -> Tensor:
    from open_clip.loss import ClipLoss

    return ClipLoss()(q, k, torch.tensor(SCALE, device=q.device, dtype=q.dtype))


def clip_cce(q: Tensor, k: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    labels = torch.arange(len(q), device=q.device)
    return (
        linear_cross_entropy(SCALE * q, k, labels, impl="cce_exact")
        + linear_cross_entropy(SCALE * k, q, labels, impl="cce_exact")
    ) / 2


def clip_inf_cl(q: Tensor, k: Tensor) -> Tensor:
    from inf_cl import cal_inf_loss

    scale = torch.tensor(SCALE, device=q.device)
    head = math.gcd(q.shape[1], 256)
    return (cal_inf_loss(q, k, scale=scale, head_dim=head) + cal_inf_loss(k, q, scale=scale, head_dim=head)) / 2


def nt_xent_eager(q: Tensor, k: Tensor) -> Tensor:
    z = torch.cat([q, k])
    n = len(q)
    logits = wide(SCALE * z @ z.T)
    logits = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -math.inf)
    return F.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))


def nt_xent_fused(q: Tensor, k: Tensor) -> Tensor:
    row = similarity.self_log_sum_exp(
        torch.cat([q, k]), SCALE, exclusion=Exclusion.modulo(len(q)), bound=1.1 * SCALE, dtype=q.dtype, impl="triton"
    )
    positive = SCALE * (q.float() * k.float()).sum(1)
    return F.softplus(row - positive.repeat(2)).mean()


def queue_eager(q: Tensor, k: Tensor) -> Tensor:
    return wide(SCALE * q @ k.detach().T).logsumexp(1).mean()


def queue_fused(q: Tensor, k: Tensor) -> Tensor:
    row, _ = similarity.log_sum_exp(q, k.detach(), SCALE, bound=1.1 * SCALE, dtype=q.dtype, impl="triton")
    return row.mean()


def siglip_eager(q: Tensor, k: Tensor) -> Tensor:
    logits = wide(SCALE * q @ k.T) - 10.0
    sign = 2 * torch.eye(len(q), device=q.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(q)


def siglip_fused(q: Tensor, k: Tensor) -> Tensor:
    exclusion, bias = Exclusion.diagonal(len(q), len(k)), torch.tensor(-10.0, device=q.device)
    negatives = similarity.softplus_sum(q, k, SCALE, bias, exclusion=exclusion, dtype=q.dtype, impl="triton")
    positive = SCALE * (q.float() * k.float()).sum(1) - 10.0
    return (negatives + F.softplus(-positive).sum()) / len(q)


@dataclass
class Work:
    """A loss, its contestants, and how many rows x columns x width products plain autograd makes of it."""

    name: str
    eager: Loss
    fused: Loss
    others: dict[str, tuple[str, Loss]]  # contestant -> (package that it needs, loss)
    products: tuple[float, float]  # forward; forward and backward
    stacked: bool = False  # both inputs together are the rows, and the columns


WORKS = [
    Work("CLIP", clip_eager, clip_fused, {
        "F.linear_cross_entropy": ("torch", clip_linear_cross_entropy), "open_clip": ("open_clip", clip_open_clip),
        "CCE exact, twice": ("cut_cross_entropy", clip_cce), "Inf-CL, twice": ("inf_cl", clip_inf_cl),
    }, (1, 3)),
    Work("NT-Xent", nt_xent_eager, nt_xent_fused, {}, (1, 3), stacked=True),
    Work("queue", queue_eager, queue_fused, {}, (1, 2)),
    Work("SigLIP", siglip_eager, siglip_fused, {}, (1, 3)),
]  # fmt: skip
