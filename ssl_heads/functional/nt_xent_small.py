"""NT-Xent of a batch whose matrix is one small tile: normalisation, loss and gradient in one step of autograd.

Below a few hundred rows the time of a step is that of its calls, not of its arithmetic. The equations are those of
`nt_xent`, in the same order and with the same sum over negatives; the positive takes its place in the tile of weights,
so that one product gives the whole gradient.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ssl_heads._modes import is_transformed
from ssl_heads._numerics import default_eps, row_norm
from ssl_heads.functional._softmax import against_negatives, row_dots
from ssl_heads.functional.normalize import safe_normalize
from ssl_heads.similarity import Exclusion, self_log_sum_exp
from ssl_heads.similarity.product import matmul_nt
from ssl_heads.similarity.tiled import is_one_tile

LARGEST_SCALE = 60.0
"""With cosines and this scale no sum of exponentials overflows, and nothing that matters underflows."""


def supports(z0: Tensor, z1: Tensor, temperature: float) -> bool:
    """Whether two views are plain float32 CPU tensors of few rows that autograd can save, without a transform."""
    return (
        not torch.compiler.is_compiling()
        and 1 / LARGEST_SCALE <= temperature < math.inf
        and all(type(z) in (Tensor, torch.nn.Parameter) for z in (z0, z1))
        and z0.shape == z1.shape
        and z0.ndim == 2
        and z0.shape[0] >= 2  # one pair has no negatives
        and z0.shape[1] >= 1
        and all(z.dtype == torch.float32 and z.device.type == "cpu" for z in (z0, z1))
        and is_one_tile(2 * z0.shape[0], 2 * z0.shape[0], z0.dtype)
        and not is_transformed()
        and not (z0.is_inference() or z1.is_inference())
    )


def nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """NT-Xent of cosines, see `ssl_heads.functional.nt_xent`."""
    loss: Tensor = _NTXent.apply(z0, z1, 1 / temperature)
    return loss


def without_cpu_autocast() -> AbstractContextManager[Any]:
    """Autocast off on the CPU: `ssl_heads._modes.without_autocast` takes several times as long where none is on."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


class _NTXent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z0: Tensor, z1: Tensor, scale: float) -> Tensor:
        n = z0.shape[0]
        with without_cpu_autocast():
            z = torch.cat([z0, z1])
            norm = row_norm(z, default_eps(z.dtype))
            u = z.div_(norm)
            s = matmul_nt(u, u).mul_(scale)
            positive = s.diagonal(n).clone()
            e = s.exp_()
            e.view(2, n, 2, n).diagonal(dim1=1, dim2=3).zero_()  # both views of one sample
            row = e.sum(1)
            margin = row.log().view(2, n).sub_(positive)
            ctx.scale = scale
            ctx.save_for_backward(z0, z1, u, norm, e, row, margin)
            return torch.nn.functional.softplus(margin, threshold=40).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        z0, z1, *saved = ctx.saved_tensors
        with without_cpu_autocast():
            if torch.is_grad_enabled():  # create_graph=True
                first, second = _twice_differentiable(z0, z1, ctx.scale, gradients[0])
                return first, second, None
            return *_gradient(ctx.scale, gradients[0], *saved), None


def _gradient(
    scale: float, gradient: Tensor, u: Tensor, norm: Tensor, e: Tensor, row: Tensor, margin: Tensor
) -> tuple[Tensor, Tensor]:
    n = u.shape[0] // 2
    g = margin.sigmoid().mul_(scale / (2 * n))
    a = g.view(-1) / row
    w = (a[:, None] + a).mul_(e)
    both = g.sum(0).neg_()
    w.diagonal(n).copy_(both)
    w.diagonal(-n).copy_(both)
    product = matmul_nt(w, u.mT)
    radial = torch.linalg.vecdot(product, u)
    # The upstream gradient comes last: with is_grads_batched it is a batch, which in-place operations do not take.
    z_gradient = product.addcmul_(u, radial[:, None], value=-1).div_(norm) * gradient
    return z_gradient[:n], z_gradient[n:]


def _twice_differentiable(z0: Tensor, z1: Tensor, scale: float, gradient: Tensor) -> list[Tensor | None]:
    """The same gradient by the definition over a stored matrix, as a function of the views."""
    views = z0.view_as(z0), z1.view_as(z1)  # z0 and z1 may be one tensor, and autograd.grad needs distinct inputs
    n = z0.shape[0]
    u = safe_normalize(torch.cat(views))
    log_sum = self_log_sum_exp(u, scale, exclusion=Exclusion.modulo(n), impl="dense")
    loss = against_negatives(log_sum.view(2, n), row_dots(u[:n], u[n:]) * scale).mean()
    asked = [view for view in views if view.requires_grad]
    found = iter(torch.autograd.grad(loss, asked, gradient, create_graph=True))
    return [next(found) if view.requires_grad else None for view in views]
