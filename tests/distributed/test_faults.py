"""When one rank goes wrong, every rank gets an error in time, and nothing hangs."""

from __future__ import annotations

import math
import multiprocessing as mp
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from ssl_heads import NTXentLoss
from ssl_heads.functional import nt_xent
from tests.distributed import work
from tests.distributed.pool import Pool, join_group

both = pytest.mark.parametrize("gather", ["all", "ring"])


def assert_refused(outcomes: list[tuple[bool, str]], *texts: str) -> None:
    for good, text in outcomes:
        assert not good, "a rank went on"
        assert "ValueError" in text
        for expected in texts:
            assert expected in text, text


@both
def test_an_empty_rank_is_named_on_all(pool: Callable[[int], Pool], gather: str) -> None:
    assert_refused(pool(3).outcomes(work.with_sizes, gather, (4, 0, 3), (5, 5, 5)), "[4, 0, 3] rows")


@both
def test_other_widths_are_named_on_all(pool: Callable[[int], Pool], gather: str) -> None:
    assert_refused(pool(3).outcomes(work.with_sizes, gather, (4, 4, 3), (5, 6, 5)), "width", "[5, 6, 5]")


@both
def test_unequal_views_are_named_on_all(pool: Callable[[int], Pool], gather: str) -> None:
    assert_refused(pool(3).outcomes(work.with_unequal_views, gather, 1), "ranks [1]")


@both
def test_a_second_derivative_is_refused(pool: Callable[[int], Pool], gather: str) -> None:
    for good, text in pool(2).outcomes(work.second_derivative, gather):
        assert not good, "a rank went on"
        assert "once_differentiable" in text


@both
def test_other_dtypes_are_named_on_all(pool: Callable[[int], Pool], gather: str) -> None:
    outcomes = pool(2).outcomes(work.with_dtypes, gather, [torch.float32, torch.bfloat16])
    assert_refused(outcomes, "dtype", "torch.float32", "torch.bfloat16")


@both
def test_a_gradient_that_only_one_rank_needs(pool: Callable[[int], Pool], gather: str) -> None:
    assert_refused(pool(2).outcomes(work.gradient_on_rank_zero_only, gather), "gradient")


@both
def test_a_nan_reaches_all_ranks(pool: Callable[[int], Pool], gather: str) -> None:
    for losses in pool(3).run(work.with_nan, gather, 1):
        assert all(math.isnan(loss) for loss in losses)


@both
def test_the_pool_works_after_an_error(pool: Callable[[int], Pool], gather: str) -> None:
    pool(2).outcomes(work.with_sizes, gather, (4, 0), (5, 5))
    pool(2).run(work.with_sizes, gather, (4, 2), (5, 5))


def leave_or_go_on(rank: int, rendezvous: str, gather: str, when: str, connection: Connection) -> None:
    """Rank 1 leaves without a word; rank 0 reports what it sees."""
    join_group(rank, 2, rendezvous, timeout=20)
    z = torch.randn(2, 4, 3, requires_grad=True)
    loss = nt_xent(z[0], z[1], gather=gather)
    if rank == 1:
        os._exit(1)
    try:
        if when == "backward":
            loss.backward()
        else:
            nt_xent(z[0], z[1], gather=gather)
        connection.send("went on")
    except RuntimeError as error:
        connection.send(f"error: {error}")
    os._exit(0)


@both
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_rank_that_dies_is_an_error_on_the_others(tmp_path: Path, gather: str, when: str) -> None:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (str(tmp_path / "rendezvous"), gather, when, theirs)
    processes = [context.Process(target=leave_or_go_on, args=(rank, *arguments)) for rank in range(2)]
    start = time.monotonic()
    for process in processes:
        process.start()
    assert ours.poll(60), "the surviving rank hangs"
    assert ours.recv().startswith("error")
    for process in processes:
        process.join(10)
        assert process.exitcode is not None
    assert time.monotonic() - start < 60


def test_an_unknown_way_of_gathering() -> None:
    with pytest.raises(ValueError, match="'everyone'"):
        NTXentLoss(gather="everyone")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'everyone'"):
        nt_xent(torch.randn(2, 3), torch.randn(2, 3), gather="everyone")  # type: ignore[arg-type]
