"""Row normalisation that zero rows survive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_heads import _check
from ssl_heads._modes import is_traced, is_transformed, one_node
from ssl_heads._numerics import default_eps, row_norm


class _SafeNormalize(torch.autograd.Function):
    """Half of the passes over memory that autograd takes for the same expression; only x is saved."""

    # The forward takes the context: with a separate setup_context, torch inspects the signature on every call, which
    # costs as much as the normalisation of a small batch.
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.eps = eps
        return (x / row_norm(x, eps)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (x,) = ctx.saved_tensors
        norm = row_norm(x, ctx.eps)
        y = x / norm
        radial = (grad * y).sum(dim=-1, keepdim=True) * y
        return ((grad - radial) / norm).to(x.dtype), None


@one_node
def safe_normalize(x: Tensor, eps: float | None = None) -> Tensor:
    r"""L2-normalise the last dimension; a row with no direction becomes zero and gets zero gradient.

    .. math:: y = x / \lVert x \rVert_2 \text{ if } \lVert x \rVert_2 > \varepsilon \text{ else } 0

    ReLU and closed gates produce zero rows as a matter of course. `torch.nn.functional.normalize` divides them by
    1e-12: a gradient of that inverse in float32, NaN in float16. Here the gradient's factor never exceeds
    :math:`1/\varepsilon`, and a row at or below :math:`\varepsilon` is left out of the backward altogether. The norm is
    taken in float32 (float64 stays), so a large float16 row does not overflow; entries above 1e18 would, and such a row
    has no direction either.

    Args:
        x: Shape (..., d), floating.
        eps: Norm at or below which a row counts as zero. Default by dtype: 1e-12 in float64, 1e-4 in float16, 1e-6 in
            float32 and bfloat16.

    Returns:
        Tensor like `x`: rows of norm one, or zero.

    Raises:
        ValueError: If `eps` is negative or `x` is not floating or has no dimension.

    Example:
        >>> safe_normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    _check.tensor("x", x)
    if not x.is_floating_point() or x.dim() == 0:
        raise ValueError(f"safe_normalize takes floating rows (..., d), got {x.dtype} of shape {tuple(x.shape)}")
    eps = default_eps(x.dtype) if eps is None else float(_check.not_negative("eps", eps))
    if is_transformed() or is_traced():
        # transforms differentiate the expression, tracers record it
        return (x / row_norm(x, eps)).to(x.dtype)
    y: Tensor = _SafeNormalize.apply(x, eps)
    return y
