"""The signatures that other codebases call: each class turns one of them into a call of a loss of this library.

======================== ==================================================== =======================================
class                    is called as                                         by
======================== ==================================================== =======================================
`SoloLearnSimCLR`        ``(z, indexes, temperature)``                        solo-learn's ``simclr_loss_func``
`SoloLearnMoCo`          ``(query, key, queue, temperature)``                 solo-learn's ``mocov2plus_loss_func``
`MoCoCriterion`          ``(logits, zeros)``                                  facebookresearch/moco's ``criterion``
`OpenCLIP`               ``(image_features=..., text_features=...,            open_clip's training loop
                         logit_scale=..., output_dict=True)``
`HuggingFaceCLIP`        ``(outputs, labels, num_items_in_batch)``            Trainer's ``compute_loss_func``
`SentenceTransformers`   ``(sentence_features, labels)``                      SentenceTransformerTrainer
`MetricLearning`         ``(embeddings, labels, indices_tuple, ref_emb,       pytorch-metric-learning
                         ref_labels)``
======================== ==================================================== =======================================

Where a codebase already calls ``loss(z0, z1)`` (lightly) or has open_clip's own signature (`CLIPLoss`, `SigLIPLoss`),
no adapter is needed. Two heads fit where these codebases expect one that maps a tensor to a tensor: `GatedHead` keeps
the divergence of the gate until the loss asks for it, `Floor` keeps rows from being zero where a model divides by their
length.

**Who optimises.** Only sentence-transformers gives the parameters of a loss to the optimiser. Elsewhere let the model
own what is learned, ``model.importance = FeatureImportance(d)``, and let the loss borrow it,
``TriFactorContrast(importance=model.importance)``: the model's optimiser, DDP and checkpoints then include it. Where
you build the optimiser yourself, ``param_groups(model, adapter, ...)`` includes a loss that owns its importance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads.functional.contrastive import against_negatives
from ssl_heads.heads.gate import BayesianGate
from ssl_heads.losses.anchors import OrthonormalAnchorRegression
from ssl_heads.losses.contrastive import CLIPLoss, InfoNCELoss, NTXentLoss, SigLIPLoss, SupConLoss
from ssl_heads.losses.supervised import NonNegCrossEntropy
from ssl_heads.losses.tri_factor import TriFactorContrast
from ssl_heads.similarity import promote

__all__ = [
    "Floor",
    "GatedHead",
    "HuggingFaceCLIP",
    "MetricLearning",
    "MoCoCriterion",
    "OpenCLIP",
    "SentenceTransformers",
    "SoloLearnMoCo",
    "SoloLearnSimCLR",
]

Penalty = Callable[[], Tensor]
OF_LABELS = (SupConLoss, OrthonormalAnchorRegression, NonNegCrossEntropy)
OF_TWO_TOWERS = (CLIPLoss, SigLIPLoss)


class SoloLearnSimCLR(nn.Module):
    """solo-learn's ``simclr_loss_func(z, indexes, temperature)``.

    ``SupConLoss(multi_positive="in")`` is solo-learn's own equation, for any number of views and for its supervised
    variant. Every other loss gets the two views of each sample; `NTXentLoss` also gets the indexes, so that equal ones
    are never negatives.

    Args:
        loss: A loss of two views, or a `SupConLoss`, with a temperature: the call's takes its place, so the one in
            solo-learn's configuration counts.

    Raises:
        ValueError: If the loss has no temperature; in forward if a loss of two views gets anything else.

    Example:
        >>> from ssl_heads import NTXentLoss
        >>> from ssl_heads.adapters import SoloLearnSimCLR
        >>> simclr_loss_func = SoloLearnSimCLR(NTXentLoss())
        >>> indexes = torch.arange(8).repeat(2)
        >>> simclr_loss_func(torch.randn(16, 32), indexes, temperature=0.3).shape
        torch.Size([])
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        if not has_temperature(loss):
            raise ValueError(
                f"{type(loss).__name__} has no temperature, and solo-learn passes one: to do without it, "
                "write `lambda z, indexes, temperature: loss(*z.chunk(2))`"
            )
        self.loss = loss

    def forward(self, z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
        """All views one after the other, of shape (views * n, d), and the index of each row's sample, to a scalar."""
        if isinstance(self.loss, SupConLoss):
            return at_temperature(self.loss, temperature, z, indexes)
        z0, z1, ids = two_views("z", z, "indexes", indexes)
        own = (ids,) if isinstance(self.loss, NTXentLoss) else ()
        return at_temperature(self.loss, temperature, z0, z1, *own)


class SoloLearnMoCo(nn.Module):
    """solo-learn's ``mocov2plus_loss_func(query, key, queue, temperature)``, with a queue of shape (d, K).

    Args:
        loss: An `InfoNCELoss`; the call's temperature takes the place of its own. None takes one that uses the rows as
            they come, because solo-learn's method has normalised them.

    Raises:
        ValueError: If the loss is another one.

    Example:
        >>> from ssl_heads.adapters import SoloLearnMoCo
        >>> query, key, queue = torch.randn(8, 32), torch.randn(8, 32), torch.randn(32, 64)
        >>> SoloLearnMoCo()(query, key, queue, temperature=0.2).shape
        torch.Size([])
    """

    def __init__(self, loss: InfoNCELoss | None = None) -> None:
        super().__init__()
        if loss is not None and not isinstance(loss, InfoNCELoss):
            raise ValueError(f"a query, a key and a queue are what InfoNCELoss takes; got {type(loss).__name__}")
        self.loss = InfoNCELoss(normalize=False) if loss is None else loss

    def forward(self, query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
        """Queries and keys of shape (n, d) and a queue of shape (d, K) to a scalar."""
        if queue.ndim != 2 or queue.shape[0] != query.shape[-1]:
            raise ValueError(
                f"solo-learn's queue holds one entry a column, shape (d, K) = ({query.shape[-1]}, K) beside a query of "
                f"shape {tuple(query.shape)}; got {tuple(queue.shape)}"
            )
        return at_temperature(self.loss, temperature, query, key, rearrange(queue, "d k -> k d"))


class MoCoCriterion(nn.Module):
    r"""facebookresearch/moco's ``criterion(logits, labels)``: the logit of the own key first, those of the queue after.

    .. math:: \frac1n\sum_i -\log\frac{e^{l_{i0}}}{\sum_{c} e^{l_{ic}}}

    It is cross-entropy with all targets zero, in fp32 whatever the logits' dtype, and exact where the positive wins by
    far. The temperature is in the logits already.

    Raises:
        ValueError: In forward, if the logits have no negative column or a target is not zero (looked at on the CPU).

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
                f"labels must be zeros, as moco's builder returns them: the own key's logit comes first; got "
                f"{int(labels[labels != 0][0])}"
            )
        logits = promote(logits)
        return against_negatives(logits[:, 1:].logsumexp(dim=1), logits[:, 0]).mean()


class OpenCLIP(nn.Module):
    """open_clip's ``loss(**model_out, output_dict=True)`` for a loss of two views.

    The temperature is the model's, ``1 / logit_scale``, and is learned with it. A loss without one (`SpectralLoss`,
    `DeltaContrast`) leaves ``logit_scale`` where it is. Give two towers to a loss that knows of them:
    ``TriFactorContrast(two_towers=True)``. The features come normalised.

    Args:
        loss: A loss of two views, a `CLIPLoss` or a `SigLIPLoss`.
        penalty: Gives a scalar to add, for instance ``lambda: 3e-5 * head.take_kl()`` of a `GatedHead`.

    Raises:
        ValueError: In forward, if features are missing or `SigLIPLoss` gets no ``logit_bias``.

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
        ValueError: If the model has no ``logit_scale``; in forward if the outputs hold no embeddings of two towers, or
            a row is not a number.

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
        ValueError: In forward, for other numbers of columns.

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
        self.model, self.loss, self.penalty = model, loss, penalty

    def forward(
        self, sentence_features: Iterable[Mapping[str, Any]], labels: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Tokenised columns to a scalar, or to named terms."""
        columns = [self.model(features)["sentence_embedding"] for features in sentence_features]
        if len(columns) == 2 and labels is None and not isinstance(self.loss, OF_LABELS):
            terms = terms_of(self.loss, *columns)
        elif len(columns) == 1 and labels is not None:
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


class MetricLearning(nn.Module):
    """pytorch-metric-learning's ``loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)``.

    A loss of embeddings and labels (`SupConLoss`, `OrthonormalAnchorRegression`) is called with them. A loss of two
    views gets the embeddings and their references, one pair a row, or, without references, the two halves of the batch
    whose labels are equal row by row: what ``SelfSupervisedLoss`` passes.

    Args:
        loss: A loss of embeddings and labels, or of two views.

    Raises:
        ValueError: In forward, for mined pairs (``indices_tuple``), for references beside a loss of labels, and for
            rows that are no pairs.

    Example:
        >>> from ssl_heads import SupConLoss
        >>> from ssl_heads.adapters import MetricLearning
        >>> loss = MetricLearning(SupConLoss(temperature=0.1))
        >>> loss(torch.randn(8, 32), torch.arange(8) % 3).shape
        torch.Size([])
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
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
        labels = labels.to(embeddings.device)  # as the package's own losses do
        if isinstance(self.loss, OF_LABELS):
            if ref_emb is not None:
                raise ValueError(
                    f"{name} compares the rows of one batch and takes no ref_emb, got shape {tuple(ref_emb.shape)}: "
                    "concatenate embeddings and labels, or use InfoNCELoss, whose references are one pair a row"
                )
            loss: Tensor = self.loss(embeddings, labels)
        elif ref_emb is None:
            z0, z1, _ = two_views("embeddings", embeddings, "labels", labels)
            loss = self.loss(z0, z1)
        else:
            _check.paired("embeddings", embeddings, "ref_emb", ref_emb)
            same_rows("labels", labels, "ref_labels", labels if ref_labels is None else ref_labels.to(labels.device))
            loss = self.loss(embeddings, ref_emb)
        return loss


class GatedHead(nn.Module):
    r"""A head and a `BayesianGate` in the place of one: a tensor in, a tensor out, the divergence kept for the loss.

    .. math:: z = m(h) \odot f_+(h), \qquad L = L_\text{contrast}(z) + \lambda\,\mathrm{KL}

    Args:
        head: Features to embeddings, such as `NonNegProjection`.
        gate: The gate of these embeddings, which decides by the same features.

    Raises:
        ValueError: In `take_kl` before any call; in forward after 64 calls whose divergence nobody took.

    Example:
        >>> from ssl_heads import BayesianGate, NonNegProjection
        >>> from ssl_heads.adapters import GatedHead
        >>> head = GatedHead(NonNegProjection(64, 128, 32), BayesianGate(64, 32))
        >>> head(torch.randn(8, 64)).shape, head.take_kl().shape
        (torch.Size([8, 32]), torch.Size([]))
    """

    MOST_CALLS = 64

    def __init__(self, head: nn.Module, gate: BayesianGate) -> None:
        super().__init__()
        self.head, self.gate = head, gate
        self._kl: list[Tensor] = []

    def forward(self, features: Tensor) -> Tensor:
        """Features of shape (..., h) to gated embeddings of shape (..., d)."""
        out = self.gate(features, self.head(features))
        # evaluation calls as often as it likes; what it leaves behind is not mixed with the training that follows
        going_on = out.kl.requires_grad and all(kl.requires_grad for kl in self._kl)
        self._kl = [*self._kl, out.kl] if going_on else [out.kl]
        if len(self._kl) > self.MOST_CALLS:
            raise ValueError(
                f"{self.MOST_CALLS} calls of GatedHead, and nobody took the divergence: add weight * head.take_kl() to "
                "the loss, or gates have no prior"
            )
        embeddings: Tensor = out.embeddings
        return embeddings

    def take_kl(self) -> Tensor:
        """The divergence from the prior, a scalar: the mean over the calls since it was last taken."""
        if not self._kl:
            raise ValueError("no divergence to take: call the head first, and take it once a step")
        kl, self._kl = torch.stack(self._kl).mean(), []
        if (
            torch.is_grad_enabled()
            and self.training
            and not kl.requires_grad
            and any(p.requires_grad for p in self.gate.parameters())
        ):
            raise ValueError(
                "the divergence has no gradient, and the gate would train without its prior: the head ran under "
                "no_grad, or under torch.utils.checkpoint with use_reentrant=True; pass use_reentrant=False"
            )
        return kl

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry no divergence: it belongs to a step, and a graph cannot be copied."""
        return {**self.__dict__, "_kl": []}


class Floor(nn.Module):
    r"""Adds a small constant, so that no non-negative row is zero where a model divides by its length.

    .. math:: z \mapsto z + \frac{\varepsilon}{\sqrt d}

    A row of zeros becomes one of length epsilon, and a gradient that passes the division grows by at most 1 / epsilon.
    For Hugging Face's CLIP, which divides with no epsilon, and for models that divide in float16 or bfloat16.

    Args:
        epsilon: The length of a row that was zero.

    Raises:
        ValueError: If epsilon is not a finite number above 0.

    Example:
        >>> from ssl_heads import NonNegLinear
        >>> from ssl_heads.adapters import Floor
        >>> projection = torch.nn.Sequential(NonNegLinear(64, 32), Floor())
        >>> bool((projection(torch.randn(8, 64)) > 0).all())
        True
    """

    def __init__(self, epsilon: float = 1e-3) -> None:
        super().__init__()
        _check.positive("epsilon", epsilon)
        self.epsilon = epsilon

    def forward(self, z: Tensor) -> Tensor:
        """Rows of shape (..., d) to rows that are nowhere zero."""
        return z + self.epsilon / math.sqrt(z.shape[-1])

    def extra_repr(self) -> str:
        """The configuration."""
        return f"epsilon={self.epsilon}"


def has_temperature(loss: nn.Module) -> bool:
    """Whether a temperature given to the loss changes it."""
    return hasattr(loss, "temperature") and getattr(loss, "kind", None) != "spectral"


def at_temperature(loss: nn.Module, temperature: float | Tensor, *tensors: Tensor) -> Tensor:
    """The loss at the caller's temperature."""
    return total(terms_of(loss, *tensors, temperature=temperature))


def terms_of(loss: nn.Module, *tensors: Tensor, temperature: float | Tensor | None = None) -> dict[str, Tensor]:
    """Named terms whose sum is the loss, at the caller's temperature if there is one; the loss keeps its own."""
    if temperature is None:
        return named_terms(loss, *tensors)
    own = loss.temperature
    loss.temperature = temperature  # type: ignore[assignment]
    try:
        return named_terms(loss, *tensors)
    finally:
        loss.temperature = own


def named_terms(loss: nn.Module, *tensors: Tensor) -> dict[str, Tensor]:
    """open_clip sums the keys that end in ``_loss``, and logs each; sentence-transformers sums and logs all."""
    if not isinstance(loss, TriFactorContrast):
        return {"contrastive_loss": loss(*tensors)}
    if loss.training and not torch.compiler.is_compiling():
        loss._warn_if_unmoved()
    terms = loss.terms(*tensors)
    return {"contrast_loss": terms.contrast, "decorrelation_loss": loss.decorrelation_weight * terms.decorrelation}


def two_tower_terms(
    loss: nn.Module, image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | None
) -> dict[str, Tensor]:
    """The terms of a loss of two views, or of a loss with CLIP's own signature, at the model's temperature."""
    _check.tensor("image_features", image)
    _check.tensor("text_features", text)
    if isinstance(loss, OF_TWO_TOWERS):
        if isinstance(loss, SigLIPLoss) and logit_bias is None:
            raise ValueError("SigLIPLoss needs a logit_bias, and the model has none: give it init_logit_bias=-10")
        return {"contrastive_loss": loss(image, text, logit_scale, logit_bias)}
    return terms_of(loss, image, text, temperature=1 / promote(logit_scale) if has_temperature(loss) else None)


def with_penalty(terms: dict[str, Tensor], penalty: Penalty | None) -> dict[str, Tensor]:
    """The terms, and the penalty as one more."""
    return terms if penalty is None else {**terms, "penalty_loss": penalty()}


def total(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the terms."""
    return torch.stack(list(terms.values())).sum()


def used_for_nothing(values: Iterable[object]) -> Tensor | float:
    """Zero, with a gradient of zero for each tensor: DistributedDataParallel waits for all that a model returned."""
    tensors = [x for x in values if isinstance(x, Tensor) and x.is_floating_point()]
    # a sum over no entries stays zero beside infinite ones, and reads nothing
    return sum(x.reshape(-1)[:0].sum() for x in tensors)


def two_views(name: str, z: Tensor, ids_name: str, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first and the second views of a batch that holds one after the other, and the ids of their samples."""
    _check.rows(name, z)
    _check.integers(ids_name, ids, len(z), name, z)
    if len(z) % 2:
        raise ValueError(
            f"a loss of two views takes two rows of each sample, got {name} of shape {tuple(z.shape)}; for more views, "
            'or labels, use SupConLoss(multi_positive="in")'
        )
    z0, z1 = rearrange(z, "(views n) d -> views n d", views=2)
    first, second = rearrange(ids, "(views n) -> views n", views=2)
    same_rows(f"the first half of {ids_name}", first, "the second", second)
    return z0, z1, first


def same_rows(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Two lists of integers that name the same samples in the same order; compared where that waits for no device."""
    if a.shape != b.shape:
        raise ValueError(f"{name_a} and {name_b} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if _check.visible(a) and bool((a != b).any()):
        row = int((a != b).nonzero()[0, 0])
        raise ValueError(
            f"{name_a} and {name_b} must be equal row by row, one pair a row; at row {row} they are {int(a[row])} and "
            f"{int(b[row])}. For more positives of a row use SupConLoss"
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
