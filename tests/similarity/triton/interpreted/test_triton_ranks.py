"""Kernels over a batch on several processes: blocks that travel and keys that are gathered equal one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_heads import distributed
from ssl_heads.distributed import Pairs, Shard, ring
from ssl_heads.functional import nt_xent
from tests.checks import assert_gradient_close
from tests.distributed.cases import averaged, step, steps
from tests.distributed.pool import Pool

SIZES = {2: (34, 5), 3: (18, 3, 13)}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
SETTINGS = [(dtype, "triton") for dtype in TOLERANCE]
OF_TWO = [
    "nt_xent", "nt_xent, ids", "nt_xent, fixed temperature", "info_nce, keys frozen", "clip", "siglip", "sup_con, in",
    "tri_factor", "tri_factor, two towers",
]  # fmt: skip
CASES = [
    *(("ring", 2, name) for name in OF_TWO),
    *(("ring", 3, name) for name in ("nt_xent, ids", "clip", "siglip")),
    *(("all", 2, name) for name in ("nt_xent", "clip", "siglip")),
]


@pytest.fixture(scope="module")
def pool() -> Iterator[Callable[[int], Pool]]:
    pools = {world: Pool(world) for world in SIZES}
    yield pools.__getitem__
    for started in pools.values():
        started.close()


@pytest.mark.parametrize(("gather", "world", "name"), CASES)
def test_equals_one_process(pool: Callable[[int], Pool], name: str, gather: str, world: int) -> None:
    sizes = SIZES[world]
    for (dtype, _), *ranks in zip(SETTINGS, *pool(world).run(steps, name, sizes, gather, SETTINGS), strict=True):
        expected, actual = step(name, sizes, dtype, "none", "dense", None, torch.float64), averaged(ranks)
        torch.testing.assert_close(actual.loss, expected.loss, rtol=TOLERANCE[dtype], atol=0)
        assert actual.gradients.keys() == expected.gradients.keys()
        for key, gradient in expected.gradients.items():
            assert_gradient_close(actual.gradients[key], gradient, TOLERANCE[dtype])


def what_travels(dtype: torch.dtype) -> tuple[set[torch.dtype], set[torch.dtype], Tensor]:
    """The dtypes of keys and of sums on their way, and the gradient of a loss in this dtype."""
    original, seen = ring.RingExchange.__init__, (set(), set())

    def spy(self: ring.RingExchange, shard: Shard, tensors: list[Tensor], shapes: object, tag: int) -> None:
        seen[tag == ring.SUMS].update(x.dtype for x in tensors if x.ndim == 2)
        original(self, shard, tensors, shapes, tag)  # type: ignore[arg-type]

    ring.RingExchange.__init__ = spy  # type: ignore[method-assign]
    try:
        z = torch.randn(10, 6, generator=torch.Generator().manual_seed(dist.get_rank())).to(dtype).requires_grad_()
        nt_xent(z, z.detach().roll(1, 1), gather="ring", impl="triton").backward()
    finally:
        ring.RingExchange.__init__ = original  # type: ignore[method-assign]
    assert z.grad is not None
    return *seen, z.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_rows_travel_and_fp32_sums_come_home(pool: Callable[[int], Pool], dtype: torch.dtype) -> None:
    for keys, sums, gradient in pool(2).run(what_travels, dtype):
        assert keys == {dtype}
        assert sums == {torch.float32}
        assert gradient.dtype == dtype


def wrong_exclusion(name: str, sizes: tuple[int, ...]) -> list[object]:
    """The same steps with a ring that takes a row for a negative of itself."""
    original = Pairs.exclusion_for_block
    Pairs.exclusion_for_block = lambda self, rank, *views: distributed.shard.Exclusion.nothing()  # type: ignore[method-assign]
    try:
        return list(steps(name, sizes, "ring", SETTINGS[:1]))
    finally:
        Pairs.exclusion_for_block = original  # type: ignore[method-assign]


def test_a_wrong_block_is_noticed(pool: Callable[[int], Pool]) -> None:
    (dtype, _), sizes = SETTINGS[0], SIZES[2]
    (ranks,) = zip(*pool(2).run(wrong_exclusion, "nt_xent", sizes), strict=True)
    expected, actual = step("nt_xent", sizes, dtype, "none", "dense", None, torch.float64), averaged(list(ranks))
    with pytest.raises(AssertionError):
        assert_gradient_close(actual.gradients["z0"], expected.gradients["z0"], TOLERANCE[dtype])


def test_every_rank_chooses_alike() -> None:
    """From the mean block, whatever the own one: keys that travel have one dtype."""
    sizes = (300, 5, 100)
    chosen = set()
    for rank, rows in enumerate(sizes):
        x = torch.zeros(2 * rows, 2)
        chosen.add(ring.resolve_impl("auto", x, x, Shard("ring", None, rank, sizes)))
    assert len(chosen) == 1
