from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.distributed.pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Callable[[int], Pool]]:
    """A pool of the wanted number of ranks, started when first asked for."""
    pools: dict[int, Pool] = {}

    def of(world: int) -> Pool:
        if world not in pools:
            pools[world] = Pool(world)
        return pools[world]

    yield of
    for started in pools.values():
        started.close()
