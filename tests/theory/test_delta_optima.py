"""On a finite joint distribution the optimum of every delta loss is known: fit D freely and compare."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ssl_heads.functional import delta_contrast

# How often row state s was drawn together with column state t. Every cell is filled, so that log p is finite.
COUNTS = torch.tensor([[6, 2, 1, 1], [1, 7, 2, 1], [2, 1, 5, 1], [1, 3, 1, 4]])
PAIRS = [(s, t) for s in range(4) for t in range(4) for _ in range(int(COUNTS[s, t]))]
N = len(PAIRS)

P = COUNTS.double() / N
PRODUCT = P.sum(1, keepdim=True) * P.sum(0)
# A batch contrasts row i with every column but its own, so its negatives are the product without the pairs.
Q = (PRODUCT * N - P) / (N - 1)


class Table(nn.Module):
    """The dissimilarity of two states is a free number."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))

    def pairwise(self, z: Tensor, w: Tensor) -> Tensor:
        return z @ self.table @ w.T

    def paired(self, z: Tensor, w: Tensor) -> Tensor:
        return ((z @ self.table) * w).sum(1)

    def factors(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return -z @ self.table, w


def one_hot_pairs() -> tuple[Tensor, Tensor]:
    rows, columns = torch.tensor(PAIRS).T
    eye = torch.eye(4, dtype=torch.float64)
    return eye[rows], eye[columns]


def fit(kind: str, seed: int, **options: object) -> tuple[float, Tensor]:
    z, w = one_hot_pairs()
    d = Table(seed)
    optimizer = torch.optim.LBFGS(
        d.parameters(), max_iter=500, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = delta_contrast(z, w, kind, d, **options)  # type: ignore[arg-type]
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return closure().item(), d.table.detach()


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    m = (p + q) / 2
    return float(((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2)


MUTUAL_INFORMATION = float((P * (P / PRODUCT).log()).sum())
KULLBACK_LEIBLER = float((P * (P / Q).log()).sum())
MINIMUM = {
    "nce": 2 * math.log(2) - 2 * jensen_shannon(P, Q),
    "infonce": math.log(N) - MUTUAL_INFORMATION,
    "scl": -float((P.square() / Q).sum()),  # -(1 + chi^2)
    "nwj": -KULLBACK_LEIBLER,
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["nce", "infonce", "scl", "nwj"])
def test_the_minimum_and_the_minimiser(kind: str, seed: int) -> None:
    minimum, d = fit(kind, seed)
    assert minimum == pytest.approx(MINIMUM[kind], abs=1e-6)
    if kind == "infonce":  # the ratio to the full product of marginals, up to a constant of each row
        excess = d + (P / PRODUCT).log()
        assert (excess - excess.mean(1, keepdim=True)).abs().max() < 1e-4
        assert excess.std(1).max() < 1e-4
    else:
        assert (Q * ((-d).exp() - P / Q).abs()).sum() < 1e-4


def test_symmetric_infonce_leaves_one_constant_free() -> None:
    minimum, d = fit("infonce", 0, symmetric=True)
    assert minimum == pytest.approx(MINIMUM["infonce"], abs=1e-6)
    excess = d + (P / PRODUCT).log()
    assert (excess - excess.mean()).abs().max() < 1e-4


def test_the_linear_ratio_has_the_same_minimum_and_the_ratio_itself_as_minimiser() -> None:
    minimum, d = fit("scl", 0, ratio="linear")
    assert minimum == pytest.approx(MINIMUM["scl"], abs=1e-6)
    assert (-d - P / Q).abs().max() < 1e-4


def test_the_predictions_differ_from_each_other_and_from_independence() -> None:
    """A loss that returned another kind's value would not pass above."""
    values = [*MINIMUM.values(), 2 * math.log(2), math.log(N), -1.0, 0.0]
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-2


@pytest.mark.parametrize(("kind", "floor"), [("nce", 2 * math.log(2)), ("scl", -1.0), ("nwj", 0.0)])
def test_among_constants_zero_is_best(kind: str, floor: float) -> None:
    """The collapsed model, h = const: a stationary point along the constant, where no information is left."""
    constant = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    z, w = one_hot_pairs()
    d = Table(0)
    nn.init.zeros_(d.table)
    loss = delta_contrast(z, w, kind, d, constant.expand(N))  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, constant)
    assert loss.item() == pytest.approx(floor, abs=1e-12)
    assert gradient.abs() < 1e-12
    for step in (-0.1, 0.1):
        assert delta_contrast(z, w, kind, d, torch.full((N,), step).double()) > loss  # type: ignore[arg-type]
