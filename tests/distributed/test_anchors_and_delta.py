"""Anchors and delta losses over ranks equal one process on the whole batch, labels and rows spread unevenly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_heads import DeltaContrast, LpPower, MLPCorrection, OrthonormalAnchorRegression, SquaredEuclidean
from ssl_heads.functional import anchor_regression, class_anchors, delta_contrast
from tests.checks import assert_gradient_close
from tests.distributed.pool import Pool

SIZES = {2: (7, 4), 3: (4, 1, 6)}
Result = tuple[Tensor, list[Tensor]]


def batch(sizes: tuple[int, ...], rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of both sides and labels, of one rank or of all; the first rank has almost all of the labels."""
    total, generator = sum(sizes), torch.Generator().manual_seed(0)
    z = torch.randn(total, 3, generator=generator, dtype=torch.float64)
    w = z + torch.randn(total, 3, generator=generator, dtype=torch.float64) / 2
    labels = torch.where(torch.arange(total) < sizes[0], torch.arange(total) % 3, -1)
    labels[-1] = 2
    own = slice(0, total) if rank is None else slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    return z[own], w[own], labels[own]


def of_rows(losses: Callable[..., Tensor], sizes: tuple[int, ...], rank: int | None, gather: str) -> Result:
    z, w, labels = batch(sizes, rank)
    weight = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3).requires_grad_()
    loss = losses(z @ weight, w @ weight, labels, "none" if rank is None else gather)
    loss.backward()
    assert weight.grad is not None
    return loss.detach(), [weight.grad]


def anchored(z: Tensor, w: Tensor, labels: Tensor, gather: str) -> Tensor:
    return anchor_regression(z, labels, class_anchors(3, 3, "identity"), gather=gather)  # type: ignore[arg-type]


class Delta:
    """One kind with one dissimilarity and corrections that depend on the embeddings."""

    def __init__(self, kind: str, factors: bool, **options: object) -> None:
        self.kind, self.factors, self.options = kind, factors, options

    def __call__(self, z: Tensor, w: Tensor, labels: Tensor, gather: str) -> Tensor:
        d = SquaredEuclidean() if self.factors else LpPower(1)
        return delta_contrast(z, w, self.kind, d, z.sum(1), w[:, 0], gather=gather, **self.options)  # type: ignore[arg-type]


def own_rows(losses: Callable[..., Tensor], sizes: tuple[int, ...], gather: str) -> Result:
    return of_rows(losses, sizes, dist.get_rank(), gather)


LOSSES = {
    "anchors": anchored,
    **{
        f"{kind}, {'squared' if factors else 'l1'}": Delta(kind, factors)
        for kind in ("nce", "infonce", "scl", "nwj")
        for factors in (True, False)
    },
    "infonce, symmetric": Delta("infonce", True, symmetric=True),
    "infonce, symmetric, l1": Delta("infonce", False, symmetric=True),
    "scl, linear": Delta("scl", True, ratio="linear"),
}


@pytest.mark.parametrize("world", SIZES)
@pytest.mark.parametrize("name", LOSSES)
def test_equals_one_process(pool: Callable[[int], Pool], name: str, world: int) -> None:
    sizes = SIZES[world]
    expected, gradients = of_rows(LOSSES[name], sizes, None, "none")
    ranks = pool(world).run(own_rows, LOSSES[name], sizes, "all")
    assert torch.stack([loss for loss, _ in ranks]).mean().item() == pytest.approx(expected.item(), rel=1e-12)
    mean = torch.stack([gradient for _, (gradient,) in ranks]).mean(0)
    assert_gradient_close(mean, gradients[0], 1e-10)


def test_local_anchors_do_not_equal_one_process_where_labels_are_uneven(pool: Callable[[int], Pool]) -> None:
    expected, _ = of_rows(anchored, SIZES[2], None, "none")
    ranks = pool(2).run(own_rows, anchored, SIZES[2], "none")
    assert abs(torch.stack([loss for loss, _ in ranks]).mean().item() - expected.item()) > 1e-2


def started() -> Tensor:
    z, w, _ = batch((9, 5), dist.get_rank())
    loss = DeltaContrast("nwj", LpPower(1), MLPCorrection(3)).double()
    torch.nn.init.zeros_(loss.alpha.slope.weight)  # type: ignore[union-attr,arg-type]
    loss(3 * z, w)
    return loss.alpha.offset.value.detach()  # type: ignore[union-attr,return-value]


def test_the_start_from_data_is_the_same_on_all_ranks(pool: Callable[[int], Pool]) -> None:
    first, second = pool(2).run(started)
    assert torch.equal(first, second)
    assert first.item() < -0.5


def broadcast() -> tuple[Tensor, Tensor]:
    torch.manual_seed(dist.get_rank())
    loss = OrthonormalAnchorRegression(2, 4, basis=torch.randn(2, 4))
    before = loss.anchors.clone()
    loss.broadcast()
    return before, loss.anchors


def test_broadcast_makes_anchors_those_of_the_first_rank(pool: Callable[[int], Pool]) -> None:
    (before, first), (other, second) = pool(2).run(broadcast)
    assert not torch.allclose(before, other)
    assert torch.equal(first, before)
    assert torch.equal(second, before)
