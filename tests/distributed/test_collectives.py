"""What is gathered lies in rank order, and each backward is the adjoint of its forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from ssl_heads.distributed import Pairs, Shard, all_gather_rows, all_reduce_sum, reductions
from tests.checks import assert_gradient_close
from tests.distributed import work
from tests.distributed.pool import Pool


@pytest.mark.parametrize("sizes", [(3, 3), (4, 1), (2, 5, 3), (0, 3, 2)], ids=str)
@pytest.mark.parametrize("backward", ["all-reduce", "reduce-scatter"])
def test_gather_rows(pool: Callable[[int], Pool], sizes: tuple[int, ...], backward: str) -> None:
    if backward == "reduce-scatter" and not hasattr(dist, "reduce_scatter_single"):
        pytest.skip("gloo of this release has no reduce-scatter")
    function = work.gather_and_weigh if backward == "all-reduce" else work.gather_and_scatter
    total = sum(sizes)
    gradient = sum(work.rows(total, seed=1 + rank) for rank in range(len(sizes)))
    results = pool(len(sizes)).run(function, sizes)
    for gathered, _ in results:
        assert torch.equal(gathered, work.rows(total))
    assert_gradient_close(torch.cat([g for _, g in results]), gradient, 1e-12)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bfloat16, torch.float16], ids=str)
def test_gather_other_dtypes(pool: Callable[[int], Pool], dtype: torch.dtype) -> None:
    for gathered in pool(3).run(work.gather_integers, (2, 3, 1), dtype):
        assert torch.equal(gathered, torch.arange(6).to(dtype))


@pytest.mark.parametrize("world", [2, 3])
def test_reduce_sum(pool: Callable[[int], Pool], world: int) -> None:
    total = sum(work.rows(3, seed=rank) for rank in range(world))
    gradient = sum(work.rows(3, seed=10 + rank) for rank in range(world))
    for actual, actual_gradient in pool(world).run(work.reduce_and_weigh):
        torch.testing.assert_close(actual, total)
        assert_gradient_close(actual_gradient, gradient, 1e-12)


@pytest.mark.parametrize("world", [2, 3])
def test_columns_without_negatives_have_no_gradient(pool: Callable[[int], Pool], world: int) -> None:
    parts, values, gradients = (
        torch.stack(x) for x in zip(*pool(world).run(work.log_sum_exp_of_columns, 5), strict=True)
    )
    leaves = parts.clone()[:, 1:].requires_grad_()
    expected = leaves.logsumexp(0)
    (world * expected.sum()).backward()
    for value in values:
        assert value[0] == -torch.inf
        torch.testing.assert_close(value[1:], expected.detach())
    assert not gradients[:, 0].any()
    torch.testing.assert_close(gradients[:, 1:], leaves.grad)


@pytest.mark.parametrize("multi_positive", ["out", "in"])
def test_all_gathers_keys_once_and_sends_none_round_a_ring(pool: Callable[[int], Pool], multi_positive: str) -> None:
    for gathered, passed in pool(2).run(work.messages, "all", multi_positive):
        assert len(gathered) == 1
        assert passed == 0
    for gathered, passed in pool(2).run(work.messages, "ring", multi_positive):
        assert gathered == []
        assert passed > 0


def test_an_unknown_way_of_gathering_is_no_other() -> None:
    shard = Shard("tree", None, 0, (4, 4))
    x, labels, pairs = torch.randn(4, 3), torch.zeros(8, dtype=torch.long), Pairs(shard)
    for call in (
        lambda: reductions.log_sum_exp(x, x, 1.0, pairs),
        lambda: reductions.self_log_sum_exp(x, 1.0, pairs),
        lambda: reductions.softplus_sum(x, x, 1.0, torch.zeros(()), pairs),
        lambda: reductions.class_sum(x, labels, shard),
    ):
        with pytest.raises(AssertionError, match="tree"):
            call()


def test_without_a_group_nothing_happens() -> None:
    x = torch.randn(3, 2)
    assert all_gather_rows(x) is x
    assert all_reduce_sum(x) is x


def test_shard(pool: Callable[[int], Pool]) -> None:
    sizes = (4, 1, 3)
    for rank, shard in enumerate(pool(3).run(work.shard_facts, sizes)):
        assert shard.sizes == sizes
        assert (shard.rank, shard.rows, shard.total, shard.world) == (rank, sizes[rank], 8, 3)
        assert shard.own == [slice(0, 4), slice(4, 5), slice(5, 8)][rank]


@pytest.mark.parametrize("gather", ["all", "ring"])
@pytest.mark.parametrize("members", [[0, 2], [1, 2], [2]], ids=str)
def test_subgroup(pool: Callable[[int], Pool], gather: str, members: list[int]) -> None:
    for rank, result in enumerate(pool(3).run(work.in_subgroup, gather, members, 4)):
        assert (result is not None) == (rank in members)
        if result is not None:
            value, of_copy, expected = result
            assert value == pytest.approx(expected, rel=1e-12)
            assert of_copy == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gather", ["all", "ring"])
def test_group_of_one_rank(pool: Callable[[int], Pool], gather: str) -> None:
    for value, expected in pool(2).run(work.group_of_one, gather):
        assert value == expected


def test_no_gathering_no_waiting(pool: Callable[[int], Pool]) -> None:
    for value, expected in pool(2).run(work.without_gathering):
        assert value == expected


@pytest.mark.parametrize("world", [2, 3])
def test_memory_of_the_ring_does_not_grow_with_the_ranks(pool: Callable[[int], Pool], world: int) -> None:
    size, width = 700, 64
    own_rows = 2 * size * width * 4
    assert max(pool(world).run(work.largest_tensor, "all", size, width)) >= world * own_rows
    assert max(pool(world).run(work.largest_tensor, "ring", size, width)) == own_rows
