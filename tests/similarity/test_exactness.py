"""Inputs that the shortcuts of the tiled passes must not get wrong: each once was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_heads import functional
from ssl_heads.similarity import Exclusion, tiled
from ssl_heads.similarity.backend import LogSum, Matrix
from tests.checks import assert_gradient_close, relative_error


def value_and_gradient(loss: object, x: Tensor) -> tuple[Tensor, Tensor]:
    assert callable(loss)
    leaf = x.detach().clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def test_a_tile_that_a_fallback_did_not_save_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward disagree about the path: the backward may not touch what the forward never wrote."""
    x = torch.nn.functional.normalize(torch.randn(200, 16))
    matrix = Matrix(x, x, torch.tensor([20.0]), Exclusion.modulo(100), 20.1)
    exact_row, _ = tiled.self_forward(matrix)
    gradient = torch.rand(200)
    with monkeypatch.context() as patch:
        patch.setattr(tiled, "is_exact", lambda *_: False)
        row, saved = tiled.self_forward(matrix)
    assert saved.shape == (200, 200)
    assert relative_error(row, exact_row) < 1e-6
    product, _ = tiled.self_backward(matrix, LogSum(row, gradient), saved, needs_scale=False)
    exact = Matrix(x.double(), x.double(), 20.0, matrix.exclusion)
    of_rows = LogSum(row.double(), gradient.double())
    expected, _ = tiled.self_backward(exact, of_rows, torch.empty(0), needs_scale=False)
    assert_gradient_close(product, expected, 1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_the_threshold_of_the_two_paths(seed: int) -> None:
    """Temperatures around the one where the forward falls back, with freed memory full of large numbers."""
    z0, z1 = torch.randn(2, 65, 16, generator=torch.Generator().manual_seed(seed))
    temperature = 0.0034 + 0.00001 * seed
    garbage = [torch.full((130, 130), 1e30) for _ in range(4)]
    del garbage
    _, gradient = value_and_gradient(lambda z: functional.nt_xent(z, z1, temperature, impl="tiled"), z0)
    dense = lambda z: functional.nt_xent(z, z1.double(), temperature, impl="dense")  # noqa: E731
    assert relative_error(gradient, value_and_gradient(dense, z0.double())[1]) < 1e-4


def test_large_keys_do_not_overflow_their_weighted_sum() -> None:
    direction = torch.nn.functional.normalize(torch.randn(1, 32))
    query, queue = 0.05 * direction.repeat(4, 1), 300 * direction.repeat(4096, 1)
    key = query.clone()
    loss = lambda q, impl: functional.info_nce(q, key.to(q), queue.to(q), 0.2, normalize=False, impl=impl)  # noqa: E731
    value, gradient = value_and_gradient(lambda q: loss(q, "tiled"), query)
    expected_value, expected = value_and_gradient(lambda q: loss(q, "dense"), query.double())
    assert relative_error(value, expected_value) < 1e-5
    assert_gradient_close(gradient, expected, 1e-4)


def test_huge_logits_take_the_online_path() -> None:
    for seed in range(10):
        x = torch.randn(200, 128, generator=torch.Generator().manual_seed(seed))
        x = 1e4 * x / x.norm(dim=1, keepdim=True)
        y = x.roll(1, 0)
        value, gradient = value_and_gradient(lambda z: functional.clip_loss(z, y, 1.0, impl="tiled"), x)  # noqa: B023
        expected, _ = value_and_gradient(lambda z: functional.clip_loss(z, y.double(), 1.0, impl="dense"), x.double())  # noqa: B023
        assert relative_error(value, expected) < 1e-5
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["nt_xent", "clip", "siglip"])
def test_a_tangent_is_refused_and_not_dropped(name: str) -> None:
    x, y, v = torch.randn(3, 200, 8)
    losses = {
        "nt_xent": lambda z, impl: functional.nt_xent(z, y, impl=impl),
        "clip": lambda z, impl: functional.clip_loss(z, y, 1.0, impl=impl),
        "siglip": lambda z, impl: functional.siglip_loss(z, y, 1.0, -1.0, impl=impl),
    }
    with pytest.raises(RuntimeError, match='forward mode; pass impl="dense"'):
        torch.func.jvp(lambda z: losses[name](z, "tiled"), (x,), (v,))
    _, tangent = torch.func.jvp(lambda z: losses[name](z, "dense"), (x,), (v,))
    _, gradient = value_and_gradient(lambda z: losses[name](z, "tiled"), x)
    assert relative_error(tangent, (gradient * v).sum()) < 1e-4
