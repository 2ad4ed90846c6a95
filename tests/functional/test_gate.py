from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_heads.functional.gate import bernoulli_kl, concrete_gate, soft_gate, straight_through_gate
from tests.checks import assert_gradient_close

HALF = [torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 2e-3}


def golden_logits() -> Tensor:
    i, j = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(6, dtype=torch.float64)
    return torch.cos(6 * i + j)


def kl_by_definition(logits: Tensor, prior: float) -> float:
    """The double loop, with log p and log (1 - p) taken from the logit so that they exist at saturation."""
    total = 0.0
    for row in logits.double().tolist():
        for a in row:
            p, q = (1 / (1 + math.exp(-a)), 1 / (1 + math.exp(a)))
            log_p, log_q = -math.log1p(math.exp(-a)), -math.log1p(math.exp(a))
            total += p * (log_p - math.log(prior)) + q * (log_q - math.log(1 - prior))
    return total / len(logits)


def kl_gradient(logits: Tensor, prior: float) -> Tensor:
    a = logits.detach().double()
    return a.sigmoid() * (-a).sigmoid() * (a - math.log(prior / (1 - prior))) / len(a)


# --- the three gates


def test_half_of_the_golden_gates_are_open() -> None:
    assert straight_through_gate(golden_logits()).mean() == 0.5


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_straight_through_is_hard_forward_and_the_probability_backward(dtype: torch.dtype) -> None:
    logits = (2 * torch.randn(7, 5)).to(dtype).requires_grad_()
    upstream = torch.randn(7, 5).to(dtype)
    gate = straight_through_gate(logits, threshold=0.3, temperature=0.7)
    gate.backward(upstream)
    p = (logits.detach().double() / 0.7).sigmoid()
    assert gate.dtype == dtype
    assert torch.equal(gate.double(), (p > 0.3).double())
    assert_gradient_close(logits.grad, upstream.double() * p * (1 - p) / 0.7, TOLERANCE[dtype])


def test_a_gate_at_its_threshold_is_closed() -> None:
    assert (straight_through_gate(torch.zeros(3)) == 0).all()


def test_the_gate_of_a_half_precision_logit_is_decided_in_float32() -> None:
    logits = torch.tensor([1e-3, -1e-3])
    for dtype in HALF:
        assert torch.equal(straight_through_gate(logits.to(dtype)), torch.tensor([1.0, 0.0], dtype=dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_soft_gate_is_the_tempered_probability(dtype: torch.dtype) -> None:
    logits = (2 * torch.randn(7, 5)).to(dtype).requires_grad_()
    upstream = torch.randn(7, 5).to(dtype)
    gate = soft_gate(logits, temperature=2.0)
    gate.backward(upstream)
    p = (logits.detach().double() / 2).sigmoid()
    assert_gradient_close(gate, p, TOLERANCE[dtype])
    assert_gradient_close(logits.grad, upstream.double() * p * (1 - p) / 2, TOLERANCE[dtype])


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("logit", [-1.0, 0.0, 2.0])
def test_concrete_gates_open_with_the_probability_of_their_logit(logit: float, temperature: float) -> None:
    n = 100_000
    open_share = (concrete_gate(torch.full((n,), logit), temperature) > 0.5).double().mean()
    p = 1 / (1 + math.exp(-logit))
    assert abs(float(open_share) - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_concrete_gates_harden_as_the_temperature_falls() -> None:
    def between(temperature: float) -> float:
        gate = concrete_gate(torch.zeros(10_000), temperature)
        return float(((gate > 0.05) & (gate < 0.95)).double().mean())

    assert between(0.05) < 0.1 < 0.5 < between(1.0)


def test_concrete_gradient_given_the_noise() -> None:
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(7, 5, dtype=torch.float64)
    gate = concrete_gate(logits, 0.5)
    gate.backward(upstream)
    m = gate.detach()
    assert_gradient_close(logits.grad, upstream * m * (1 - m) / 0.5, 1e-9)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gate", [soft_gate, straight_through_gate, concrete_gate])
def test_saturated_gates_are_finite(gate: object, dtype: torch.dtype) -> None:
    logits = torch.tensor([-200.0, -50.0, 0.0, 50.0, 200.0], dtype=dtype, requires_grad=True)
    m = gate(logits)  # type: ignore[operator]
    m.sum().backward()
    assert m.dtype == dtype
    assert float(m[0].detach()) < 1e-80
    assert m[-1] == 1
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# --- the divergence


def test_golden_values() -> None:
    assert float(bernoulli_kl(golden_logits(), 0.8)) == pytest.approx(1.6830309571225792, abs=1e-9)
    assert float(bernoulli_kl(golden_logits(), 0.2)) == pytest.approx(1.6924899755491774, abs=1e-9)


@pytest.mark.parametrize("prior", [1e-4, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_value_and_gradient_are_the_definitions(dtype: torch.dtype, prior: float) -> None:
    logits = (4 * torch.randn(7, 5)).to(dtype).requires_grad_()
    kl = bernoulli_kl(logits, prior)
    kl.backward()
    assert kl.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(kl.detach()) == pytest.approx(kl_by_definition(logits.detach(), prior), rel=1e-6)
    assert_gradient_close(logits.grad, kl_gradient(logits, prior), TOLERANCE[dtype])


def test_gradient_at_a_zero_logit() -> None:
    logits = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    bernoulli_kl(logits, 0.2).backward()
    assert logits.grad is not None
    assert torch.allclose(logits.grad, kl_gradient(logits, 0.2), rtol=1e-12)


@pytest.mark.parametrize("prior", [0.2, 0.8])
@pytest.mark.parametrize("size", [10.0, 17.0, 50.0, 80.0])
def test_saturated_gates_are_pulled_back_from_both_sides(size: float, prior: float) -> None:
    logits = torch.tensor([[-size, size]], requires_grad=True)
    kl = bernoulli_kl(logits, prior)
    kl.backward()
    assert float(kl.detach()) == pytest.approx(-math.log(prior) - math.log(1 - prior), rel=1e-3)
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]
    assert_gradient_close(logits.grad, kl_gradient(logits, prior), 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_it_is_finite_at_any_saturation(dtype: torch.dtype) -> None:
    for size in (50.0, 200.0, 6e4):
        logits = torch.tensor([[-size, size]], dtype=dtype, requires_grad=True)
        kl = bernoulli_kl(logits, 0.2)
        kl.backward()
        assert kl.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_it_is_zero_at_the_prior_and_positive_elsewhere() -> None:
    for prior in (0.2, 0.5, 0.8):
        at_prior = math.log(prior / (1 - prior))
        offsets = torch.arange(-50, 51, dtype=torch.float64)[:, None] / 10
        values = torch.stack([bernoulli_kl((at_prior + o)[None], prior) for o in offsets])
        assert abs(float(values[50])) < 1e-15
        assert (values[offsets.squeeze() != 0] > 0).all()


@pytest.mark.parametrize(("prior", "moves"), [(0.2, -1), (0.8, 1)])
def test_descent_closes_gates_below_one_half_and_opens_them_above(prior: float, moves: int) -> None:
    logits = torch.zeros(4, 6, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(500):
        optimizer.zero_grad()
        bernoulli_kl(logits, prior).backward()
        optimizer.step()
    assert (logits.sign() == moves).all()
    assert torch.allclose(logits.sigmoid(), torch.tensor(prior), atol=1e-3)


def test_it_is_the_mean_over_rows_of_the_sum_over_dimensions() -> None:
    logits = torch.randn(4, 3, 5, dtype=torch.float64)
    flat = bernoulli_kl(logits.flatten(0, 1), 0.2)
    assert torch.allclose(bernoulli_kl(logits, 0.2), flat)
    assert torch.allclose(bernoulli_kl(logits.flatten(0, 1).repeat(2, 1), 0.2), flat)
    assert torch.allclose(bernoulli_kl(logits.flatten(0, 1).repeat(1, 2), 0.2), 2 * flat)
    assert torch.allclose(bernoulli_kl(logits.transpose(0, 1), 0.2), flat)


def test_an_empty_batch_costs_nothing() -> None:
    assert bernoulli_kl(torch.zeros(0, 5), 0.2) == 0


def test_first_and_second_derivatives_against_finite_differences() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: bernoulli_kl(a, 0.2), (logits,))
    assert torch.autograd.gradgradcheck(lambda a: bernoulli_kl(a, 0.2), (logits,))


# --- all of them


@pytest.mark.parametrize("function", [soft_gate, straight_through_gate, lambda a: bernoulli_kl(a, 0.2)])
def test_compiles_without_a_graph_break(function: object) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")  # type: ignore[call-overload]
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    eager = logits.detach().clone().requires_grad_()
    compiled(logits).square().sum().backward()
    function(eager).square().sum().backward()  # type: ignore[operator]
    assert_gradient_close(logits.grad, eager.grad, 1e-12)


def test_the_concrete_gate_compiles_without_a_graph_break() -> None:
    compiled = torch.compile(concrete_gate, fullgraph=True, backend="aot_eager")
    gate = compiled(torch.zeros(10_000))
    assert gate.std() > 0.2
    assert abs(float((gate > 0.5).float().mean()) - 0.5) < 0.03


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_bad_temperatures_are_refused(temperature: float) -> None:
    for gate in (soft_gate, concrete_gate, lambda a, t: straight_through_gate(a, temperature=t)):
        with pytest.raises(ValueError, match=f"temperature .* got {temperature}"):
            gate(torch.zeros(2), temperature)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan])
def test_bad_probabilities_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"prior .* got {value}"):
        bernoulli_kl(torch.zeros(2, 2), value)
    with pytest.raises(ValueError, match=f"threshold .* got {value}"):
        straight_through_gate(torch.zeros(2), threshold=value)


def test_a_scalar_has_no_rows() -> None:
    with pytest.raises(ValueError, match="scalar"):
        bernoulli_kl(torch.tensor(0.0), 0.2)
