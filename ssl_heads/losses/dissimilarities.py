"""Dissimilarities, each of which determines the latents that a delta loss recovers."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads._start import copy_start
from ssl_heads.functional._softmax import row_dots
from ssl_heads.functional.normalize import safe_normalize


class NegativeDot(nn.Module):
    r"""The negative dot product, :math:`d = -z \cdot w / T`.

    On the unit sphere it belongs to von Mises-Fisher noise. A shared encoder recovers latents up to a rotation (and on
    unbounded latents a translation), two encoders up to an invertible linear map.

    Args:
        temperature: T.

    Raises:
        ValueError: If the temperature is not a finite number above 0.

    Example:
        >>> z, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
        >>> NegativeDot().paired(z, w)
        tensor([-5.])
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = _check.positive("temperature", temperature)

    def paired(self, z: Tensor, w: Tensor) -> Tensor:
        """`d(z_i, w_i)`, of shape (n,)."""
        return -row_dots(z, w) / self.temperature

    def pairwise(self, z: Tensor, w: Tensor) -> Tensor:
        """`d(z_i, w_j)`, of shape (n, m)."""
        query, key = self.factors(z, w)
        return -query @ key.mT

    def factors(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key with `-d(z_i, w_j) = <query_i, key_j>`."""
        return z / self.temperature, w

    def extra_repr(self) -> str:
        """The configuration."""
        return f"temperature={self.temperature}"


class NegativeCosine(NegativeDot):
    r"""The negative cosine, :math:`d = -\cos(z, w) / T`: with InfoNCE it is SimCLR's loss across views.

    Args:
        temperature: T.

    Raises:
        ValueError: If the temperature is not a finite number above 0.

    Example:
        >>> z, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        >>> NegativeCosine(temperature=0.5).paired(z, w)
        tensor([-1.2000])
    """

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__(temperature)

    def paired(self, z: Tensor, w: Tensor) -> Tensor:
        """`d(z_i, w_i)`, of shape (n,)."""
        return super().paired(safe_normalize(z), safe_normalize(w))

    def factors(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key with `-d(z_i, w_j) = <query_i, key_j>`."""
        return super().factors(safe_normalize(z), safe_normalize(w))


class SquaredEuclidean(nn.Module):
    r"""The squared distance, :math:`d = |A (z - w)|^2`, of Gaussian noise.

    Latents are recovered up to a rotation and a translation, never single dimensions: a linear map then predicts them
    perfectly, and their mean correlation coefficient stays below one.

    Args:
        factor: A, of shape (k, d), of the metric :math:`A^\top A`; None for the identity. A parameter is trained.

    Raises:
        ValueError: If the factor is not a matrix.

    Example:
        >>> z, w = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 2.0]])
        >>> SquaredEuclidean().paired(z, w)
        tensor([5.])
    """

    factor: Tensor | None

    def __init__(self, factor: Tensor | None = None) -> None:
        super().__init__()
        if factor is not None:
            _check.tensor("factor", factor)
        if factor is not None and (factor.ndim != 2 or not factor.is_floating_point()):
            raise ValueError(f"factor must be a matrix (k, d), got {factor.dtype} of shape {tuple(factor.shape)}")
        if isinstance(factor, nn.Parameter):
            self.factor = factor
        else:
            self.register_buffer("factor", factor)
        self._given = None if factor is None else factor.detach().clone()

    def reset_parameters(self) -> None:
        """Set the factor to the one that the constructor was given."""
        if self.factor is not None and self._given is not None:
            copy_start(self.factor, self._given, "a factor")

    def paired(self, z: Tensor, w: Tensor) -> Tensor:
        """`d(z_i, w_i)`, of shape (n,)."""
        return self._measured(z - w).square().sum(1)

    def pairwise(self, z: Tensor, w: Tensor) -> Tensor:
        """`d(z_i, w_j)`, of shape (n, m)."""
        query, key = self.factors(z, w)
        return -query @ key.mT

    def factors(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key with `-d(z_i, w_j) = <query_i, key_j>`: `2ab - |a|^2 - |b|^2`."""
        # A distance does not change under a common shift, and the expansion is exact to the rounding of |a|^2.
        centre = (z.detach().mean(0) + w.detach().mean(0)) / 2
        a, b = self._measured(z - centre), self._measured(w - centre)
        a_square, b_square = a.square().sum(1, keepdim=True), b.square().sum(1, keepdim=True)
        query = torch.cat([2 * a, -a_square, torch.ones_like(a_square)], dim=1)
        return query, torch.cat([b, torch.ones_like(b_square), -b_square], dim=1)

    def _measured(self, x: Tensor) -> Tensor:
        if self.factor is None:
            return x
        if self.factor.shape[1] != x.shape[1]:
            raise ValueError(
                f"a metric with a factor of shape {tuple(self.factor.shape)} measures embeddings (n, "
                f"{self.factor.shape[1]}), got {tuple(x.shape)}"
            )
        return x @ self.factor.to(x.dtype).mT

    def extra_repr(self) -> str:
        """The configuration."""
        return "" if self.factor is None else f"factor={tuple(self.factor.shape)}"


class _Lp(nn.Module):
    """An exponent, and no form as a product of matrices: the base of the norm and of its power."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = float(_check.scalar("p", p))
        if not 1 <= self.p < math.inf:
            raise ValueError(f"p must be a finite number of at least 1, got {p}")

    def measure(self, difference: Tensor) -> Tensor:
        """Differences (..., d) to (...)."""
        raise NotImplementedError

    def paired(self, z: Tensor, w: Tensor) -> Tensor:
        """`d(z_i, w_i)`, of shape (n,)."""
        return self.measure(z - w)

    def pairwise(self, z: Tensor, w: Tensor) -> Tensor:
        """`d(z_i, w_j)`, of shape (n, m)."""
        return self.measure(rearrange(z, "n d -> n 1 d") - w)

    def factors(self, z: Tensor, w: Tensor) -> None:
        """None: there is no form as a product of matrices."""
        return

    def extra_repr(self) -> str:
        """The configuration."""
        return f"p={self.p}"


class LpPower(_Lp):
    r"""The sum of powers, :math:`d = \sum_k |z_k - w_k|^p`, of noise that is independent in every dimension.

    For p other than 2 it recovers every latent, up to order, sign and shift: p = 1 belongs to Laplace noise, p = 3 or 4
    to generalised normal noise. A p other than that of the noise recovers them up to a linear map only.

    Args:
        p: At least 1.

    Raises:
        ValueError: If p is below 1 or not finite.

    Example:
        >>> z, w = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -2.0]])
        >>> LpPower(1).paired(z, w), LpPower(3).paired(z, w)
        (tensor([3.]), tensor([9.]))
    """

    def measure(self, difference: Tensor) -> Tensor:
        """Differences (..., d) to (...)."""
        size = difference.abs()
        return (size if self.p == 1 else size.pow(self.p)).sum(-1)


class LpNorm(_Lp):
    r"""The norm itself, :math:`d = (\sum_k |z_k - w_k|^p)^{1/p}`: given one latent, the factors of the other depend.

    For p other than 2 it recovers every latent, up to order, sign and shift; for p = 2 up to a rotation.

    Args:
        p: At least 1.

    Raises:
        ValueError: If p is below 1 or not finite.

    Example:
        >>> LpNorm(2).paired(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([5.])
    """

    def measure(self, difference: Tensor) -> Tensor:
        """Differences (..., d) to (...)."""
        norm: Tensor = torch.linalg.vector_norm(difference, ord=self.p, dim=-1)
        return norm
