"""Offsets beyond 32 bits, and the choice of a tile by measurement."""

from __future__ import annotations

import math
import tempfile

import pytest
import torch
from torch import Tensor

from ssl_heads.similarity.backend import LogSum, Matrix, Needs
from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton import backward, configurations, forward
from ssl_heads.similarity.triton.configurations import Tile
from tests.checks import relative_error
from tests.similarity.triton.interpreted.literal import embeddings


def far_apart(x: Tensor, stride: int) -> Tensor:
    """The same rows, `stride` elements apart, in a file with holes: it takes no space."""
    with tempfile.NamedTemporaryFile() as file:
        memory = torch.from_file(file.name, shared=True, size=x.shape[0] * stride, dtype=x.dtype)
    view = memory.view(x.shape[0], stride)[:, : x.shape[1]]
    view.copy_(x)
    return view


def gradients(query: Tensor, key: Tensor, row: Tensor) -> tuple[Tensor, ...]:
    of_rows = LogSum(row, torch.ones_like(row))
    return backward.pair_backward(Matrix(query, key), of_rows, None, row.new_empty(0), False, Needs())


def test_offsets_beyond_32_bits() -> None:
    """Row 33 starts at element 33 * 2^26 > 2^31, for queries and for keys."""
    query, key = embeddings(40, 64, torch.float16), embeddings(36, 64, torch.float16)
    far_query, far_key = far_apart(query, 2**26), far_apart(key, 2**26)
    assert far_query[-1].data_ptr() - far_query.data_ptr() > 2 * 2**31
    near = forward.pair_forward(Matrix(query, key), columns=True)
    far = forward.pair_forward(Matrix(far_query, far_key), columns=True)
    for a, b in zip(near, far, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(gradients(query, key, near[0]), gradients(far_query, far_key, far[0]), strict=True):
        assert torch.equal(a, b)


def test_a_diagonal_far_outside() -> None:
    """An offset that passes 32 bits when a row is added to it."""
    x = embeddings(40, 37, torch.float32)
    row, *_ = forward.pair_forward(Matrix(x, x, 1.0, Exclusion(offset=2**31 - 2, period=2**33)), columns=False)
    assert relative_error(row, (x.double() @ x.double().T).logsumexp(1)) < 1e-6


def test_no_measurement_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_HEADS_AUTOTUNE", raising=False)
    monkeypatch.setattr(configurations, "milliseconds", lambda *_: pytest.fail("a tile was timed"))
    x = embeddings(40, 37, torch.float32)
    forward.self_forward(Matrix(x, x))


def test_the_fastest_neighbour_is_taken_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Tile] = []

    def pretend(run: object, tile: Tile) -> float:
        timed.append(tile)
        return {1: 3.0, 2: 1.0}.get(tile.stages, math.inf)

    monkeypatch.setenv("SSL_HEADS_AUTOTUNE", "1")
    monkeypatch.setattr(configurations, "milliseconds", pretend)
    monkeypatch.setattr(configurations, "CHOSEN", {})
    x = embeddings(40, 37, torch.float32)
    row, _ = forward.self_forward(Matrix(x, x))
    assert [tile.stages for tile in configurations.CHOSEN.values()] == [2]
    count = len(timed)
    assert count > 2
    assert torch.equal(row, forward.self_forward(Matrix(x, x))[0])
    assert len(timed) == count
    gradients(x, x, row)
    assert len(timed) > count
