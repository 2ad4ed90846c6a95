"""Losses between two towers, with open_clip's signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ssl_heads import functional
from ssl_heads.distributed import Gather
from ssl_heads.losses._base import GatheringLoss
from ssl_heads.similarity import Impl, check_impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class CLIPLoss(GatheringLoss):
    """The loss of CLIP with open_clip's signature, see `ssl_heads.functional.clip_loss`.

    Args:
        gather: Whose rows are compared: ``"none"`` this rank's, ``"all"`` or ``"ring"`` those of all ranks, see
            `ssl_heads.distributed`.
        group: The ranks that hold the batch; None is the default group.
        impl: How the similarity matrix is reduced.

    Example:
        >>> import torch
        >>> from ssl_heads import CLIPLoss
        >>> images, texts = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> CLIPLoss()(images, texts, logit_scale=torch.tensor(14.3)).shape
        torch.Size([])
    """

    takes = "towers"

    def __init__(self, *, gather: Gather = "none", group: ProcessGroup | None = None, impl: Impl = "auto") -> None:
        super().__init__(gather, group)
        check_impl(impl)
        self.impl = impl

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Features of shape (n, d), as the model normalised them, to a scalar, or to a dictionary that holds it."""
        loss = functional.clip_loss(
            image_features, text_features, logit_scale, logit_bias, gather=self.gather, group=self.group, impl=self.impl
        )
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        """The configuration."""
        return f"gather={self.gather!r}, impl={self.impl!r}"


class SigLIPLoss(GatheringLoss):
    """The loss of SigLIP with open_clip's signature, see `ssl_heads.functional.siglip_loss`.

    Args:
        gather: Whose rows are compared: ``"none"`` this rank's, ``"all"`` or ``"ring"`` those of all ranks, see
            `ssl_heads.distributed`.
        group: The ranks that hold the batch; None is the default group.
        impl: How the similarity matrix is reduced.

    Example:
        >>> import torch
        >>> from ssl_heads import SigLIPLoss
        >>> images, texts = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> SigLIPLoss()(images, texts, logit_scale=torch.tensor(10.0), logit_bias=torch.tensor(-10.0)).shape
        torch.Size([])
    """

    takes = "towers"

    def __init__(self, *, gather: Gather = "none", group: ProcessGroup | None = None, impl: Impl = "auto") -> None:
        super().__init__(gather, group)
        check_impl(impl)
        self.impl = impl

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Features of shape (n, d), as the model normalised them, to a scalar, or to a dictionary that holds it."""
        loss = functional.siglip_loss(
            image_features, text_features, logit_scale, logit_bias, gather=self.gather, group=self.group, impl=self.impl
        )
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        """The configuration."""
        return f"gather={self.gather!r}, impl={self.impl!r}"
