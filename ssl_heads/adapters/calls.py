"""What the adapters share: how a loss is called, and what a batch of another codebase holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads.losses.anchors import OrthonormalAnchorRegression
from ssl_heads.losses.contrastive import CLIPLoss, SigLIPLoss, SupConLoss
from ssl_heads.losses.supervised import NonNegCrossEntropy
from ssl_heads.losses.tri_factor import TriFactorContrast
from ssl_heads.similarity import promote

Penalty = Callable[[], Tensor]
OF_LABELS = (SupConLoss, OrthonormalAnchorRegression, NonNegCrossEntropy)
OF_TWO_TOWERS = (CLIPLoss, SigLIPLoss)


def has_temperature(loss: nn.Module) -> bool:
    """Whether a temperature given to the loss changes it."""
    return hasattr(loss, "temperature") and getattr(loss, "kind", None) != "spectral"


def at_temperature(loss: nn.Module, temperature: float | Tensor, *tensors: Tensor) -> Tensor:
    """The loss at the caller's temperature."""
    return total(terms_of(loss, *tensors, temperature=temperature))


def terms_of(loss: nn.Module, *tensors: Tensor, temperature: float | Tensor | None = None) -> dict[str, Tensor]:
    """Named terms whose sum is the loss, at the caller's temperature if there is one; the loss keeps its own."""
    if temperature is None:
        return named_terms(loss, *tensors)
    own = loss.temperature
    loss.temperature = temperature  # type: ignore[assignment]
    try:
        return named_terms(loss, *tensors)
    finally:
        loss.temperature = own


def named_terms(loss: nn.Module, *tensors: Tensor) -> dict[str, Tensor]:
    """open_clip sums the keys that end in ``_loss``, and logs each; sentence-transformers sums and logs all."""
    if not isinstance(loss, TriFactorContrast):
        return {"contrastive_loss": loss(*tensors)}
    if loss.training and not torch.compiler.is_compiling():
        loss._warn_if_unmoved()
    terms = loss.terms(*tensors)
    return {"contrast_loss": terms.contrast, "decorrelation_loss": loss.decorrelation_weight * terms.decorrelation}


def two_tower_terms(
    loss: nn.Module, image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | None
) -> dict[str, Tensor]:
    """The terms of a loss of two views, or of a loss with CLIP's own signature, at the model's temperature."""
    _check.tensor("image_features", image)
    _check.tensor("text_features", text)
    if isinstance(loss, OF_TWO_TOWERS):
        if isinstance(loss, SigLIPLoss) and logit_bias is None:
            raise ValueError("SigLIPLoss needs a logit_bias, and the model has none: give it init_logit_bias=-10")
        return {"contrastive_loss": loss(image, text, logit_scale, logit_bias)}
    return terms_of(loss, image, text, temperature=1 / promote(logit_scale) if has_temperature(loss) else None)


def with_penalty(terms: dict[str, Tensor], penalty: Penalty | None) -> dict[str, Tensor]:
    """The terms, and the penalty as one more."""
    return terms if penalty is None else {**terms, "penalty_loss": penalty()}


def total(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the terms."""
    return torch.stack(list(terms.values())).sum()


def two_views(name: str, z: Tensor, ids_name: str, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first and the second views of a batch that holds one after the other, and the ids of their samples."""
    _check.rows(name, z)
    _check.integers(ids_name, ids, len(z), name, z)
    if len(z) % 2:
        raise ValueError(
            f"a loss of two views takes two rows of each sample, got {name} of shape {tuple(z.shape)}; for more views, "
            'or labels, use SupConLoss(multi_positive="in")'
        )
    z0, z1 = rearrange(z, "(views n) d -> views n d", views=2)
    first, second = rearrange(ids, "(views n) -> views n", views=2)
    same_rows(f"the first half of {ids_name}", first, "the second", second)
    return z0, z1, first


def same_rows(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Two lists of integers that name the same samples in the same order; compared where that waits for no device."""
    if a.shape != b.shape:
        raise ValueError(f"{name_a} and {name_b} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if _check.visible(a) and bool((a != b).any()):
        row = int((a != b).nonzero()[0, 0])
        raise ValueError(
            f"{name_a} and {name_b} must be equal row by row, one pair a row; at row {row} they are {int(a[row])} and "
            f"{int(b[row])}. For more positives of a row use SupConLoss"
        )
