"""The loss of SentenceTransformerTrainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ssl_heads.adapters.calls import Penalty, check_takes, takes, terms_of, total, with_penalty


class SentenceTransformers(nn.Module):
    """A loss for SentenceTransformerTrainer: ``forward(sentence_features, labels)``.

    Two columns of texts (anchor, positive) go to a loss of two views; one column with labels goes to a loss of
    embeddings and labels, such as `SupConLoss`. The trainer optimises the parameters of the loss as well. A loss with
    terms gives them by name: the trainer adds them up and logs each.

    Args:
        model: The SentenceTransformer.
        loss: A loss of two views, or of embeddings and labels.
        penalty: Gives a scalar to add, for instance ``lambda: 3e-5 * head.take_kl()`` of a `GatedHead`.

    Raises:
        ValueError: If the loss needs a model's scale; in forward, for other numbers of columns.

    Example:
        >>> from ssl_heads import NTXentLoss
        >>> from ssl_heads.adapters import SentenceTransformers
        >>> class Embed(torch.nn.Module):  # a SentenceTransformer in small
        ...     def forward(self, features):
        ...         return {"sentence_embedding": features["input_ids"]}
        >>> loss = SentenceTransformers(Embed(), NTXentLoss())
        >>> loss([{"input_ids": torch.randn(8, 32)}, {"input_ids": torch.randn(8, 32)}]).shape
        torch.Size([])
    """

    def __init__(self, model: nn.Module, loss: nn.Module, *, penalty: Penalty | None = None) -> None:
        super().__init__()
        check_takes(self, loss, "views", "labels")
        self.model, self.loss, self.penalty = model, loss, penalty

    def forward(
        self, sentence_features: Iterable[Mapping[str, Any]], labels: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Tokenised columns to a scalar, or to named terms."""
        columns = [self.model(features)["sentence_embedding"] for features in sentence_features]
        if len(columns) == 2 and labels is None and takes(self.loss) != "labels":
            terms = terms_of(self.loss, *columns)
        elif len(columns) == 1 and labels is not None and takes(self.loss) != "views":
            terms = terms_of(self.loss, columns[0], labels)
        else:
            raise ValueError(
                f"expected the columns (anchor, positive), or one column of texts with labels; got {len(columns)} "
                f"column{'s' if len(columns) != 1 else ''} {'with' if labels is not None else 'without'} labels for "
                f"{type(self.loss).__name__}: select the columns of the data set"
            )
        terms = with_penalty(terms, self.penalty)
        return terms if len(terms) > 1 else total(terms)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says about the loss."""
        return {"loss": repr(self.loss)}
