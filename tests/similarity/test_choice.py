"""Which implementation a call runs."""

from __future__ import annotations

import pytest
import torch

from ssl_heads import functional, similarity


@pytest.mark.parametrize(("rows", "columns", "chosen"), [(128, 128, "dense"), (129, 128, "tiled"), (1, 65536, "tiled")])
def test_auto_stores_only_small_matrices(rows: int, columns: int, chosen: str) -> None:
    assert similarity.implementation("auto", torch.zeros(rows, 2), columns) == chosen


@pytest.mark.parametrize("impl", ["dense", "tiled", "triton"])
def test_an_explicit_choice_is_kept(impl: similarity.Impl) -> None:
    for rows in (1, 4096):
        assert similarity.implementation(impl, torch.zeros(rows, 2), rows) == impl


def test_no_kernel_is_chosen_on_the_cpu() -> None:
    assert not similarity.kernels_run_on(torch.device("cpu"))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: functional.nt_xent(x, x, impl="triton"),
        lambda x: functional.clip_loss(x, x, 1.0, impl="triton"),
        lambda x: functional.siglip_loss(x, x, 1.0, 0.0, impl="triton"),
    ],
    ids=["nt_xent", "clip", "siglip"],
)
def test_kernels_refuse_a_cpu_tensor(loss: object) -> None:
    assert callable(loss)
    with pytest.raises(ValueError, match='impl="triton" needs CUDA or ROCm tensors and got one on cpu'):
        loss(torch.randn(8, 4))
