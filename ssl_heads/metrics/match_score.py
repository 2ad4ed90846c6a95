"""MATCHScore: whether concepts are found by small coalitions of dimensions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads._check import positive
from ssl_heads.metrics._inputs import ArrayLike, as_truth, whole
from ssl_heads.metrics._rows import products
from ssl_heads.metrics.streaming import KeepsRows


class MatchScore(NamedTuple):
    """The result of `match_score`.

    Attributes:
        mean: Mean of `per_concept` over the concepts that some sample has; NaN if none is.
        per_concept: Shape (c,), the F1 of each concept's coalition, float64, on the CPU; NaN for a concept of no
            sample.
        dimensions: Shape (c, most), the coalition of each concept in the order of its choice, then -1; on the CPU.
    """

    mean: float
    per_concept: Tensor
    dimensions: Tensor


class MatchGain(NamedTuple):
    """The result of `match_gain`.

    Attributes:
        mean: The mean score minus that of the untrained head.
        per_concept: Shape (c,), the same for each concept, float64, on the CPU; NaN for a concept of no sample.
        trained: The score of the head.
        untrained: The score of the untrained head.
    """

    mean: float
    per_concept: Tensor
    trained: MatchScore
    untrained: MatchScore


@torch.no_grad()
def match_score(active: ArrayLike, concepts: ArrayLike, beta: float = 0.5, most: int = 3) -> MatchScore:
    r"""How well few dimensions together tell a concept: F1 of "one of them is active", chosen greedily.

    .. math::
        \mathrm{score} = \frac1c \sum_a F_1\Bigl(y_a, \bigvee_{l \in S_a} b_l\Bigr), \qquad
        F_\beta = \frac{(1 + \beta^2)\,\mathrm{TP}}{(1 + \beta^2)\,\mathrm{TP} + \beta^2\,\mathrm{FN} + \mathrm{FP}}

    A concept's coalition grows by the dimension of the largest :math:`F_\beta` with what its members have not found
    yet, :math:`y_a \wedge \neg \bigvee_{l \in S_a} b_l`, as long as F1 rises, up to `most` members. A beta below one
    prefers dimensions that are right over dimensions that find much: the next member finds the rest.

    An untrained head scores high too where concepts are few and coarse: report `match_gain`.

    Args:
        active: Shape (n, d), truth values or zeros and ones, such as `embeddings > 0`.
        concepts: Shape (n, c), truth values or zeros and ones: whether a sample has a concept.
        beta: Weight of recall in the choice of a dimension.
        most: Largest coalition, at least 1.

    Raises:
        ValueError: If the numbers of rows differ, an entry is no truth value (NaN included), `beta` is not positive or
            `most` is below 1.

    Reference:
        arXiv 2606.24716 (ECCV 2026), equations 2 to 4 and algorithm 1. Equation 3 prints "and"; the text and the
        algorithm take "or".

    Example:
        >>> concepts = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0]])
        >>> active = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
        >>> match_score(active, concepts).dimensions
        tensor([[ 0,  1, -1],
                [ 2, -1, -1]])
    """
    metric = StreamingMatchScore(beta, most)
    metric.update(active, concepts)
    return metric.compute()


def match_gain(
    active: ArrayLike, untrained: ArrayLike, concepts: ArrayLike, beta: float = 0.5, most: int = 3
) -> MatchGain:
    r"""`match_score` of a head minus that of an untrained one (dMATCHScore).

    .. math:: \mathrm{gain} = \mathrm{score}(b, y) - \mathrm{score}(b^{\mathrm{untrained}}, y)

    Args:
        active: Shape (n, d), truth values of the head.
        untrained: Shape (n, e), of an untrained head of the same samples, at equal sparsity.
        concepts: Shape (n, c), truth values.
        beta: Weight of recall in the choice of a dimension.
        most: Largest coalition, at least 1.

    Raises:
        ValueError: As `match_score`.

    Reference:
        arXiv 2606.24716 (ECCV 2026).

    Example:
        >>> concepts = torch.eye(4).repeat(2, 1)
        >>> match_gain(concepts, torch.zeros(8, 4), concepts).mean
        1.0
    """
    trained, other = (match_score(b, concepts, beta, most) for b in (active, untrained))
    gain = trained.per_concept - other.per_concept
    return MatchGain(trained.mean - other.mean, gain, trained, other)


class StreamingMatchScore(KeepsRows):
    """`match_score` of rows that come part by part.

    The second member of a coalition depends on the rows that the first has not found, so no state of a fixed size gives
    the number: the truth values of all rows are kept, one byte each.

    Args:
        beta: Weight of recall in the choice of a dimension.
        most: Largest coalition, at least 1.

    Attributes:
        active: The parts, shape (n, d) each.
        concepts: The parts, shape (n, c) each.

    Example:
        >>> metric = StreamingMatchScore()
        >>> metric.update([[1, 0], [1, 0]], [[1], [1]])
        >>> metric.update([[0, 1], [0, 0]], [[1], [0]])
        >>> metric.compute().dimensions
        tensor([[ 0,  1, -1]])
    """

    settings = ("beta", "most")
    kept = ("active", "concepts")
    active: tuple[Tensor, ...]
    concepts: tuple[Tensor, ...]

    def __init__(self, beta: float = 0.5, most: int = 3) -> None:
        self.beta, self.most = float(positive("beta", beta)), whole("most", most, least=1)
        super().__init__()

    @torch.no_grad()
    def update(self, active: ArrayLike, concepts: ArrayLike) -> None:
        """Take in truth values (n, d) and the concepts (n, c) of the same samples."""
        b, y = as_truth("active", active).cpu(), as_truth("concepts", concepts).cpu()
        if len(b) != len(y):
            raise ValueError(
                f"active and concepts must hold the same samples, got shapes {tuple(b.shape)} and {tuple(y.shape)}"
            )
        part = self._part(b, y)
        part.active, part.concepts = (b,), (y,)
        self.merge(part)

    @torch.no_grad()
    def compute(self) -> MatchScore:
        """The numbers of all rows seen."""
        self._known()
        b, y = torch.cat(self.active), torch.cat(self.concepts)
        fires, has = b.sum(dim=0), y.sum(dim=0)
        dimensions = torch.full((y.shape[1], self.most), -1, device="cpu")
        found, score = torch.zeros_like(y), torch.zeros(y.shape[1], dtype=torch.float64, device="cpu")
        growing = has > 0
        for member in range(self.most):
            rest = y & ~found
            choice = f_score(products(rest, b), rest.sum(dim=0)[:, None], fires, self.beta).argmax(dim=1)
            together = found | b[:, choice]
            f1 = f_score((together & y).sum(dim=0), has, together.sum(dim=0))
            growing = growing & (f1 > score)
            found, score = together.where(growing, found), f1.where(growing, score)
            dimensions[growing, member] = choice[growing]
        score = score.where(has > 0, math.nan)
        return MatchScore(float(score.nanmean()), score, dimensions)


def f_score(hits: Tensor, true: Tensor, called: Tensor, beta: float = 1.0) -> Tensor:
    r""":math:`F_\beta` from the number of hits, of true and of called samples, float64; 0 for none of either.

    Example:
        >>> f_score(torch.tensor(1), torch.tensor(2), torch.tensor(1))
        tensor(0.6667, dtype=torch.float64)
    """
    return (1 + beta**2) * hits.double() / (beta**2 * true + called).double().clamp_min(torch.finfo(torch.float64).tiny)
