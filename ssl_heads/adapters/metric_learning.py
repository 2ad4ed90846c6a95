"""pytorch-metric-learning's loss."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads.adapters.calls import check_takes, same_rows, takes, two_views
from ssl_heads.functional.groups import NONE


class MetricLearning(nn.Module):
    """pytorch-metric-learning's `loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)`.

    A loss of embeddings and labels (`SupConLoss`, `OrthonormalAnchorRegression`) is called with them. A loss of two
    views gets the embeddings and their references, one pair a row, or, without references, the two halves of the batch
    whose labels are equal row by row: what `SelfSupervisedLoss` passes. -1 is no label.

    Args:
        loss: A loss of embeddings and labels, or of two views.

    Raises:
        ValueError: If the loss needs a model's scale; in forward, for mined pairs (`indices_tuple`), for references
            beside a loss of labels, and for rows that are no pairs.

    Example:
        >>> from ssl_heads import SupConLoss
        >>> from ssl_heads.adapters import MetricLearning
        >>> loss = MetricLearning(SupConLoss(temperature=0.1))
        >>> loss(torch.randn(8, 32), torch.arange(8) % 3).shape
        torch.Size([])
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        check_takes(self, loss, "views", "labels")
        self.loss = loss

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Embeddings of shape (n, d) and their labels, with or without references, to a scalar."""
        name = type(self.loss).__name__
        _check.rows("embeddings", embeddings)
        if indices_tuple is not None:
            raise ValueError(f"{name} weighs all pairs of the batch and takes no mined ones: leave the miner out")
        if labels is None:
            raise ValueError("labels are missing: they say which rows belong together")
        _check.tensor("labels", labels)
        labels = labels.to(embeddings.device)  # the package's own losses move them too
        if takes(self.loss) == "labels":
            if ref_emb is not None:
                raise ValueError(
                    f"{name} compares the rows of one batch and takes no ref_emb, got shape {tuple(ref_emb.shape)}: "
                    "concatenate embeddings and labels, or use InfoNCELoss, whose references are one pair a row"
                )
            loss: Tensor = self.loss(embeddings, labels)
        elif ref_emb is None:
            z0, z1, labels = two_views("embeddings", embeddings, "labels", labels)
            if _check.visible(labels) and bool((labels == NONE).any()):
                raise ValueError(f"labels hold -1, no label, and {name} needs to know which rows are one pair")
            loss = self.loss(z0, z1)
        else:
            _check.paired("embeddings", embeddings, "ref_emb", ref_emb)
            labels = _check.integers("labels", labels, len(embeddings), "embeddings", embeddings)
            if ref_labels is not None:
                _check.tensor("ref_labels", ref_labels)
                theirs = _check.integers("ref_labels", ref_labels.to(labels.device), len(ref_emb), "ref_emb", ref_emb)
                same_rows("labels", labels, "ref_labels", theirs)
            loss = self.loss(embeddings, ref_emb)
        return loss
