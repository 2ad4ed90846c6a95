"""What a training script composes with the losses gives the parameters of one process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_heads import NTXentLoss
from tests.checks import assert_gradient_close
from tests.distributed import work
from tests.distributed.pool import Pool

everywhere = pytest.mark.parametrize(
    ("gather", "sizes"), [("all", (4, 3)), ("ring", (4, 3)), ("ring", (3, 2, 4))], ids=str
)


def skip_without_fully_shard() -> None:
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip(f"fully_shard of torch {torch.__version__} does not run on the CPU")


def one_process(sizes: tuple[int, ...], batches: int = 1) -> list[Tensor]:
    model, loss = work.encoder(), NTXentLoss()
    for x0, x1 in work.batches(sizes, batches):
        loss(model(x0), model(x1)).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def assert_all_close(actual: list[Tensor], expected: list[Tensor], rtol: float = 1e-10) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert_gradient_close(a, b, rtol)


@everywhere
@pytest.mark.parametrize("apart", [False, True], ids=["one module", "each wrapped"])
def test_steps_under_ddp(pool: Callable[[int], Pool], gather: str, sizes: tuple[int, ...], apart: bool) -> None:
    expected = work.train("none", None, sizes)
    start = work.train("none", None, sizes, steps=0)
    for actual in pool(len(sizes)).run(work.train, gather, sizes, sizes, 3, apart):
        assert_all_close(
            [a - s for a, s in zip(actual, start, strict=True)],
            [e - s for e, s in zip(expected, start, strict=True)],
            1e-9,
        )


@everywhere
def test_accumulation_under_no_sync(pool: Callable[[int], Pool], gather: str, sizes: tuple[int, ...]) -> None:
    for actual in pool(len(sizes)).run(work.accumulate, gather, sizes):
        assert_all_close(actual, one_process(sizes, batches=2))


@everywhere
def test_gradient_cache(pool: Callable[[int], Pool], gather: str, sizes: tuple[int, ...]) -> None:
    for actual in pool(len(sizes)).run(work.cached, gather, sizes):
        assert_all_close(actual, one_process(sizes))


@everywhere
def test_fully_sharded(pool: Callable[[int], Pool], gather: str, sizes: tuple[int, ...]) -> None:
    skip_without_fully_shard()
    for actual in pool(len(sizes)).run(work.sharded, gather, sizes):
        assert_all_close(actual, one_process(sizes))


@everywhere
def test_autocast_and_gradient_scaler(pool: Callable[[int], Pool], gather: str, sizes: tuple[int, ...]) -> None:
    expected = work.scaled_under_autocast(gather, sizes, scaled=False)
    for actual in pool(len(sizes)).run(work.scaled_under_autocast, gather, sizes, True):
        assert_all_close(actual, expected, 1e-2)  # the encoder itself rounds its gradients to bfloat16


@pytest.mark.parametrize("gather", ["all", "ring"])
def test_compiled(pool: Callable[[int], Pool], gather: str) -> None:
    for value, gradient, compiled_value, compiled_gradient in pool(2).run(work.compiled, gather, (4, 3)):
        torch.testing.assert_close(compiled_value, value)
        assert_gradient_close(compiled_gradient, gradient, 1e-10)


@pytest.mark.parametrize(
    ("adapter", "wrap"),
    [
        ("hugging face", "ddp"),
        ("hugging face", "ddp, unused are looked for"),
        ("hugging face", "fsdp"),
        ("hugging face, siglip", "ddp, unused are looked for"),
        ("hugging face, siglip", "fsdp"),
        ("open_clip", "ddp"),
        ("open_clip", "fsdp"),
    ],
)
def test_what_the_loss_borrows_from_the_model(pool: Callable[[int], Pool], adapter: str, wrap: str) -> None:
    """An importance that the loss reads outside of the forward pass gets one process's gradient, in every step."""
    if wrap == "fsdp":
        skip_without_fully_shard()
    for alone, wrapped in pool(2).run(work.borrowing, adapter, wrap, (4, 4)):
        assert alone.keys() <= wrapped.keys()
        for name, expected in alone.items():
            if expected.any():
                assert_gradient_close(wrapped[name], expected, 1e-4)
            else:  # a bias that the loss does not read
                assert not wrapped[name].any()
