"""The queue of many ranks is the queue of one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_heads import MemoryQueue
from ssl_heads.distributed import all_gather_rows
from tests.distributed.pool import Pool
from tests.distributed.work import own_rows

SIZES, SIZE, DIM = (4, 3), 9, 3


def fill(batches: Tensor) -> tuple[Tensor, Tensor]:
    """Enqueue the keys and ids of all ranks, from uneven parts."""
    queue = MemoryQueue(SIZE, DIM)
    for keys in batches:
        own, ids = own_rows(keys, SIZES), own_rows(torch.arange(len(keys)), SIZES)
        queue.enqueue(all_gather_rows(own), all_gather_rows(ids))
    return queue.rows, queue.ids


def test_all_ranks_hold_the_same_queue(pool: Callable[[int], Pool]) -> None:
    batches = torch.rand(2, 7, DIM)
    alone = MemoryQueue(SIZE, DIM)
    for keys in batches:
        alone.enqueue(keys, torch.arange(7))
    for rows, ids in pool(2).run(fill, batches):
        assert torch.equal(rows, alone.rows)
        assert torch.equal(ids, alone.ids)
