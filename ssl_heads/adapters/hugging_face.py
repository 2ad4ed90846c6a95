"""The loss of Hugging Face's Trainer for its CLIP and SigLIP models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ssl_heads.adapters.calls import Penalty, check_takes, keep_in_graph, total, two_tower_terms, with_penalty
from ssl_heads.adapters.hugging_face_model import ReturnsScale, set_return_loss
from ssl_heads.adapters.hugging_face_step import ShareOfStep


class HuggingFaceCLIP(nn.Module):
    """Trainer's `compute_loss_func(outputs, labels, num_items_in_batch)` for Hugging Face's CLIP and SigLIP models.

    The model gives embeddings that it normalised, and its `logit_scale` is the temperature, as in `OpenCLIP`. The
    adapter changes the model in two ways. Its outputs also hold `logit_scale` (exponentiated) and `logit_bias`, so
    that whichever model is trained, its own scale counts, and they depend on every parameter that the loss borrows, as
    DistributedDataParallel wants. The signature of its `forward` says `return_loss=True`, so that Trainer evaluates
    `eval_loss`.

    The model divides by the length of a row with no epsilon, so a zero row, which non-negative heads do give, is NaN
    before any loss. The adapter raises for such a row, at once on the CPU, and on a GPU in a later step, so that no
    step waits for the device. `Floor` after the head prevents it.

    Args:
        loss: A loss of two views, a `CLIPLoss` or a `SigLIPLoss`.
        model: The model; it is not made a part of this module. For further ones see `attach`.
        penalty: Gives a scalar to add, for instance `lambda: 3e-5 * head.take_kl()` of a `GatedHead`.
        accumulation_steps: `gradient_accumulation_steps` of the Trainer, which leaves it to `compute_loss_func` to
            divide by them; another number than Trainer's is refused. Where batches have `labels`, Trainer counts
            them, and 1 will do: each batch then counts by its rows.

    Raises:
        ValueError: If the loss takes labels, the model has no `logit_scale` or lacks parameters that the loss borrows
            from an earlier one. In forward if the outputs hold no embeddings of two towers or come from a model that
            was not attached, a row is not a number, or the batches of a step cannot be known or are others than
            `accumulation_steps`.

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
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be at least 1, got {accumulation_steps}")
        self.loss, self.penalty, self.accumulation_steps = loss, penalty, accumulation_steps
        self._share_of_step = ShareOfStep(accumulation_steps)
        self._borrowed: tuple[str, ...] = ()
        self._seen_nan = DeferredFlag()
        # a tuple hides the model from nn.Module: its parameters are not the loss's
        self._model: tuple[Any] = (self.attach(model),)

    def attach(self, model: nn.Module) -> nn.Module:
        """Train this model too: `Trainer(model_init=lambda: compute_loss.attach(build()), ...)`; returns it."""
        if not isinstance(getattr(model, "logit_scale", None), Tensor):
            raise ValueError(f"{type(model).__name__} has no logit_scale: this adapter is for CLIP and SigLIP models")
        own = {id(p) for p in self.loss.parameters()}
        borrowed = tuple(name for name, p in model.named_parameters() if id(p) in own)
        if missing := set(self._borrowed) - set(borrowed):
            raise ValueError(
                f"the loss learns {', '.join(sorted(missing))} of another model: before attaching this one, give it "
                "the same module, for instance model.importance = compute_loss.loss.importance"
            )
        self._borrowed = borrowed
        model.register_forward_hook(ReturnsScale(borrowed))
        set_return_loss(model)
        return model

    def forward(self, outputs: Any, labels: object = None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The model's outputs to a scalar; pairs are their own labels, so labels change nothing."""
        image, text = (named(outputs, name) for name in ("image_embeds", "text_embeds"))
        if image is None or text is None:
            raise ValueError(
                f"the model's outputs hold no image_embeds and text_embeds, got {type(outputs).__name__}: pass "
                "pixel_values and input_ids in each batch (remove_unused_columns=False keeps them)"
            )
        self._name_zero_rows(image, text)
        scale, bias = self._scale_and_bias(outputs)
        terms = two_tower_terms(self.loss, image, text, scale, bias)
        loss = total(with_penalty(terms, self.penalty)) + keep_in_graph((scale, bias))
        return loss * self._share_of_step(labels, num_items_in_batch)

    def _scale_and_bias(self, outputs: Any) -> tuple[Tensor, Tensor | None]:
        scale = named(outputs, "logit_scale")
        if scale is not None:
            return scale.mean(), named(outputs, "logit_bias")  # DataParallel returns one scale a replica
        (model,) = self._model
        if isinstance(outputs, Mapping) and not is_of(outputs, model):
            raise ValueError(
                "the outputs hold no logit_scale, so they come from a model that this adapter was not given, and its "
                "temperature would not be learned: with model_init write "
                "Trainer(model_init=lambda: compute_loss.attach(build()), ...)"
            )
        return model.logit_scale.exp(), getattr(model, "logit_bias", None)

    def _name_zero_rows(self, *embeddings: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        if self._seen_nan(torch.stack([x.detach().isnan().any() for x in embeddings]).any()):
            raise ValueError(
                "the model's embeddings hold a row that is not a number. Hugging Face divides by the length of a row "
                "with no epsilon, so a zero row becomes NaN: put ssl_heads.adapters.Floor() after the non-negative "
                'head, or use activation="softplus", which is never zero'
            )


def named(outputs: Any, name: str) -> Any:
    """An output by its name, None where there is none."""
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def is_of(outputs: Mapping[str, Any], model: Any) -> bool:
    """Whether the outputs come from the model, not yet attached: its scale is in their graph."""
    logits = outputs.get("logits_per_image")
    if logits is None or not logits.requires_grad or not model.logit_scale.requires_grad:
        return False
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(logits.sum(), model.logit_scale, retain_graph=True, allow_unused=True)
    return gradient is not None


class DeferredFlag:
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
