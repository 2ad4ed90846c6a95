"""facebookresearch/moco's criterion."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads._numerics import promote
from ssl_heads.functional._softmax import against_negatives


class MoCoCriterion(nn.Module):
    r"""facebookresearch/moco's `criterion(logits, labels)`: the logit of the own key first, those of the queue after.

    .. math:: \frac1n\sum_i -\log\frac{e^{l_{i0}}}{\sum_{c} e^{l_{ic}}}

    Cross-entropy with all targets zero, in float32 whatever the logits' dtype, exact where the positive wins by far.
    The temperature is in the logits already.

    Raises:
        ValueError: If, in forward, the logits have no negative column or a target is not zero (looked at on the CPU).

    Example:
        >>> from ssl_heads.adapters import MoCoCriterion
        >>> logits, zeros = torch.randn(8, 1 + 64), torch.zeros(8, dtype=torch.long)
        >>> MoCoCriterion()(logits, zeros).shape
        torch.Size([])
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits of shape (n, 1 + K) and n zeros to a scalar."""
        _check.rows("logits", logits)
        _check.integers("labels", labels, len(logits), "logits", logits)
        if logits.shape[1] < 2:
            raise ValueError(f"logits must hold a positive and at least one negative, got shape {tuple(logits.shape)}")
        if _check.visible(labels) and bool(labels.any()):
            raise ValueError(
                f"labels must be zeros, as moco's builder returns them: the own key's logit comes first, got "
                f"{int(labels[labels != 0][0])}"
            )
        logits = promote(logits)
        return against_negatives(logits[:, 1:].logsumexp(dim=1), logits[:, 0]).mean()
