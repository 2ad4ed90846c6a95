"""The loss of Hugging Face's Trainer for its CLIP and SigLIP models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssl_heads.adapters.calls import Penalty, check_takes, total, two_tower_terms, with_penalty


class HuggingFaceCLIP(nn.Module):
    """Trainer's ``compute_loss_func(outputs, labels, num_items_in_batch)`` for Hugging Face's CLIP and SigLIP models.

    The model gives embeddings that it normalised, and its ``logit_scale`` is the temperature, as in `OpenCLIP`. The
    model divides by the length of a row with no epsilon, so a zero row, which non-negative heads do give, is NaN before
    any loss sees it. It is named here: at once on the CPU, in a later step on a GPU, which is not waited for. `Floor`
    after the head prevents it.

    Args:
        loss: A loss of two views, a `CLIPLoss` or a `SigLIPLoss`.
        model: The model, for its ``logit_scale`` and ``logit_bias``; it is not made a part of this module.
        penalty: Gives a scalar to add, for instance ``lambda: 3e-5 * head.take_kl()`` of a `GatedHead`.
        accumulation_steps: ``gradient_accumulation_steps`` of the Trainer, which leaves it to ``compute_loss_func`` to
            divide by them.

    Raises:
        ValueError: If the loss takes labels or the model has no ``logit_scale``; in forward if the outputs hold no
            embeddings of two towers, or a row is not a number.

    Example:
        >>> from types import SimpleNamespace
        >>> from ssl_heads import CLIPLoss
        >>> from ssl_heads.adapters import HuggingFaceCLIP
        >>> model = torch.nn.Module()
        >>> model.logit_scale = torch.nn.Parameter(torch.tensor(2.6592))
        >>> image, text = torch.nn.functional.normalize(torch.randn(2, 8, 32), dim=-1)
        >>> loss = HuggingFaceCLIP(CLIPLoss(), model)
        >>> loss(SimpleNamespace(image_embeds=image, text_embeds=text), labels=None).shape
        torch.Size([])
    """

    def __init__(
        self, loss: nn.Module, model: nn.Module, *, penalty: Penalty | None = None, accumulation_steps: int = 1
    ) -> None:
        super().__init__()
        check_takes(self, loss, "views", "towers")
        if not isinstance(getattr(model, "logit_scale", None), Tensor):
            raise ValueError(f"{type(model).__name__} has no logit_scale: this adapter is for CLIP and SigLIP models")
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be at least 1, got {accumulation_steps}")
        self.loss, self.penalty, self.accumulation_steps = loss, penalty, accumulation_steps
        self._model: tuple[Any] = (model,)  # in a tuple: the model's parameters are not this loss's
        self._seen_nan = Afterwards()

    def forward(
        self, outputs: Any, labels: Tensor | None = None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The model's outputs to a scalar; pairs are their own labels, and their number is the loss's business."""
        image, text = (getattr(outputs, name, None) for name in ("image_embeds", "text_embeds"))
        if image is None or text is None:
            raise ValueError(
                f"the model's outputs hold no image_embeds and text_embeds, got {type(outputs).__name__}: pass "
                "pixel_values and input_ids in each batch (remove_unused_columns=False keeps them)"
            )
        self._name_zero_rows(image, text)
        (model,) = self._model
        terms = two_tower_terms(self.loss, image, text, model.logit_scale.exp(), getattr(model, "logit_bias", None))
        loss = total(with_penalty(terms, self.penalty))
        return loss / self.accumulation_steps if torch.is_grad_enabled() else loss

    def _name_zero_rows(self, *embeddings: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        if self._seen_nan(torch.stack([x.detach().isnan().any() for x in embeddings]).any()):
            raise ValueError(
                "the model's embeddings hold a row that is not a number. Hugging Face divides by the length of a row "
                "with no epsilon, so a zero row becomes NaN: put ssl_heads.adapters.Floor() after the non-negative "
                'head, or use activation="softplus", which is never zero'
            )


class Afterwards:
    """A flag that is read without waiting: at once on the CPU, on a GPU in a later call, never on other devices."""

    def __init__(self) -> None:
        self._on_device: Tensor | None = None
        self._on_host: Tensor | None = None

    def __call__(self, flag: Tensor) -> bool:
        """Whether the flag, or one before it, is known to be set."""
        if not flag.is_cuda:
            return flag.device.type == "cpu" and bool(flag)
        if self._on_device is None or self._on_host is None:
            self._on_device = torch.zeros_like(flag)
            self._on_host = torch.zeros(flag.shape, dtype=torch.bool, pin_memory=True)
        known = bool(self._on_host)
        self._on_device = self._on_device | flag
        self._on_host.copy_(self._on_device, non_blocking=True)
        return known
