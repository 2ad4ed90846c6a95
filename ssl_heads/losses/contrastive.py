"""Contrastive losses as modules: configuration is stored, the equations are in `ssl_heads.functional`."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_heads import _check, functional
from ssl_heads.functional.contrastive import MultiPositive
from ssl_heads.similarity import Impl, check_impl


class NTXentLoss(nn.Module):
    """The loss of SimCLR over two views, see `ssl_heads.functional.nt_xent`.

    Args:
        temperature: Divides the similarities.
        normalize: Whether rows are divided by their length.
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

    def __init__(self, temperature: float = 0.2, *, normalize: bool = True, impl: Impl = "auto") -> None:
        super().__init__()
        _check.positive("temperature", temperature)
        check_impl(impl)
        self.temperature, self.normalize, self.impl = temperature, normalize, impl

    def forward(self, z0: Tensor, z1: Tensor, ids: Tensor | None = None) -> Tensor:
        """Two views of shape (n, d), and optional ids of shape (n,), to a scalar."""
        return functional.nt_xent(z0, z1, self.temperature, normalize=self.normalize, ids=ids, impl=self.impl)

    def extra_repr(self) -> str:
        """The configuration."""
        return f"temperature={self.temperature}, normalize={self.normalize}, impl={self.impl!r}"


class InfoNCELoss(nn.Module):
    """One-directional InfoNCE; with a queue it is the loss of MoCo, see `ssl_heads.functional.info_nce`.

    Args:
        temperature: Divides the similarities.
        normalize: Whether rows are divided by their length.
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

    def __init__(self, temperature: float = 0.2, *, normalize: bool = True, impl: Impl = "auto") -> None:
        super().__init__()
        _check.positive("temperature", temperature)
        check_impl(impl)
        self.temperature, self.normalize, self.impl = temperature, normalize, impl

    def forward(self, query: Tensor, key: Tensor, queue: Tensor | None = None) -> Tensor:
        """Queries and keys of shape (n, d), and an optional queue of shape (K, d), to a scalar."""
        return functional.info_nce(query, key, queue, self.temperature, normalize=self.normalize, impl=self.impl)

    def extra_repr(self) -> str:
        """The configuration."""
        return f"temperature={self.temperature}, normalize={self.normalize}, impl={self.impl!r}"


class CLIPLoss(nn.Module):
    """The loss of CLIP with open_clip's signature, see `ssl_heads.functional.clip_loss`.

    Args:
        impl: How the similarity matrix is reduced.

    Example:
        >>> import torch
        >>> from ssl_heads import CLIPLoss
        >>> images, texts = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> CLIPLoss()(images, texts, logit_scale=torch.tensor(14.3)).shape
        torch.Size([])
    """

    def __init__(self, *, impl: Impl = "auto") -> None:
        super().__init__()
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
        loss = functional.clip_loss(image_features, text_features, logit_scale, logit_bias, impl=self.impl)
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        """The configuration."""
        return f"impl={self.impl!r}"


class SigLIPLoss(nn.Module):
    """The loss of SigLIP with open_clip's signature, see `ssl_heads.functional.siglip_loss`.

    Args:
        impl: How the similarity matrix is reduced.

    Example:
        >>> import torch
        >>> from ssl_heads import SigLIPLoss
        >>> images, texts = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> SigLIPLoss()(images, texts, logit_scale=torch.tensor(10.0), logit_bias=torch.tensor(-10.0)).shape
        torch.Size([])
    """

    def __init__(self, *, impl: Impl = "auto") -> None:
        super().__init__()
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
        loss = functional.siglip_loss(image_features, text_features, logit_scale, logit_bias, impl=self.impl)
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        """The configuration."""
        return f"impl={self.impl!r}"


class SpectralLoss(nn.Module):
    """Spectral contrastive loss, see `ssl_heads.functional.spectral_contrastive`.

    Args:
        normalize: Whether rows are divided by their length.

    Example:
        >>> import torch
        >>> from ssl_heads import SpectralLoss
        >>> z0, z1 = torch.randn(2, 8, 16)
        >>> SpectralLoss()(z0, z1).shape
        torch.Size([])
    """

    def __init__(self, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Two views of shape (n, d) to a scalar."""
        return functional.spectral_contrastive(z0, z1, normalize=self.normalize)

    def extra_repr(self) -> str:
        """The configuration."""
        return f"normalize={self.normalize}"


class SupConLoss(nn.Module):
    """Supervised contrastive loss, see `ssl_heads.functional.sup_con`.

    Args:
        temperature: Divides the cosines.
        multi_positive: ``"out"`` averages the positives outside the logarithm, ``"in"`` sums them inside it.
        impl: How the similarity matrix is reduced.

    Raises:
        ValueError: If the temperature is not a finite number above 0 or the form is unknown.

    Example:
        >>> import torch
        >>> from ssl_heads import SupConLoss
        >>> SupConLoss()(torch.randn(8, 16), torch.arange(8) % 3).shape
        torch.Size([])
    """

    def __init__(
        self, temperature: float = 0.1, multi_positive: MultiPositive = "out", *, impl: Impl = "auto"
    ) -> None:
        super().__init__()
        _check.positive("temperature", temperature)
        _check.choice("multi_positive", multi_positive, ("out", "in"))
        check_impl(impl)
        self.temperature, self.multi_positive, self.impl = temperature, multi_positive, impl

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings of shape (n, d) and labels of shape (n,) to a scalar."""
        return functional.sup_con(
            embeddings, labels, self.temperature, multi_positive=self.multi_positive, impl=self.impl
        )

    def extra_repr(self) -> str:
        """The configuration."""
        return f"temperature={self.temperature}, multi_positive={self.multi_positive!r}, impl={self.impl!r}"
