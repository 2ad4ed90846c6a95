"""Agreement by chance: the share of the most frequent class in a random subset."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_classes, as_integers

# labels drawn for each power of two of subset sizes: the standard error of the result is below 1e-3 at every size
DRAWS = 2**19


def expected_modal_share(labels: ArrayLike, sizes: ArrayLike) -> Tensor:
    r"""Expected share of the most frequent class among samples drawn without replacement.

    .. math:: \mathrm{chance}(m) = \mathbb{E}_{|S| = m} \max_c \frac{|\{i \in S : y_i = c\}|}{m}

    One random order of the labels gives a draw of every size at once: the modal count of each prefix is the running
    maximum of how often each label has been seen so far. The orders come from a fixed seed, so the result is
    reproducible; sizes 1 and n are exact.

    Args:
        labels: Shape (n,), classes 0, 1, ...; n counts those that are not -1, which means none.
        sizes: Shape (k,), integers from 1 to n.

    Returns:
        Shape (k,), float64, on the CPU.

    Raises:
        ValueError: If a size is not between 1 and n, or labels are not integers.

    Example:
        >>> expected_modal_share(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 4]))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    y, sizes = as_classes("labels", labels).cpu(), as_integers("sizes", sizes).cpu()
    y = y[y >= 0]
    n = len(y)
    if sizes.ndim != 1:
        raise ValueError(f"expected sizes (k,), got shape {tuple(sizes.shape)}")
    if len(sizes) and not 1 <= int(sizes.min()) <= int(sizes.max()) <= n:
        raise ValueError(f"sizes must lie between 1 and the {n} labels, got {int(sizes.min())} to {int(sizes.max())}")
    generator = torch.Generator("cpu").manual_seed(0)
    chance = torch.empty(len(sizes), dtype=torch.float64, device="cpu")
    rounded = [min(1 << (size - 1).bit_length(), n) for size in sizes.tolist()]
    levels = torch.tensor(rounded, dtype=torch.int64, device="cpu")
    for length in torch.unique(levels).tolist():
        disjoint = n // length
        orders = torch.rand(math.ceil(DRAWS / n), n, generator=generator, device="cpu").argsort(dim=1)
        subsets = y[orders[:, : disjoint * length]].reshape(-1, length)
        modal = _times_seen(subsets).cummax(dim=1).values
        at_level = levels == length
        size = sizes[at_level]
        chance[at_level] = modal.double().mean(dim=0)[size - 1] / size
    return chance


def _times_seen(labels: Tensor) -> Tensor:
    """How often each label has occurred in its row so far, itself included: (r, m) -> (r, m)."""
    ordered, position = labels.sort(dim=1, stable=True)
    rank = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(is_first, rank, 0).cummax(dim=1).values
    return torch.empty_like(rank).scatter_(1, position, rank - first + 1)
