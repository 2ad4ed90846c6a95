"""Contrastive losses as modules: configuration is stored, the equations are in `ssl_heads.functional`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ssl_heads import _check, functional
from ssl_heads.distributed import Gather
from ssl_heads.functional.supervised_contrastive import MultiPositive
from ssl_heads.losses.gathering import GatheringLoss
from ssl_heads.similarity import Impl, check_impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class NTXentLoss(GatheringLoss):
    """The loss of SimCLR over two views, see `ssl_heads.functional.nt_xent`.

    Args:
        temperature: Divides the similarities.
        normalize: Whether rows are divided by their length.
        gather: Whose rows are compared: ``"none"`` this rank's, ``"all"`` or ``"ring"`` those of all ranks, see
            `ssl_heads.distributed`.
        group: The ranks that hold the batch; None is the default group.
        impl: How the similarity matrix is reduced.

    Raises:
        ValueError: If the temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> from ssl_heads import NTXentLoss
        >>> z0, z1 = torch.randn(2, 8, 16)
        >>> NTXentLoss(temperature=0.2)(z0, z1).shape
        torch.Size([])
    """

    takes = "views"

    def __init__(
        self,
        temperature: float = 0.2,
        *,
        normalize: bool = True,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(gather, group)
        check_impl(impl)
        self.temperature = _check.positive("temperature", temperature)
        self.normalize, self.impl = normalize, impl

    def forward(
        self, z0: Tensor, z1: Tensor, ids: Tensor | None = None, *, temperature: float | Tensor | None = None
    ) -> Tensor:
        """Two views (n, d), and optional ids (n,), -1 for none, to a scalar; a temperature is this call's."""
        return functional.nt_xent(
            z0,
            z1,
            self.temperature if temperature is None else temperature,
            normalize=self.normalize,
            ids=ids,
            gather=self.gather,
            group=self.group,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """The configuration."""
        return f"temperature={self.temperature}, normalize={self.normalize}, gather={self.gather!r}, impl={self.impl!r}"


class InfoNCELoss(GatheringLoss):
    """One-directional InfoNCE; with a queue it is the loss of MoCo, see `ssl_heads.functional.info_nce`.

    Args:
        temperature: Divides the similarities.
        normalize: Whether rows are divided by their length.
        gather: Whose rows are compared: ``"none"`` this rank's, ``"all"`` or ``"ring"`` those of all ranks, see
            `ssl_heads.distributed`.
        group: The ranks that hold the batch; None is the default group.
        impl: How the similarity matrix is reduced.

    Raises:
        ValueError: If the temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> from ssl_heads import InfoNCELoss
        >>> query, key, queue = torch.randn(8, 16), torch.randn(8, 16), torch.randn(64, 16)
        >>> InfoNCELoss(temperature=0.2)(query, key, queue).shape
        torch.Size([])
    """

    takes = "views"

    def __init__(
        self,
        temperature: float = 0.2,
        *,
        normalize: bool = True,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(gather, group)
        check_impl(impl)
        self.temperature = _check.positive("temperature", temperature)
        self.normalize, self.impl = normalize, impl

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        queue: Tensor | None = None,
        ids: Tensor | None = None,
        queue_ids: Tensor | None = None,
        *,
        temperature: float | Tensor | None = None,
    ) -> Tensor:
        """Queries and keys (n, d), a queue (K, d) and ids, -1 for none, to a scalar; a temperature is this call's."""
        return functional.info_nce(
            query,
            key,
            queue,
            self.temperature if temperature is None else temperature,
            normalize=self.normalize,
            ids=ids,
            queue_ids=queue_ids,
            gather=self.gather,
            group=self.group,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """The configuration."""
        return f"temperature={self.temperature}, normalize={self.normalize}, gather={self.gather!r}, impl={self.impl!r}"


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


class SpectralLoss(GatheringLoss):
    """Spectral contrastive loss, see `ssl_heads.functional.spectral_contrastive`.

    Args:
        normalize: Whether rows are divided by their length.
        gather: Whose rows are compared: ``"none"`` this rank's, ``"all"`` or ``"ring"`` those of all ranks, see
            `ssl_heads.distributed`.
        group: The ranks that hold the batch; None is the default group.

    Example:
        >>> import torch
        >>> from ssl_heads import SpectralLoss
        >>> z0, z1 = torch.randn(2, 8, 16)
        >>> SpectralLoss()(z0, z1).shape
        torch.Size([])
    """

    takes = "views"

    def __init__(self, *, normalize: bool = True, gather: Gather = "none", group: ProcessGroup | None = None) -> None:
        super().__init__(gather, group)
        self.normalize = normalize

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Two views of shape (n, d) to a scalar."""
        return functional.spectral_contrastive(z0, z1, normalize=self.normalize, gather=self.gather, group=self.group)

    def extra_repr(self) -> str:
        """The configuration."""
        return f"normalize={self.normalize}, gather={self.gather!r}"


class SupConLoss(GatheringLoss):
    """Supervised contrastive loss, see `ssl_heads.functional.sup_con`.

    Args:
        temperature: Divides the cosines.
        multi_positive: ``"out"`` averages the positives outside the logarithm, ``"in"`` sums them inside it.
        gather: Whose rows are compared: ``"none"`` this rank's, ``"all"`` or ``"ring"`` those of all ranks, see
            `ssl_heads.distributed`.
        group: The ranks that hold the batch; None is the default group.
        impl: How the similarity matrix is reduced.

    Raises:
        ValueError: If the temperature is not a finite number above 0 or the form is unknown.

    Example:
        >>> import torch
        >>> from ssl_heads import SupConLoss
        >>> SupConLoss()(torch.randn(8, 16), torch.arange(8) % 3).shape
        torch.Size([])
    """

    takes = "labels"

    def __init__(
        self,
        temperature: float = 0.1,
        multi_positive: MultiPositive = "out",
        *,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(gather, group)
        _check.choice("multi_positive", multi_positive, ("out", "in"))
        check_impl(impl)
        self.temperature = _check.positive("temperature", temperature)
        self.multi_positive, self.impl = multi_positive, impl

    def forward(self, embeddings: Tensor, labels: Tensor, *, temperature: float | Tensor | None = None) -> Tensor:
        """Embeddings (n, d) and labels (n,), -1 for none, to a scalar; a temperature is this call's."""
        return functional.sup_con(
            embeddings,
            labels,
            self.temperature if temperature is None else temperature,
            multi_positive=self.multi_positive,
            gather=self.gather,
            group=self.group,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """The configuration."""
        return (
            f"temperature={self.temperature}, multi_positive={self.multi_positive!r}, "
            f"gather={self.gather!r}, impl={self.impl!r}"
        )
