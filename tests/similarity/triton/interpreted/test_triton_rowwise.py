"""Prologue and epilogue against the package's own functions in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_heads.functional.activation import rep_relu
from ssl_heads.functional.gate import bernoulli_kl, soft_gate, straight_through_gate
from ssl_heads.functional.normalize import safe_normalize
from ssl_heads.rowwise import kernels
from ssl_heads.rowwise.host import Settings, epilogue, prologue
from tests.checks import assert_gradient_close, relative_error

# A store in bfloat16 rounds on a device and truncates in the interpreter, which alone costs up to 2^-8.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 5e-3}
N, D = 41, 37
SEED = torch.tensor([1234567890123])
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def uniform_noise(n: int, d: int) -> Tensor:
    """The noise of the concrete gate, seen through a gate of logit 0 and temperature 1: sigmoid(logit(u)) = u."""
    rows = prologue(torch.ones(n, d), Settings(gate="concrete"), gate_logits=torch.zeros(n, d), seed=SEED)
    return rows.key[:, :d].double() / rows.inverse_norm[:, None].double()


def reference(
    z: Tensor, a: Tensor | None, s: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Key, query and divergence by rows, in float64."""
    f = {"none": lambda x: x, "relu": torch.relu, "rep_relu": rep_relu}[settings.activation](z)
    kl = None
    if a is not None:
        t = settings.temperature
        posterior = a if settings.gate == "concrete" else a / t
        if settings.gate == "straight_through":
            f = f * straight_through_gate(a, settings.threshold, t)
        elif settings.gate == "soft":
            f = f * soft_gate(a, t)
        else:
            noise = uniform_noise(*a.shape)
            f = f * torch.sigmoid((a + torch.logit(noise)) / t)
        if settings.prior is not None:
            kl = torch.stack([bernoulli_kl(row[None], settings.prior) for row in posterior])
    u = safe_normalize(f, settings.eps)
    return u, u if s is None else u * s, kl


def inputs(dtype: torch.dtype, gate: str, importance: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    z = torch.randn(N, D).to(dtype)
    z[5] = -z[5].abs()  # dies under ReLU
    z[9] = 0.0
    a = None if gate == "none" else (3 * torch.randn(N, D)).to(dtype)
    if a is not None:
        a[7] = -30.0  # closed
        a[8] = 50.0
    return z, a, torch.rand(D) if importance else None


CASES = [
    ("none", "none", False, None),
    ("relu", "none", True, None),
    ("relu", "straight_through", True, 0.2),
    ("rep_relu", "soft", False, 0.7),
    ("relu", "concrete", True, 0.2),
    ("none", "straight_through", False, None),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_forward_and_backward(case: tuple[Any, ...], dtype: torch.dtype) -> None:
    activation, gate, with_importance, prior = case
    eps = 1e-4 if dtype == torch.float16 else 1e-6
    settings = Settings(activation, gate, temperature=0.7, threshold=0.4, prior=prior, eps=eps)
    z, a, s = inputs(dtype, gate, with_importance)
    given: dict[str, Any] = {"gate_logits": a, "importance": s, "seed": SEED}
    rows = prologue(z, settings, **given)

    leaves = [None if x is None else x.double().requires_grad_() for x in (z, a, s)]
    key, query, kl = reference(*leaves, settings)  # type: ignore[arg-type]
    assert rows.key.shape == (N, 64)
    assert bool((rows.key[:, D:] == 0).all())
    assert relative_error(rows.key[:, :D], key) < TOLERANCE[dtype]
    assert relative_error(rows.query[:, :D], query) < TOLERANCE[dtype]
    zero = [9] if activation == "none" else [5, 9]
    assert bool((rows.key[zero] == 0).all())
    if kl is not None:
        assert rows.kl is not None
        torch.testing.assert_close(rows.kl.double(), kl.detach(), rtol=5e-6, atol=1e-6)

    # upstream gradients as views with a wider row, as the matrix kernels leave them
    dkey, dquery = torch.randn(N, 64).to(dtype), torch.randn(N, 64).to(dtype)
    dkl = None if kl is None else torch.randn(N)
    found = epilogue(
        z, rows.inverse_norm, settings, key_gradient=dkey[:, :D], query_gradient=None if s is None else dquery[:, :D],
        kl_gradient=dkl, **given,
    )  # fmt: skip
    value = (key * dkey[:, :D].double()).sum()
    if s is not None:
        value = value + (query * dquery[:, :D].double()).sum()
    if kl is not None and dkl is not None:
        value = value + (kl * dkl.double()).sum()
    value.backward()
    for gradient, leaf, source in zip(found, leaves, (z, a, s), strict=True):
        assert (gradient is None) == (leaf is None)
        if gradient is not None and leaf is not None and source is not None:
            assert gradient.dtype == source.dtype
            assert gradient.shape == source.shape
            assert_gradient_close(gradient, leaf.grad, TOLERANCE[source.dtype])


def test_noise_is_uniform_and_replayed() -> None:
    noise = uniform_noise(60, 100)
    assert torch.equal(noise, uniform_noise(60, 100))
    assert abs(float(noise.mean()) - 0.5) < 0.02
    assert abs(float(noise.var()) - 1 / 12) < 0.005
    assert noise.unique().numel() > 5990
    assert not torch.equal(noise[:30], noise[30:])


def test_any_strides() -> None:
    z, a = torch.randn(D, N).T, torch.randn(N, 2 * D)[:, ::2]
    settings = Settings("relu", "soft", prior=0.2)
    strided = prologue(z, settings, gate_logits=a)
    plain = prologue(z.contiguous(), settings, gate_logits=a.contiguous())
    assert torch.equal(strided.key, plain.key)
    gradient = torch.randn(D, N).T
    found = epilogue(z, strided.inverse_norm, settings, key_gradient=gradient, gate_logits=a)
    wanted = epilogue(
        z.contiguous(), plain.inverse_norm, settings, key_gradient=gradient.contiguous(), gate_logits=a.contiguous()
    )
    assert torch.equal(found.embeddings, wanted.embeddings)
    assert found.gate_logits is not None
    assert wanted.gate_logits is not None
    assert torch.equal(found.gate_logits, wanted.gate_logits)


@pytest.mark.parametrize("width", [1, 64, 300, 2500])
def test_widths(width: int) -> None:
    z, dkey = torch.randn(5, width), torch.randn(5, width)
    rows = prologue(z, Settings("relu"))
    leaf = z.double().requires_grad_()
    key = safe_normalize(torch.relu(leaf), 1e-6)
    key.backward(dkey.double())
    assert relative_error(rows.key[:, :width], key) < 1e-6
    found = epilogue(z, rows.inverse_norm, Settings("relu"), key_gradient=dkey)
    if width > 1:  # the direction of a single number has no gradient
        assert_gradient_close(found.embeddings, leaf.grad, 1e-5)


def test_a_wrong_slope_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original, kl_original = kernels.open_gate, kernels.divergence
    monkeypatch.setattr(kernels, "open_gate", lambda *a: (original(*a)[0], original(*a)[1] * 1.01))
    with pytest.raises(AssertionError):
        test_forward_and_backward(CASES[3], torch.float32)
    monkeypatch.setattr(kernels, "open_gate", original)
    monkeypatch.setattr(kernels, "divergence", lambda *a: (kl_original(*a)[0], -kl_original(*a)[1]))
    with pytest.raises(AssertionError):
        test_forward_and_backward(CASES[3], torch.float32)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        (Settings(activation="tanh"), {}, "activation"),  # type: ignore[arg-type]
        (Settings(gate="hard"), {}, "gate"),  # type: ignore[arg-type]
        (Settings(gate="soft"), {}, "gate_logits"),
        (Settings(gate="soft"), {"gate_logits": torch.zeros(3, 2)}, "shape"),
        (Settings(gate="concrete"), {"gate_logits": torch.zeros(3, 4)}, "seed"),
        (Settings(prior=1.0), {}, "prior"),
        (Settings(prior=0.2), {}, "prior.*gate"),
    ],
)
def test_mistakes(settings: Settings, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prologue(torch.zeros(3, 4), settings, **arguments)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r'float64.*impl="tiled"'):
        prologue(torch.zeros(3, 4, dtype=torch.float64))


def test_empty() -> None:
    rows = prologue(torch.zeros(0, 4))
    assert rows.key.shape == (0, 64)
