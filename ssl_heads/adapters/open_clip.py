"""open_clip's loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor, nn

from ssl_heads.adapters.calls import Penalty, check_takes, keep_in_graph, total, two_tower_terms, with_penalty


class OpenCLIP(nn.Module):
    """open_clip's `loss(**model_out, output_dict=True)` for a loss of two views.

    The temperature is the model's, `1 / logit_scale`, and is learned with it. A loss without one (`SpectralLoss`,
    `DeltaContrast`) leaves `logit_scale` where it is. Give two towers to a loss that knows of them:
    `TriFactorContrast(two_towers=True)`. The features come normalised.

    Args:
        loss: A loss of two views, a `CLIPLoss` or a `SigLIPLoss`.
        penalty: Gives a scalar to add, for instance `lambda: 3e-5 * head.take_kl()` of a `GatedHead`.
        beside: The loss of open_clip itself, for its terms beside the contrast: `caption_loss` of a `CoCaLoss`,
            `distill_loss` of a `DistillClipLoss`. The contrast is ours, times its `clip_loss_weight`.

    Raises:
        ValueError: If the loss takes labels; in forward, if features are missing, `SigLIPLoss` gets no `logit_bias`,
            or a captioner's or a teacher's outputs come without `beside`.

    Example:
        >>> from ssl_heads import TriFactorContrast
        >>> from ssl_heads.adapters import OpenCLIP
        >>> loss = OpenCLIP(TriFactorContrast(32, two_towers=True))
        >>> image, text = torch.nn.functional.normalize(torch.randn(2, 8, 32), dim=-1)
        >>> losses = loss(image_features=image, text_features=text, logit_scale=torch.tensor(14.3), output_dict=True)
        >>> sorted(losses)
        ['contrast_loss', 'decorrelation_loss']
    """

    def __init__(
        self, loss: nn.Module, *, penalty: Penalty | None = None, beside: Callable[..., dict[str, Tensor]] | None = None
    ) -> None:
        super().__init__()
        check_takes(self, loss, "views", "towers")
        self.loss, self.penalty, self.beside = loss, penalty, beside

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        # open_clip passes every output of its model, and newer models have more of them
        **others: Tensor,
    ) -> Tensor | dict[str, Tensor]:
        """The outputs of the model to a scalar, or to named terms that open_clip sums and logs."""
        weight = getattr(self.beside, "clip_loss_weight", 1.0)
        terms = two_tower_terms(self.loss, image_features, text_features, logit_scale, logit_bias)
        terms = {name: weight * term for name, term in terms.items()}
        unused = keep_in_graph((logit_scale, logit_bias, *others.values()))
        terms = with_penalty({name: term + unused for name, term in terms.items()}, self.penalty)
        of_theirs = [name for name in others if name in ("labels", "text_labels") or name.startswith("dist_")]
        if of_theirs and self.beside is None:
            raise ValueError(
                f"the model returned {', '.join(of_theirs)} for open_clip's captioning or distillation loss, which "
                "would get no gradient: pass open_clip's own loss too, "
                "OpenCLIP(loss, beside=open_clip.create_loss(args))"
            )
        if self.beside is not None:
            towers = {"image_features": image_features, "text_features": text_features, "logit_scale": logit_scale}
            taken = inspect.signature(getattr(self.beside, "forward", self.beside)).parameters
            given = {name: x for name, x in {**towers, **others}.items() if name in taken}
            theirs = self.beside(**given, output_dict=True)
            terms |= {name: term for name, term in theirs.items() if name != "contrastive_loss"}
        return terms if output_dict else total(terms)
