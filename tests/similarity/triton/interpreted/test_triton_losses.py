"""Every loss through the kernels equals its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_heads import functional
from tests.checks import assert_gradient_close, relative_error

LABELS = torch.arange(41) % 5
QUEUE = torch.randn(70, 24, generator=torch.Generator().manual_seed(1))
LOSSES: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
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


@pytest.mark.parametrize("name", LOSSES)
def test_the_kernels_give_the_loss_and_its_gradient(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 41, 24, generator=generator)
    results = []
    for impl, dtype in (("triton", torch.float32), ("dense", torch.float64)):
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in (a, b)]
        value = LOSSES[name](*inputs, impl)
        value.backward()
        results.append((value, inputs[0].grad))
    (value, gradient), (exact, expected) = results
    assert value.dtype == torch.float32
    assert relative_error(value, exact) < 1e-5
    assert_gradient_close(gradient, expected, 1e-5)
