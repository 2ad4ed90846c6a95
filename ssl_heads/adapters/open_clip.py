"""open_clip's loss."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_heads.adapters.calls import Penalty, check_takes, total, two_tower_terms, used_for_nothing, with_penalty


class OpenCLIP(nn.Module):
    """open_clip's ``loss(**model_out, output_dict=True)`` for a loss of two views.

    The temperature is the model's, ``1 / logit_scale``, and is learned with it. A loss without one (`SpectralLoss`,
    `DeltaContrast`) leaves ``logit_scale`` where it is. Give two towers to a loss that knows of them:
    ``TriFactorContrast(two_towers=True)``. The features come normalised.

    Args:
        loss: A loss of two views, a `CLIPLoss` or a `SigLIPLoss`.
        penalty: Gives a scalar to add, for instance ``lambda: 3e-5 * head.take_kl()`` of a `GatedHead`.

    Raises:
        ValueError: If the loss takes labels; in forward, if features are missing or `SigLIPLoss` gets no
            ``logit_bias``.

    Example:
        >>> from ssl_heads import TriFactorContrast
        >>> from ssl_heads.adapters import OpenCLIP
        >>> loss = OpenCLIP(TriFactorContrast(32, two_towers=True))
        >>> image, text = torch.nn.functional.normalize(torch.randn(2, 8, 32), dim=-1)
        >>> losses = loss(image_features=image, text_features=text, logit_scale=torch.tensor(14.3), output_dict=True)
        >>> sorted(losses)
        ['contrast_loss', 'decorrelation_loss']
    """

    def __init__(self, loss: nn.Module, *, penalty: Penalty | None = None) -> None:
        super().__init__()
        check_takes(self, loss, "views", "towers")
        self.loss, self.penalty = loss, penalty

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        # open_clip passes all that its model returns, and models return more from version to version
        **others: Tensor,
    ) -> Tensor | dict[str, Tensor]:
        """What the model returned to a scalar, or to named terms that open_clip sums and logs."""
        terms = two_tower_terms(self.loss, image_features, text_features, logit_scale, logit_bias)
        unused = used_for_nothing((logit_scale, logit_bias, *others.values()))
        terms = with_penalty({name: term + unused for name, term in terms.items()}, self.penalty)
        return terms if output_dict else total(terms)
