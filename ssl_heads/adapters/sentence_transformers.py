"""The loss of SentenceTransformerTrainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ssl_heads.adapters.calls import Penalty, check_takes, takes, terms_of, total, with_penalty
from ssl_heads.adapters.sentence_transformers_modules import LossState
from ssl_heads.heads.projection import NonNegLinear


class SentenceTransformers(nn.Module):
    """A loss for SentenceTransformerTrainer: `forward(sentence_features, labels)`.

    Two columns of texts (anchor, positive) go to a loss of two views; one column with labels goes to a loss of
    embeddings and labels, such as `SupConLoss`. A loss with terms gives them by name: the trainer adds them up and logs
    each.

    The trainer optimises the parameters of the loss as well. What the loss owns, parameters and buffers, becomes a last
    module of the model, which passes embeddings through: so it is in the trainer's checkpoints, resumed, and under
    DistributedDataParallel equal on all ranks. A model that was loaded with such a module gives its state to the new
    loss, and holds one such module. To publish a model without it take the last module off.

    Args:
        model: The SentenceTransformer.
        loss: A loss of two views, or of embeddings and labels.
        penalty: Gives a scalar to add, for instance `lambda: 3e-5 * head.take_kl()` of a `GatedHead`.

    Raises:
        ValueError: If the loss needs a model's scale, a Dense holds an activation inside of its linear layer, which
            sentence-transformers does not save, or the model holds what a loss of other shapes learned. In forward,
            for other numbers of columns, or if another model is trained than the one that holds what the loss learns.

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
        check_heads(model)
        own = {id(x) for x in (*model.parameters(), *model.buffers())}
        self._lives_in_model = any(id(x) not in own for x in (*loss.parameters(), *loss.buffers()))
        self._lives_in_model &= isinstance(model, nn.Sequential)  # every SentenceTransformer is one
        if isinstance(model, nn.Sequential) and self._lives_in_model:
            put_state(model, loss)
        self.model, self.loss, self.penalty = model, loss, penalty

    def forward(
        self, sentence_features: Iterable[Mapping[str, Any]], labels: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Tokenised columns to a scalar, or to named terms."""
        if self._lives_in_model and not any(
            isinstance(module, LossState) and module.state is self.loss for module in self.model.modules()
        ):
            raise ValueError(
                "another model is trained than the one that holds what the loss learns, or another loss took its place "
                "in the model, so it would not be saved: give the trainer one loss with parameters, made as "
                "loss=lambda model: SentenceTransformers(model, ...)"
            )
        columns = [self.model(features)["sentence_embedding"] for features in sentence_features]
        if len(columns) == 2 and labels is None and takes(self.loss) != "labels":
            terms = terms_of(self.loss, *columns)
        elif len(columns) == 1 and labels is not None and takes(self.loss) != "views":
            terms = terms_of(self.loss, columns[0], labels)
        else:
            raise ValueError(
                f"expected the columns (anchor, positive), or one column of texts with labels, got {len(columns)} "
                f"column{'s' if len(columns) != 1 else ''} {'with' if labels is not None else 'without'} labels for "
                f"{type(self.loss).__name__}: select the columns of the data set"
            )
        terms = with_penalty(terms, self.penalty)
        return terms if len(terms) > 1 else total(terms)

    def get_config_dict(self) -> dict[str, Any]:
        """The loss as the model card shows it."""
        return {"loss": repr(self.loss)}


def put_state(model: nn.Sequential, loss: nn.Module) -> None:
    """Append the state of the loss to the model; a state of an earlier run goes on in its place."""
    for name, module in model.named_children():
        if isinstance(module, LossState):
            setattr(model, name, module.moved_to(loss))
            return
    model.append(LossState(loss))


def check_heads(model: nn.Module) -> None:
    """Raise `ValueError` for a Dense with an activation inside of its linear layer: a loaded Dense is affine."""
    for name, module in model.named_children():
        if isinstance(getattr(module, "linear", None), NonNegLinear):
            raise ValueError(
                f"module {name}, {type(module).__name__}, has a NonNegLinear as its linear layer, and would be loaded "
                "without the activation: use Dense(..., activation_function=torch.nn.ReLU()), or "
                "ssl_heads.adapters.SentenceTransformersHead(NonNegLinear(...)) as the module"
            )
