"""Every loss through the kernels equals its definition: in each dtype, and at the extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_heads import NegativeDot, functional
from ssl_heads.rowwise import kernels as row_kernels
from ssl_heads.similarity.backend import Matrix
from ssl_heads.similarity.triton import arguments, backward, forward
from tests.checks import assert_gradient_close, relative_error

LABELS = torch.arange(41) % 5
QUEUE = torch.randn(70, 24, generator=torch.Generator().manual_seed(1))
Loss = Callable[[Tensor, Tensor, str], Tensor]
LOSSES: dict[str, Loss] = {
    "nt_xent": lambda a, b, impl: functional.nt_xent(a, b, impl=impl),
    "nt_xent ids": lambda a, b, impl: functional.nt_xent(a, b, ids=LABELS, impl=impl),
    "nt_xent cold": lambda a, b, impl: functional.nt_xent(a, b, 0.01, impl=impl),
    "info_nce": lambda a, b, impl: functional.info_nce(a, b, impl=impl),
    "moco": lambda a, b, impl: functional.info_nce(a, b.detach(), QUEUE.to(a.dtype), impl=impl),
    "clip": lambda a, b, impl: functional.clip_loss(a, b, torch.tensor(0.5), impl=impl),
    "siglip": lambda a, b, impl: functional.siglip_loss(a, b, 1.0, -2.0, impl=impl),
    "sup_con out": lambda a, b, impl: functional.sup_con(a, LABELS, impl=impl),
    "sup_con in": lambda a, b, impl: functional.sup_con(a, LABELS, multi_positive="in", impl=impl),
    "tri_factor": lambda a, b, impl: functional.tri_factor_contrast(a, b, torch.linspace(0, 2, 24), impl=impl),
}
# Without a dtype for products: rows in float32.
CORRECTED: dict[str, Loss] = {
    f"delta {kind}": lambda a, b, impl, kind=kind: functional.delta_contrast(a, b, kind, NegativeDot(), impl=impl)
    for kind in ("nce", "infonce")
}
# The interpreter truncates where it stores bfloat16; a device rounds.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 7e-3}
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")


def views(seed: int = 0) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, 41, 24, generator=torch.Generator().manual_seed(seed))
    return a, b


def value_and_gradients(loss: Loss, a: Tensor, b: Tensor, impl: str) -> tuple[Tensor, list[Tensor]]:
    inputs = [x.clone().requires_grad_() for x in (a, b)]
    value = loss(*inputs, impl)
    value.backward()
    return value.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]


def assert_right(loss: Loss, a: Tensor, b: Tensor, tolerance: float) -> None:
    """Value and gradients of the kernels, against float64 on the same rounded embeddings."""
    value, found = value_and_gradients(loss, a, b, "triton")
    exact, expected = value_and_gradients(loss, a.double(), b.double(), "dense")
    assert value.dtype == torch.float32
    assert relative_error(value, exact) < tolerance
    for gradient, wanted in zip(found, expected, strict=True):
        assert gradient.dtype == a.dtype
        if float(wanted.norm()) > 0:
            assert_gradient_close(gradient, wanted, tolerance)
        else:
            assert bool((gradient == 0).all())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LOSSES)
def test_the_kernels_give_the_loss_and_its_gradient(name: str, dtype: torch.dtype) -> None:
    a, b = (x.to(dtype) for x in views())
    assert_right(LOSSES[name], a, b, TOLERANCE[dtype])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", {**LOSSES, **CORRECTED})
def test_a_value_alone(name: str, mode: Callable[[], AbstractContextManager[None]]) -> None:
    loss = {**LOSSES, **CORRECTED}[name]
    a, b = views()
    with mode():
        value = loss(a, b, "triton")
    assert relative_error(value.double(), loss(a.double(), b.double(), "dense")) < 1e-5


@pytest.mark.parametrize("name", CORRECTED)
def test_the_kernels_give_a_corrected_loss(name: str) -> None:
    assert_right(CORRECTED[name], *views(), 1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", {**LOSSES, **CORRECTED})
def test_float64_rows_are_refused_and_never_rounded(name: str, autocast: bool) -> None:
    a, b = (x.double() for x in views())
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        pytest.raises(ValueError, match=r'float64.*impl="tiled"'),
    ):
        {**LOSSES, **CORRECTED}[name](a, b, "triton")


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_rows_reach_the_kernels_as_such(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else is rounded: a product in half precision and its float32 gradient, in and out of autocast."""
    seen: list[tuple[torch.dtype, ...]] = []
    original = arguments.kernel_matrix

    def spy(matrix: Matrix, bias: Tensor | None = None) -> Any:
        seen.append((matrix.query.dtype, matrix.key.dtype))
        return original(matrix, bias)

    for module in (forward, backward):
        monkeypatch.setattr(module, "kernel_matrix", spy)
    a, b = (x.half() for x in views())
    value, (gradient, _) = value_and_gradients(LOSSES[name], a, b, "triton")
    assert seen
    with torch.autocast("cpu", torch.float16):
        same, (in_float, _) = value_and_gradients(LOSSES[name], a.float(), b.float(), "triton")
    assert set(seen) == {(torch.float16, torch.float16)}
    assert in_float.dtype == torch.float32
    assert relative_error(value, same) < 1e-5
    assert relative_error(gradient, in_float) < 1e-3  # one rounding, and that of the queue

    seen.clear()
    value_and_gradients(LOSSES[name], a.float(), b.float(), "triton")
    assert set(seen) == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("name", ["nt_xent", "siglip"])
def test_a_loss_compiles_as_one_graph(name: str) -> None:
    """Normalisation, matrix and positives, with rows that autocast rounds."""

    def step(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return LOSSES[name](a, b, "triton")

    a, b = views()
    value, (gradient, _) = value_and_gradients(lambda a, b, _: step(a, b), a, b, "triton")
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    same, (again, _) = value_and_gradients(lambda a, b, _: compiled(a, b), a, b, "triton")
    torch.testing.assert_close(same, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(again, gradient, rtol=1e-5, atol=1e-8)


# --------------------------------------------------------------------------------------------------------- the extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cosines_times_two_hundred(dtype: torch.dtype) -> None:
    """Rows in two opposite bundles: the bounded path would overflow, and half of the sum underflow."""
    direction = torch.nn.functional.normalize(torch.randn(1, 24, generator=torch.Generator().manual_seed(2)))
    sign = torch.tensor([1.0, -1.0]).repeat(21)[:41, None]
    a, b = (sign * direction + 0.02 * x for x in views())
    a, b = a.to(dtype), b.to(dtype)
    # logits of 200 are known to 200 * 2^-24; in float16 the rows, and so the logits, to 2^-11
    tolerance = {torch.float32: 1e-4, torch.float16: 0.1}[dtype]
    for loss in (
        lambda a, b, impl: functional.nt_xent(a, b, 1 / 200, impl=impl),
        lambda a, b, impl: functional.info_nce(a, b, temperature=1 / 200, impl=impl),
        lambda a, b, impl: functional.clip_loss(a, b, 200.0, impl=impl),
    ):
        assert_right(loss, a, b, tolerance)


def test_rows_of_length_ten_thousand() -> None:
    a, _ = views()
    a = 1e4 * torch.nn.functional.normalize(a)
    for loss in (
        lambda a, b, impl: functional.nt_xent(a, b, normalize=False, impl=impl),
        lambda a, b, impl: functional.clip_loss(a, b, 1.0, impl=impl),
        lambda a, b, impl: functional.siglip_loss(a, b, 1.0, 0.0, impl=impl),
    ):
        value, gradients = value_and_gradients(loss, a, a.roll(1, 0), "triton")
        exact, _ = value_and_gradients(loss, a.double(), a.roll(1, 0).double(), "dense")
        assert relative_error(value, exact) < 1e-5
        assert all(bool(g.isfinite().all()) for g in gradients)


def test_large_keys_do_not_overflow_their_weighted_sum() -> None:
    direction = torch.nn.functional.normalize(torch.randn(1, 24))
    query, queue = 0.05 * direction.repeat(4, 1), 300 * direction.repeat(200, 1)
    for dtype in (torch.float32, torch.float16):
        loss = lambda a, b, impl: functional.info_nce(a, b, queue.to(a), normalize=False, impl=impl)  # noqa: E731
        assert_right(loss, query.to(dtype), query.to(dtype), 10 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_negatives_and_no_direction(dtype: torch.dtype) -> None:
    a, b = (x.to(dtype) for x in views())
    one_sample = torch.zeros(41, dtype=torch.long)
    for loss in (
        lambda a, b, impl: functional.nt_xent(a, b, ids=one_sample, impl=impl),
        lambda a, b, impl: functional.nt_xent(a[:1], b[:1], impl=impl),
        lambda a, b, impl: functional.sup_con(a, torch.arange(41), impl=impl),
        lambda a, b, impl: functional.sup_con(a, one_sample, multi_positive="in", impl=impl),
    ):
        value, gradients = value_and_gradients(loss, a, b, "triton")
        assert float(value) == 0.0
        assert all(bool((g == 0).all()) for g in gradients)
    a[3], b[7], a[9], b[9] = 0.0, 0.0, 0.0, 0.0
    for name in ("nt_xent", "info_nce", "tri_factor", "sup_con out"):
        assert_right(LOSSES[name], a, b, TOLERANCE[dtype])
        _, (gradient, _) = value_and_gradients(LOSSES[name], a, b, "triton")
        assert bool((gradient[3] == 0).all())


def test_a_row_of_nan_is_seen() -> None:
    a, b = views()
    a[5, 2] = math.nan
    for name in ("nt_xent", "info_nce"):
        assert math.isnan(float(LOSSES[name](a, b, "triton")))


# ------------------------------------------------------------------------------------------- a broken kernel is noticed


def broken_epilogue(monkeypatch: pytest.MonkeyPatch, mutate: Callable[[Any], Any]) -> None:
    original = row_kernels.activate
    monkeypatch.setattr(row_kernels, "activate", lambda *a: (original(*a)[0], mutate(original(*a)[1])))


@pytest.mark.parametrize("mutate", [lambda slope: -slope, lambda slope: slope * 0, lambda slope: slope * 1.0001])
def test_a_wrong_gradient_of_the_rows_is_noticed(mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_epilogue(monkeypatch, mutate)
    for name in ("nt_xent", "info_nce", "sup_con out", "tri_factor"):
        with pytest.raises(AssertionError):
            test_the_kernels_give_the_loss_and_its_gradient(name, torch.float32)


def test_a_gradient_rounded_on_the_way_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = backward._finish

    def rounded(raw: Tensor, q: Tensor, scale: Tensor, u: Any, gradient: Tensor, dots: Tensor) -> None:
        finish(raw, q, scale, u, gradient, dots)
        gradient.copy_(gradient.half())

    monkeypatch.setattr(backward, "_finish", rounded)
    with pytest.raises(AssertionError):
        test_the_kernels_give_the_loss_and_its_gradient("clip", torch.float32)
