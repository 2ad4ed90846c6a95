"""Sets without rows; the kernels' case is in `tests/similarity/triton/interpreted/test_triton_operators.py`."""

from __future__ import annotations

import math

import pytest

from ssl_heads.similarity import Impl
from tests.similarity import empty

every_impl = pytest.mark.parametrize("impl", ["dense", "tiled"])


@every_impl
@pytest.mark.parametrize("bound", [math.inf, 30.0])
@pytest.mark.parametrize("frozen_keys", [False, True])
@pytest.mark.parametrize("shape", empty.SHAPES, ids=str)
def test_two_sets(impl: Impl, shape: tuple[int, int], bound: float, frozen_keys: bool) -> None:
    empty.assert_takes_two_sets(impl, shape, bound, frozen_keys)


@every_impl
@pytest.mark.parametrize("bound", [math.inf, 30.0])
def test_one_set(impl: Impl, bound: float) -> None:
    empty.assert_takes_one_set(impl, bound)


@every_impl
@pytest.mark.parametrize("shape", empty.SHAPES, ids=str)
def test_softplus(impl: Impl, shape: tuple[int, int]) -> None:
    empty.assert_takes_softplus(impl, shape)
