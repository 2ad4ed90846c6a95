"""Value and every gradient over ranks equal those of one process on the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.checks import assert_gradient_close
from tests.distributed.cases import LOSSES, averaged, step, steps
from tests.distributed.pool import Pool

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-3}
SIZES = {
    2: {"even": (6, 6), "uneven": (9, 4)},
    3: {"even": (5, 5, 5), "uneven": (4, 1, 8)},
    4: {"uneven": (3, 7, 1, 4)},
}
SPLITS = [(2, "even"), (2, "uneven"), (3, "even"), (3, "uneven"), (4, "uneven")]


@pytest.mark.parametrize(("world", "rows"), SPLITS)
@pytest.mark.parametrize("gather", ["all", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_one_process(pool: Callable[[int], Pool], name: str, gather: str, rows: str, world: int) -> None:
    sizes = SIZES[world][rows]
    settings = [(dtype, impl) for dtype in TOLERANCE for impl in ("dense", "tiled")]
    for (dtype, _), *ranks in zip(settings, *pool(world).run(steps, name, sizes, gather, settings), strict=True):
        expected, actual = step(name, sizes, dtype, "none", "dense", None, torch.float64), averaged(ranks)
        torch.testing.assert_close(actual.loss, expected.loss, rtol=min(TOLERANCE[dtype], 1e-5), atol=0)
        assert actual.gradients.keys() == expected.gradients.keys()
        for key, gradient in expected.gradients.items():
            assert_gradient_close(actual.gradients[key], gradient, TOLERANCE[dtype])
