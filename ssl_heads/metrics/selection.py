"""Selection: what is left when only some dimensions are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_integers, as_tensor, finite


class SelectionCurves(NamedTuple):
    """The result of `selection_curves`, float64, on the CPU.

    Attributes:
        sizes: Shape (s,), the numbers of dimensions kept.
        top: Shape (s,), the value of the dimensions of the highest score.
        random: Shape (s,), of dimensions chosen at random, each size a part of the next.
        bottom: Shape (s,), of the dimensions of the lowest score.
    """

    sizes: Tensor
    top: Tensor
    random: Tensor
    bottom: Tensor


def selection_curves(
    score: ArrayLike, sizes: ArrayLike, value: Callable[[Tensor], float], *, seed: int = 0
) -> SelectionCurves:
    r"""A number of the k dimensions of highest score, of k at random and of the k of lowest score, for each k.

    .. math:: \mathrm{top}(k) = v(\{\pi_1, \dots, \pi_k\}), \qquad s_{\pi_1} \ge s_{\pi_2} \ge \dots

    A score orders dimensions if top lies above random and random above bottom. Top alone shows nothing: any k
    dimensions of a good embedding are good.

    Args:
        score: Shape (d,), such as `expected_activation(train).per_dimension` or an importance.
        sizes: Shape (s,), numbers of dimensions from 1 to d.
        value: A number of kept dimensions, called with their indices, shape (k,); for instance
            `lambda kept: retrieval(z[:, kept], y).precision`.
        seed: Seed of the random order.

    Returns:
        With NaN in the score every number is NaN.

    Raises:
        ValueError: If the score is no vector, or a size is not in 1 to d.

    Reference:
        Non-negative Contrastive Learning (ICLR 2024), feature selection.

    Example:
        >>> z = torch.tensor([[3.0, 0.0, 1.0]])
        >>> selection_curves(z[0], [1, 2], lambda kept: float(z[:, kept].sum())).top
        tensor([3., 4.], dtype=torch.float64)
    """
    s, kept = as_tensor("score", score).cpu(), as_integers("sizes", sizes).cpu().flatten()
    if s.ndim != 1 or len(s) == 0:
        raise ValueError(f"expected score (d,), one number a dimension, got shape {tuple(s.shape)}")
    if not len(kept) or not 1 <= int(kept.min()) <= int(kept.max()) <= len(s):
        raise ValueError(f"sizes must lie between 1 and the {len(s)} dimensions, got {kept.tolist()}")
    if not finite(s):
        unknown = torch.full(kept.shape, math.nan, dtype=torch.float64, device="cpu")
        return SelectionCurves(kept, unknown, unknown, unknown)
    generator = torch.Generator("cpu").manual_seed(seed)
    falling = s.argsort(descending=True, stable=True)
    orders = (falling, torch.randperm(len(s), generator=generator, device="cpu"), falling.flip(0))
    curves = [[float(value(order[:k])) for k in kept.tolist()] for order in orders]
    top, random, bottom = torch.tensor(curves, dtype=torch.float64, device="cpu")
    return SelectionCurves(kept, top, random, bottom)
