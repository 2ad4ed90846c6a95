"""TAPAScore: whether a coalition answers where its concept, and nothing else, changes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_integers, as_truth, classes_or_none, one_a_row


class TAPAScore(NamedTuple):
    """The result of `tapa_score`.

    Attributes:
        mean: Mean of `per_pair`; NaN without a pair that changes a concept with a coalition.
        per_pair: Shape (p,), float64, on the CPU; NaN for a pair that is not counted.
    """

    mean: float
    per_pair: Tensor


@torch.no_grad()
def tapa_score(
    before: ArrayLike, after: ArrayLike, added: ArrayLike, removed: ArrayLike, dimensions: ArrayLike
) -> TAPAScore:
    r"""Mean answer of coalitions to a change of one attribute: 2 if each switches with its concept, 0 without effect.

    .. math::
        \frac1p \sum_p \Delta^+_p - \Delta^-_p, \qquad
        \Delta^{\pm}_p = \max_{l \in S_\pm} b_l(x'_p) - \max_{l \in S_\pm} b_l(x_p)

    with :math:`S_+` the coalition of the concept that the pair adds and :math:`S_-` that of the one it removes. Nothing
    but that attribute differs in a pair, so chance agreement with other attributes does not count: untrained and random
    codes are near 0.

    Args:
        before: Shape (p, d), truth values: what is active on the first sample of each pair.
        after: Shape (p, d), on the second.
        added: Shape (p,), the concept that the second sample has and the first has not; -1 for none.
        removed: Shape (p,), the concept that the first has and the second has not; -1 for none.
        dimensions: Shape (c, most), the coalition of each concept, filled up with -1: `match_score(...).dimensions` of
            *other* samples.

    Returns:
        A concept without a coalition answers nothing and counts 0. A pair that adds and removes none is not counted.

    Raises:
        ValueError: If shapes differ, an entry of `before` or `after` is no truth value (NaN included), or a concept or
            a dimension does not exist.

    Reference:
        arXiv 2606.24716 (ECCV 2026), equations 5 to 7.

    Example:
        >>> before, after = torch.tensor([[1, 0]]), torch.tensor([[0, 1]])
        >>> tapa_score(before, after, added=[1], removed=[0], dimensions=[[0], [1]]).mean
        2.0
    """
    x, y = as_truth("before", before), as_truth("after", after)
    if x.shape != y.shape:
        raise ValueError(f"before and after must be pairs of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    members = as_integers("dimensions", dimensions).cpu()
    if members.ndim != 2 or members.numel() == 0:
        raise ValueError(f"expected dimensions (c, most), one coalition a concept, got shape {tuple(members.shape)}")
    _below("dimensions", members, x.shape[1])
    score = torch.zeros(len(x), dtype=torch.float64, device="cpu")
    counted = torch.zeros(len(x), dtype=torch.bool, device="cpu")
    for name, concepts, sign in (("added", added, 1), ("removed", removed, -1)):
        concept = one_a_row(name, classes_or_none(name, concepts), "before", x).cpu()
        _below(name, concept, len(members))
        coalition = members[concept.clamp_min(0)].masked_fill(concept[:, None] < 0, -1)
        score += sign * (_any(y.cpu(), coalition) - _any(x.cpu(), coalition))
        counted |= concept >= 0
    score = score.masked_fill(~counted, math.nan)
    return TAPAScore(float(score.nanmean()), score)


def _any(active: Tensor, dimensions: Tensor) -> Tensor:
    """Whether one of a row's dimensions (p, most) is active on the row, of (p, d); -1 is no dimension."""
    return (active.gather(1, dimensions.clamp_min(0)) & (dimensions >= 0)).any(dim=1).double()


def _below(name: str, x: Tensor, count: int) -> None:
    if int(x.min()) < -1 or int(x.max()) >= count:
        wrong = int(x.min()) if int(x.min()) < -1 else int(x.max())
        raise ValueError(f"{name} must lie between 0 and {count - 1}, or be -1 for none, got {wrong}")
