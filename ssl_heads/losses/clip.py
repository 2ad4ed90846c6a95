"""Losses between two towers as modules, with open_clip's signature: CLIP's softmax and SigLIP's sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ssl_heads import functional
from ssl_heads.distributed import Gather
from ssl_heads.losses._base import GatheringLoss
from ssl_heads.similarity import Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class CLIPLoss(GatheringLoss):
    r"""The loss of CLIP: each image finds its text, each text its image, in equal parts.

    .. math:: \frac{1}{2n}\sum_i -\log\frac{e^{S_{ii}}}{\sum_j e^{S_{ij}}} - \log\frac{e^{S_{ii}}}{\sum_j e^{S_{ji}}},
        \quad S = \text{scale} \cdot I T^\top

    Args:
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Reference:
        Learning transferable visual models from natural language supervision (arXiv 2103.00020).

    Example:
        >>> import torch
        >>> from ssl_heads import CLIPLoss
        >>> images, texts = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> CLIPLoss()(images, texts, logit_scale=torch.tensor(14.3)).shape
        torch.Size([])
    """

    takes = "towers"
    configuration = ("gather", "impl")

    def __init__(self, *, gather: Gather = "none", group: ProcessGroup | None = None, impl: Impl = "auto") -> None:
        super().__init__(gather, group, impl)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Features to a scalar.

        Args:
            image_features: Shape (n, d), used as they come: the model normalises.
            text_features: Shape (n, d), row by row the texts of the images.
            logit_scale: Multiplies the similarities, already exponentiated.
            logit_bias: Accepted because models with a bias pass it; a softmax does not depend on it.
            output_dict: Whether the scalar comes as `{"contrastive_loss": scalar}`, as open_clip's trainer asks.
        """
        loss = functional.clip_loss(
            image_features, text_features, logit_scale, logit_bias, gather=self.gather, group=self.group, impl=self.impl
        )
        return {"contrastive_loss": loss} if output_dict else loss


class SigLIPLoss(GatheringLoss):
    r"""The loss of SigLIP: every pair of an image and a text is one binary classification.

    .. math:: \frac{1}{n}\sum_i \Big[\text{softplus}(-S_{ii}) + \sum_{j \ne i} \text{softplus}(S_{ij})\Big],
        \quad S = \text{scale} \cdot I T^\top + \text{bias}

    Args:
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Reference:
        Sigmoid loss for language image pre-training (arXiv 2303.15343).

    Example:
        >>> import torch
        >>> from ssl_heads import SigLIPLoss
        >>> images, texts = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> SigLIPLoss()(images, texts, logit_scale=torch.tensor(10.0), logit_bias=torch.tensor(-10.0)).shape
        torch.Size([])
    """

    takes = "towers"
    configuration = ("gather", "impl")

    def __init__(self, *, gather: Gather = "none", group: ProcessGroup | None = None, impl: Impl = "auto") -> None:
        super().__init__(gather, group, impl)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Features to a scalar.

        Args:
            image_features: Shape (n, d), used as they come: the model normalises.
            text_features: Shape (n, d), row by row the texts of the images.
            logit_scale: Multiplies the similarities, already exponentiated.
            logit_bias: Added to every logit; -10 at the start in the paper.
            output_dict: Whether the scalar comes as `{"contrastive_loss": scalar}`, as open_clip's trainer asks.
        """
        loss = functional.siglip_loss(
            image_features, text_features, logit_scale, logit_bias, gather=self.gather, group=self.group, impl=self.impl
        )
        return {"contrastive_loss": loss} if output_dict else loss
