"""What a user would run instead: the papers' forms, dense cross entropy, and the installed libraries."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Sequence[Tensor]], Tensor]
TEMPERATURE = 0.2


def installed(package: str) -> bool:
    """Whether a contestant's package can be imported."""
    return importlib.util.find_spec(package) is not None


def versions() -> dict[str, str]:
    """Versions of the libraries that take part."""
    names = {"lightly": "lightly", "open_clip": "open_clip_torch", "pytorch_metric_learning": "pytorch-metric-learning"}
    return {module: version(package) for module, package in names.items() if installed(module)}


# -------------------------------------------------------------------------------------------------------------- NT-Xent


def papers_nt_xent(inputs: Sequence[Tensor]) -> Tensor:
    """Exponentiate, mask by multiplication, divide: the form of solo-learn and of the papers' forks."""
    z0, z1 = inputs
    z = F.normalize(torch.cat([z0, z1]), dim=-1)
    similarity = torch.exp(torch.einsum("if, jf -> ij", z, z) / TEMPERATURE)
    indexes = torch.arange(len(z0), device=z.device).repeat(2)[:, None]
    positive = indexes.t() == indexes
    positive.fill_diagonal_(False)
    negative = indexes.t() != indexes
    pos = (similarity * positive).sum(1)
    neg = (similarity * negative).sum(1)
    return -(pos / (pos + neg)).log().mean()


def dense_nt_xent(inputs: Sequence[Tensor]) -> Tensor:
    """One matrix and `cross_entropy`."""
    z0, z1 = inputs
    n = len(z0)
    z = F.normalize(torch.cat([z0, z1]), dim=-1)
    logits = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


LINEAR_CROSS_ENTROPY = hasattr(F, "linear_cross_entropy")  # of newer versions of torch


def linear_cross_entropy_nt_xent(inputs: Sequence[Tensor]) -> Tensor:
    """torch's chunked form; it has no mask, so self-similarity stays in the sum: another loss of the same cost."""
    z0, z1 = inputs
    n = len(z0)
    z = F.normalize(torch.cat([z0, z1]), dim=-1)
    return F.linear_cross_entropy(z / TEMPERATURE, z, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


def lightly_nt_xent() -> Loss:
    """lightly's module."""
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(temperature=TEMPERATURE)
    return lambda inputs: loss(*inputs)


def metric_learning_nt_xent() -> Loss:
    """pytorch-metric-learning's module on labels."""
    from pytorch_metric_learning.losses import NTXentLoss

    loss = NTXentLoss(temperature=TEMPERATURE)

    def run(inputs: Sequence[Tensor]) -> Tensor:
        z = torch.cat(list(inputs))
        value: Tensor = loss(z, torch.arange(len(z) // 2).repeat(2))
        return value

    return run


def metric_learning_sup_con() -> Loss:
    """pytorch-metric-learning's SupCon with two rows a class, which equals NT-Xent."""
    from pytorch_metric_learning.losses import SupConLoss

    loss = SupConLoss(temperature=TEMPERATURE)

    def run(inputs: Sequence[Tensor]) -> Tensor:
        z = torch.cat(list(inputs))
        value: Tensor = loss(z, torch.arange(len(z) // 2).repeat(2))
        return value

    return run


# --------------------------------------------------------------------------------------------------- CLIP and SigLIP

CLIP_SCALE, SIGLIP_SCALE, SIGLIP_BIAS = 1 / 0.07, 10.0, -10.0


def dense_clip(inputs: Sequence[Tensor]) -> Tensor:
    """One matrix, `cross_entropy` on it and on its transpose."""
    image, text = inputs
    logits = CLIP_SCALE * image @ text.T
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def linear_cross_entropy_clip(inputs: Sequence[Tensor]) -> Tensor:
    """torch's chunked form, once for each direction."""
    image, text = inputs
    target = torch.arange(len(image))
    one = F.linear_cross_entropy(CLIP_SCALE * image, text, target)
    return (one + F.linear_cross_entropy(CLIP_SCALE * text, image, target)) / 2


def open_clip_clip() -> Loss:
    """open_clip's module."""
    from open_clip.loss import ClipLoss

    loss = ClipLoss()
    return lambda inputs: loss(*inputs, torch.tensor(CLIP_SCALE))


def open_clip_siglip(chunk_size: int | None) -> Loss:
    """open_clip's module, whole or in chunks where the version has them."""
    from open_clip.loss import SigLipLoss

    loss = SigLipLoss() if chunk_size is None else SigLipLoss(chunk_size=chunk_size)
    return lambda inputs: loss(*inputs, torch.tensor(SIGLIP_SCALE), torch.tensor(SIGLIP_BIAS))


def dense_siglip(inputs: Sequence[Tensor]) -> Tensor:
    """The formula on one matrix."""
    image, text = inputs
    logits = SIGLIP_SCALE * image @ text.T + SIGLIP_BIAS
    sign = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -F.logsigmoid(sign * logits).sum() / len(image)


# --------------------------------------------------------------------------------------------------- MoCo and spectral


def usual_moco(inputs: Sequence[Tensor]) -> Tensor:
    """einsum, cat, cross entropy: facebookresearch/moco."""
    query, key, queue = inputs
    q, k = F.normalize(query, dim=1), F.normalize(key, dim=1)
    positive = torch.einsum("nc,nc->n", q, k)[:, None]
    negative = torch.einsum("nc,ck->nk", q, queue.T)
    logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def papers_spectral(inputs: Sequence[Tensor]) -> Tensor:
    """The spectral loss over a masked matrix of similarities, as in the tri-factor code, with the paper's constants."""
    z0, z1 = inputs
    n = len(z0)
    z = F.normalize(torch.cat([z0, z1]), dim=-1)
    similarity = torch.einsum("if, jf -> ij", z, z)
    indexes = torch.arange(n).repeat(2)[:, None]
    positive = indexes.t() == indexes
    positive.fill_diagonal_(False)
    negative = indexes.t() != indexes
    pos = (similarity * positive).sum() / (2 * n)
    neg = (similarity * negative).square().sum() / max(2 * n * (2 * n - 2), 1)
    return -2 * pos + neg
