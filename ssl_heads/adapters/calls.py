"""Shared by the adapters: how a loss is called, and how a batch of another codebase is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

import torch
from einops import rearrange
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads._numerics import promote
from ssl_heads.losses._base import Loss, Takes
from ssl_heads.losses.clip import SigLIPLoss

Penalty = Callable[[], Tensor]
OTHERS: dict[Takes | None, str] = {
    "views": "it compares two embeddings of each sample",
    "labels": "it needs a label of each row; for pairs use NTXentLoss or TriFactorContrast",
    "towers": "it needs a model's logit_scale; use NTXentLoss, which has a temperature of its own",
}


def takes(loss: nn.Module) -> Takes | None:
    """The inputs that the loss declares; None for a loss of another library."""
    return getattr(loss, "takes", None)


def check_takes(adapter: nn.Module, loss: nn.Module, *accepted: Takes) -> None:
    """Raise `ValueError` for a loss whose inputs the codebase behind the adapter does not have."""
    if takes(loss) not in (None, *accepted):
        raise ValueError(
            f"{type(adapter).__name__} has a place for losses of {' or '.join(accepted)}; {type(loss).__name__} is one "
            f"of {takes(loss)}: {OTHERS[takes(loss)]}"
        )


def has_temperature(loss: nn.Module) -> bool:
    """Whether a temperature given in a call of the loss changes it."""
    return "temperature" in inspect.signature(loss.forward).parameters and getattr(loss, "kind", None) != "spectral"


def at_temperature(loss: nn.Module, temperature: float | Tensor, *tensors: Tensor) -> Tensor:
    """The loss at the caller's temperature."""
    return total(terms_of(loss, *tensors, temperature=temperature))


def terms_of(loss: nn.Module, *tensors: Tensor, temperature: float | Tensor | None = None) -> dict[str, Tensor]:
    """Named terms whose sum is the loss, at the caller's temperature if there is one.

    open_clip sums the keys that end in `_loss`, and logs each; sentence-transformers sums and logs all.
    """
    if isinstance(loss, Loss):
        return loss.named_terms(*tensors, temperature=temperature)
    return {"contrastive_loss": loss(*tensors, **({} if temperature is None else {"temperature": temperature}))}


def two_tower_terms(
    loss: nn.Module, image: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | None
) -> dict[str, Tensor]:
    """The terms of a loss of two views, or of a loss with CLIP's own signature, at the model's temperature."""
    _check.tensor("image_features", image)
    _check.tensor("text_features", text)
    if takes(loss) == "towers":
        if isinstance(loss, SigLIPLoss) and logit_bias is None:
            raise ValueError("SigLIPLoss needs a logit_bias, and the model has none: give it init_logit_bias=-10")
        return {"contrastive_loss": loss(image, text, logit_scale, logit_bias)}
    scale = promote(logit_scale) if isinstance(logit_scale, Tensor) else logit_scale
    return terms_of(loss, image, text, temperature=1 / scale if has_temperature(loss) else None)


def with_penalty(terms: dict[str, Tensor], penalty: Penalty | None) -> dict[str, Tensor]:
    """The terms, and the penalty as one more."""
    return terms if penalty is None else {**terms, "penalty_loss": penalty()}


def keep_in_graph(values: Iterable[object]) -> Tensor | float:
    """Zero, with a gradient of zero for each tensor: DistributedDataParallel waits for every output of a model."""
    tensors = [x for x in values if isinstance(x, Tensor) and x.is_floating_point()]
    # slices without entries: their sum is zero whatever the values, and costs no read
    return sum(x.reshape(-1)[:0].sum() for x in tensors)


def total(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the terms."""
    return torch.stack(list(terms.values())).sum()


def two_views(name: str, z: Tensor, ids_name: str, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first and the second views of a batch that holds one after the other, and the ids of their samples."""
    _check.rows(name, z)
    ids = _check.integers(ids_name, ids, len(z), name, z)
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
