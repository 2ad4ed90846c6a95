"""Losses in the other modes of autograd: right, or an error that names impl="dense", and the same at every size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssl_heads import DeltaContrast, LpPower, NTXentLoss
from tests.cases import WITH_IMPLS, Case, leaves, value_and_gradients
from tests.losses.test_contract import positional

everywhere = pytest.mark.parametrize(("case", "impl"), WITH_IMPLS, ids=str)
SIZES = (8, 160)  # one that `auto` stores, and one that it takes in tiles


@everywhere
def test_inputs_made_in_inference_mode(case: Case, impl: str) -> None:
    """All but one of them: a frozen teacher, pseudo-labels, a scale that is not trained."""
    inputs = leaves(case, case.build(12, 6), torch.float32)
    name, *_ = case.differentiable(inputs)
    expected, gradients = value_and_gradients(lambda x: case(x, impl), case, inputs)
    with torch.inference_mode():
        frozen = {k: x.detach().clone() for k, x in inputs.items()}
    own = inputs[name].detach().requires_grad_()
    value = case({**frozen, name: own}, impl)
    assert torch.isclose(value, expected, rtol=1e-6)
    assert torch.allclose(torch.autograd.grad(value, own)[0], gradients[name], rtol=1e-4, atol=1e-7)


@everywhere
def test_a_batch_of_upstream_gradients(case: Case, impl: str) -> None:
    loss, tensors = positional(case, impl, leaves(case, case.build(12, 6), torch.float64))
    value, upstream = loss(*tensors), torch.tensor([1.0, -3.0], dtype=torch.float64)
    batched = torch.autograd.grad(value, tensors, upstream, is_grads_batched=True, retain_graph=True)
    for many, one in zip(batched, torch.autograd.grad(value, tensors), strict=True):
        assert torch.allclose(many, upstream.reshape(2, *[1] * one.ndim) * one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [NTXentLoss(), DeltaContrast("nwj", LpPower(1)).eval()], ids=["nt_xent", "delta"])
@pytest.mark.parametrize("n", [8, 600])
def test_a_batch_of_upstream_gradients_at_every_size(loss, n: int) -> None:
    z, w = torch.randn(n, 6, requires_grad=True), torch.randn(n, 6)
    value = loss(z, w)
    (many,) = torch.autograd.grad(value, z, torch.tensor([1.0, 2.0]), is_grads_batched=True, retain_graph=True)
    assert torch.allclose(many[1], 2 * torch.autograd.grad(value, z)[0], atol=1e-6)


def choices(case: Case) -> tuple[str, ...]:
    return ("moments",) if case.impls == ("moments",) else ("auto", "dense")


AUTOMATIC = [(case, impl) for case in dict(WITH_IMPLS) for impl in choices(case)]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("case", "impl"), AUTOMATIC, ids=str)
def test_torch_func_and_forward_mode(case: Case, impl: str, n: int) -> None:
    inputs = leaves(case, case.build(n, 6), torch.float64)
    loss, tensors = positional(case, impl, inputs)
    expected = torch.autograd.grad(loss(*tensors), tensors)
    x = tuple(t.detach() for t in tensors)
    everything = tuple(range(len(x)))
    for found in (torch.func.grad(loss, everything)(*x), torch.func.jacrev(loss, everything)(*x)):
        assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-12) for a, b in zip(found, expected, strict=True))
    tangents = tuple(torch.randn_like(t) for t in x)
    slope = sum((g * t).sum() for g, t in zip(expected, tangents, strict=True))
    assert torch.allclose(torch.func.jvp(loss, x, tangents)[1], slope)
    with forward_ad.dual_level():
        dual = loss(*(forward_ad.make_dual(a, t) for a, t in zip(x, tangents, strict=True)))
        assert torch.allclose(forward_ad.unpack_dual(dual).tangent, slope)


@pytest.mark.parametrize("case", [c for c, impl in WITH_IMPLS if impl == "tiled"], ids=str)
def test_tiles_say_what_to_do(case: Case) -> None:
    loss, tensors = positional(case, "tiled", leaves(case, case.build(8, 6), torch.float64))
    x = tuple(t.detach() for t in tensors)
    with pytest.raises(RuntimeError, match='pass impl="dense"'):
        torch.func.grad(loss)(*x)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match='pass impl="dense"'):
        loss(forward_ad.make_dual(x[0], torch.ones_like(x[0])), *x[1:])


def test_delta_in_blocks_under_torch_func() -> None:
    """Blocks are recomputed in the backward pass, which torch.func does not take: there is one block then."""
    z, w = torch.randn(2, 1500, 3)
    loss = DeltaContrast("nwj", LpPower(1)).eval()
    own = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(own, w), own)
    found: Tensor = torch.func.grad(lambda z: loss(z, w))(z)
    assert torch.allclose(found, expected, atol=1e-6)
