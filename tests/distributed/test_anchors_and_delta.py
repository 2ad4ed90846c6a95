"""Anchors and delta losses over ranks equal one process on the whole batch, labels and rows spread unevenly."""

from __future__ import annotations

import copy
import unittest.mock
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_heads import DeltaContrast, LpPower, MLPCorrection, OrthonormalAnchorRegression, SquaredEuclidean
from ssl_heads.functional import anchor_regression, class_anchors, delta_contrast
from ssl_heads.losses import delta
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


STARTS: dict[str, Callable[[], DeltaContrast]] = {
    "scalar": lambda: DeltaContrast("nwj", LpPower(1)),
    "mlp": lambda: DeltaContrast("nce", SquaredEuclidean(), MLPCorrection(3), MLPCorrection(3)),
}


def fresh(name: str, gather: str) -> DeltaContrast:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = STARTS[name]().double()
    loss.gather = gather  # type: ignore[assignment]
    return loss


def started(name: str, sizes: tuple[int, ...], gather: str, first: int, alone: bool = False) -> dict[str, Tensor]:
    """The loss of a first batch, of which some rows are looked at, and the state that it leaves."""
    z, w, _ = batch(sizes, None if alone else dist.get_rank())
    loss = fresh(name, "none" if alone else gather)
    with unittest.mock.patch.object(delta, "ROWS_TO_START_FROM", first):
        value = loss(3 * z, w)
    return {"loss": value.detach(), **loss.state_dict()}


@pytest.mark.parametrize("first", [5, 9, 512])
@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("sizes", [(7, 4), (4, 1, 6)], ids=str)
def test_a_start_from_the_whole_batch_equals_one_process(
    pool: Callable[[int], Pool], sizes: tuple[int, ...], name: str, first: int
) -> None:
    expected = started(name, sizes, "none", first, alone=True)
    ranks = pool(len(sizes)).run(started, name, sizes, "all", first)
    mean = torch.stack([rank.pop("loss") for rank in ranks]).mean()
    assert mean.item() == pytest.approx(expected.pop("loss").item(), rel=1e-10)
    for rank in ranks:
        for key, x in expected.items():
            torch.testing.assert_close(rank[key], x, rtol=1e-12, atol=1e-12)
    assert bool(expected[next(key for key in expected if key.endswith("started"))])


def on_one_rank() -> float | None:
    """A loss that only the first rank calls, without gathering."""
    if dist.get_rank() > 0:
        return None
    z, w, _ = batch((9, 5), 0)
    loss = fresh("scalar", "none")
    loss(3 * z, w)
    return (LpPower(1).pairwise(3 * z, w) + loss.alpha.value).median().item()  # type: ignore[union-attr]


def test_without_gathering_the_start_is_the_own_median(pool: Callable[[int], Pool]) -> None:
    first, second = pool(2).run(on_one_rank)
    assert first == pytest.approx(0, abs=1e-6)
    assert second is None


def after_bad_batches() -> tuple[bool, bool, bool]:
    """Whether a batch with a NaN on one rank leaves the state as it is, one that a rank refuses, and a good one."""
    z, w, _ = batch((9, 5), dist.get_rank())
    loss = fresh("mlp", "all")
    before = copy.deepcopy(loss.state_dict())

    def untouched() -> bool:
        return all(torch.equal(x, before[key]) for key, x in loss.state_dict().items())

    bad = z.clone()
    bad[-1, 0] = torch.nan if dist.get_rank() == 1 else 0
    with unittest.mock.patch.object(delta, "ROWS_TO_START_FROM", 4):  # none of the rows of rank 1
        loss(bad, w)
    after_nan = untouched()
    with pytest.raises(ValueError, match="refused on ranks"):
        loss(z, w[1:] if dist.get_rank() == 1 else w)
    after_refusal = untouched()
    loss(z, w)
    return after_nan, after_refusal, untouched()


def test_a_bad_batch_leaves_the_state_as_it_was(pool: Callable[[int], Pool]) -> None:
    for outcome in pool(2).run(after_bad_batches):
        assert outcome == (True, True, False)


class Owner(nn.Module):
    """A network that owns its loss."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder, self.loss = nn.Linear(3, 3).double(), fresh(name, "all")

    def forward(self, z: Tensor, w: Tensor) -> Tensor:
        return self.loss(self.encoder(z), self.encoder(w))


def resumed(name: str, state: dict[str, Tensor], wrapped: bool) -> dict[str, Tensor]:
    """The first rank loads; the others have what DistributedDataParallel gives them."""
    z, w, _ = batch((9, 5), dist.get_rank())
    model = Owner(name)
    if dist.get_rank() == 0:
        model.load_state_dict(state)
    (nn.parallel.DistributedDataParallel(model) if wrapped else model)(10 * z, w).backward()
    return model.state_dict()


@pytest.mark.parametrize("name", STARTS)
def test_what_the_first_rank_loads_stays(pool: Callable[[int], Pool], name: str) -> None:
    model = Owner(name)
    model(*batch((9, 5), None)[:2])
    state = model.state_dict()
    for found in pool(2).run(resumed, name, state, True):
        assert all(torch.equal(found[key], x) for key, x in state.items())
    for good, text in pool(2).outcomes(resumed, name, state, False):
        assert not good
        assert "start of the corrections from this batch must be the same on all ranks, got [False, True]" in text


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
