"""Which implementation a call runs."""

from __future__ import annotations

import pytest
import torch

from ssl_heads import functional, similarity
from ssl_heads.similarity import operators
from ssl_heads.similarity.triton import configurations


@pytest.mark.parametrize(("rows", "columns", "chosen"), [(128, 128, "dense"), (129, 128, "tiled"), (1, 65536, "tiled")])
def test_auto_stores_only_small_matrices(rows: int, columns: int, chosen: str) -> None:
    assert similarity.implementation("auto", torch.zeros(rows, 2), columns) == chosen


@pytest.mark.parametrize("impl", ["dense", "tiled", "triton"])
def test_an_explicit_choice_is_kept(impl: similarity.Impl) -> None:
    for rows in (1, 4096):
        assert similarity.implementation(impl, torch.zeros(rows, 2), rows) == impl


@pytest.mark.parametrize("name", ["dense", "auto", "another"])
def test_no_backend_of_another_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"'tiled', 'triton'; got '{name}'"):
        operators.backend(name)
    if name != "dense":
        with pytest.raises(ValueError, match=name):
            operators.block_backend(name)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("gfx942:sramecc+:xnack-", "gfx942"),
        ("gfx942", "gfx942"),
        ("gfx90a:sramecc+:xnack-", None),
        ("gfx9420", None),
        ("gfx1100", None),
        ("sm_90", None),
    ],
)
def test_an_amd_device_has_kernels_where_the_table_has_its_tiles(name: str, rows: str | None) -> None:
    assert configurations.of_amd(name) == rows


@pytest.mark.parametrize(("major", "rows"), [(7, None), (8, "sm_80"), (9, "sm_90"), (10, "sm_100"), (12, "sm_80")])
def test_an_nvidia_device_has_kernels_from_ampere_on(major: int, rows: str | None) -> None:
    assert configurations.of_nvidia(major) == rows


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_scale_is_taken_in_any_shape_and_dtype(
    impl: similarity.Impl, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, scale = torch.randn(6, 4), torch.full(shape, 0.5, dtype=dtype, requires_grad=True)
    bias = torch.full(shape, 0.25, dtype=dtype, requires_grad=True)
    values = (
        similarity.log_sum_exp(x, x, scale, impl=impl)[0].sum(),
        similarity.self_log_sum_exp(x, scale, impl=impl).sum(),
        similarity.softplus_sum(x, x, scale, bias, exclusion=similarity.Exclusion.nothing(), impl=impl),
    )
    logits = 0.5 * x @ x.T
    lse = logits.logsumexp(1).sum()
    for value, expected in zip(values, (lse, lse, torch.nn.functional.softplus(logits + 0.25).sum()), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected)
        (gradient,) = torch.autograd.grad(value, scale)
        assert gradient.shape == shape
        assert gradient.dtype == dtype


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
