"""Heads that fit where a codebase expects one that maps a tensor to a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads._modes import is_recorded
from ssl_heads._start import reset_parts
from ssl_heads.heads.gate import BayesianGate
from ssl_heads.recomputing import recomputing


class GatedHead(nn.Module):
    r"""A head and a `BayesianGate` in the place of one: a tensor in, a tensor out, the divergence kept for the loss.

    .. math:: z = m(h) \odot f_+(h), \qquad L = L_\text{contrast}(z) + \lambda\,\mathrm{KL}

    A graph that `torch.fx` traces has the embeddings alone: train the module, and trace it for inference.

    Args:
        head: Features to embeddings, such as `NonNegProjection`.
        gate: The gate of these embeddings, which decides by the same features.

    Raises:
        ValueError: If `take_kl` comes before any call, or forward after 64 calls whose divergence was not taken.

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
        self._kl_of_training = True

    def forward(self, features: Tensor) -> Tensor:
        """Features of shape (..., h) to gated embeddings of shape (..., d)."""
        out = self.gate(features, self.head(features))
        embeddings: Tensor = out.embeddings
        if recomputing() or is_recorded(features):
            return embeddings
        # evaluation and terms without a graph are dropped: they are not averaged into the next training step
        going_on = out.kl.requires_grad and all(kl.requires_grad for kl in self._kl)
        going_on = going_on and self._kl_of_training == self.training
        self._kl, self._kl_of_training = [*self._kl, out.kl] if going_on else [out.kl], self.training
        if len(self._kl) > self.MOST_CALLS:
            raise ValueError(
                f"{self.MOST_CALLS} calls of GatedHead without take_kl: add weight * head.take_kl() to the loss, or "
                "gates have no prior"
            )
        return embeddings

    def reset_parameters(self) -> None:
        """Start head and gate anew."""
        reset_parts(self)

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
    r"""Rows of a least length, for a model that divides each row by its length with no epsilon, or in half precision.

    .. math::
        z \mapsto \begin{cases}
            z & \lVert z \rVert \ge \varepsilon \\
            \varepsilon\, z / \lVert z \rVert & 0 < \lVert z \rVert < \varepsilon \\
            \varepsilon\, e_d & z = 0
        \end{cases}

    A row keeps its direction, so that the model's embeddings have the sparsity and the active dimensions of the head's.
    A row of zeros, which has none, becomes epsilon in its last dimension and stays zero in the others. Metrics
    then count such a row in the last dimension: sparsity falls by the share of zero rows over d.
    The gradient passes as if a constant had been added: through the division it grows by at most 1 / epsilon.

    In float16 the length is 1/8 or more: squares of the entries of a shorter row vanish.

    Args:
        epsilon: The least length of a row.

    Raises:
        ValueError: If epsilon is not a finite number above 0.

    Example:
        >>> from ssl_heads import NonNegLinear
        >>> from ssl_heads.adapters import Floor
        >>> projection = torch.nn.Sequential(NonNegLinear(64, 32), Floor())
        >>> bool((projection(torch.zeros(8, 64)).norm(dim=1) > 0).all())
        True
    """

    def __init__(self, epsilon: float = 1e-3) -> None:
        super().__init__()
        _check.positive("epsilon", epsilon)
        self.epsilon = epsilon

    def forward(self, z: Tensor) -> Tensor:
        """Rows of shape (..., d) to rows of length epsilon or more."""
        return z + _missing_length(z.detach(), self.epsilon)

    def extra_repr(self) -> str:
        """The configuration."""
        return f"epsilon={self.epsilon}"


@torch.fx.wrap  # torch.fx records one call, because the body depends on the shape and the dtype
def _missing_length(row: Tensor, epsilon: float) -> Tensor:
    """The addend that lengthens a row to epsilon; zero for a row that is longer."""
    dim = row.shape[-1]
    least = max(epsilon, 1 / 8) if row.dtype == torch.float16 else epsilon
    largest = row.abs().amax(dim=-1, keepdim=True)
    scaled = row / torch.where(largest == 0, 1.0, largest)  # squares of tiny entries vanish
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    last = (torch.arange(dim, device=row.device) == dim - 1).to(row.dtype)
    length, direction = largest * norm, torch.where(largest == 0, last, scaled / norm)
    return torch.where(length < least, least * direction - row, 0.0)
