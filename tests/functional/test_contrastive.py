"""The contrastive equations: literal transcriptions, golden values, closed forms, extreme logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_heads import functional as ours
from tests import oracles
from tests.cases import (
    IN_TILES,
    Case,
    assert_matches_oracle,
    assert_ragged,
    leaves,
    normal,
    use_small_tiles,
    value_and_gradients,
)
from tests.checks import assert_gradient_close, relative_error

WIDTH = 16
RTOL = {torch.float64: 1e-10, torch.float32: 1e-5}
IMPLS = ("dense", "tiled")


@pytest.mark.parametrize("n", [1, 2, 7, 41, 257])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_value_and_gradients(case: Case, impl: str, n: int) -> None:
    for dtype, rtol in RTOL.items():
        assert_matches_oracle(case, impl, n, WIDTH, dtype, rtol)


@pytest.mark.parametrize(("n", "size"), [(7, 5), (41, 12), (257, 100)])
@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_several_ragged_tiles(case: Case, n: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, rtol in RTOL.items():
        with monkeypatch.context() as patch:
            shapes = use_small_tiles(patch, size)
            assert_matches_oracle(case, "tiled", n, WIDTH, dtype, rtol)
        assert_ragged(shapes, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [127, 129, 1271])
@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_tiles_as_they_are_by_default(case: Case, n: int, dtype: torch.dtype) -> None:
    """Below, at and above the sizes where the number of tiles changes; the dense path is the reference."""
    inputs = leaves(case, case.build(n, WIDTH), dtype)
    _, expected = value_and_gradients(lambda x: case(x, "dense"), case, inputs)
    _, gradients = value_and_gradients(lambda x: case(x, "tiled"), case, inputs)
    for name, gradient in gradients.items():
        assert relative_error(gradient, expected[name]) < RTOL[dtype]
        assert relative_error(-gradient, expected[name]) > 1


@pytest.mark.parametrize("width", [1, 3, 37])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_widths(case: Case, impl: str, width: int) -> None:
    assert_matches_oracle(case, impl, 7, width, torch.float64, 1e-10)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("queued", [False, True])
def test_ids_of_a_query_and_of_a_queue(queued: bool, impl: str) -> None:
    """Equal ids are no negatives; -1, of an entry that was given none, is no sample's."""
    query, key = normal(1, 9, WIDTH).requires_grad_(), normal(2, 9, WIDTH).requires_grad_()
    queue = normal(3, 31, WIDTH) if queued else None
    ids, queue_ids = torch.arange(9) // 2, (torch.arange(31) % 7 - 1 if queued else None)
    expected = oracles.info_nce(query, key, queue, ids=ids, queue_ids=queue_ids)
    actual = ours.info_nce(query, key, queue, ids=ids, queue_ids=queue_ids, impl=impl)
    assert relative_error(actual, expected) < 1e-12
    assert relative_error(actual, oracles.info_nce(query, key, queue)) > 1e-3
    for a, e in zip(
        torch.autograd.grad(actual, (query, key)), torch.autograd.grad(expected, (query, key)), strict=True
    ):
        assert_gradient_close(a, e, 1e-10)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_long_queue(impl: str) -> None:
    query, key, queue = normal(1, 7, WIDTH), normal(2, 7, WIDTH), normal(3, 1271, WIDTH)
    query.requires_grad_()
    key.requires_grad_()
    expected = oracles.info_nce(query, key, queue)
    actual = ours.info_nce(query, key, queue, impl=impl)
    assert relative_error(actual, expected) < 1e-12
    for a, e in zip(
        torch.autograd.grad(actual, (query, key)), torch.autograd.grad(expected, (query, key)), strict=True
    ):
        assert_gradient_close(a, e, 1e-10)


# -------------------------------------------------------------------------------------------------------- golden values


def golden_views() -> tuple[Tensor, Tensor]:
    """``z[i, j] = sin(1 + 6 i + j)``: four pairs of rows of width 6."""
    z = torch.sin(1 + torch.arange(48, dtype=torch.float64)).reshape(8, 6)
    return z[:4], z[4:]


def golden_importance() -> Tensor:
    return torch.nn.functional.softplus(torch.linspace(-0.5, 0.5, 6, dtype=torch.float64))


@pytest.mark.parametrize("impl", IMPLS)
def test_golden_values(impl: str) -> None:
    z0, z1 = golden_views()
    assert ours.nt_xent(z0, z1, 0.2, impl=impl).item() == pytest.approx(3.686132668890057, abs=1e-9)
    nonneg = ours.nt_xent(ours.rep_relu(z0), ours.rep_relu(z1), 0.2, impl=impl)
    assert nonneg.item() == pytest.approx(3.209156659995014, abs=1e-9)
    gate = ours.straight_through_gate(torch.cos(torch.arange(48, dtype=torch.float64)).reshape(8, 6))
    assert gate.mean() == 0.5
    gated = torch.cat([z0, z1]).relu() * gate
    assert ours.nt_xent(gated[:4], gated[4:], 0.2, impl=impl).item() == pytest.approx(3.3672134964245677, abs=1e-9)
    tri = ours.tri_factor_contrast(z0, z1, golden_importance(), 0.2, impl=impl)
    assert tri.item() == pytest.approx(2.9772520377709046, abs=1e-9)


# --------------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("n", [2, 5, 64])
def test_identical_embeddings(impl: str, n: int) -> None:
    """When nothing tells samples apart, a softmax loss is the logarithm of the number of candidates."""
    same = torch.ones(n, 8, dtype=torch.float64)
    assert ours.nt_xent(same, same, impl=impl).item() == pytest.approx(math.log(2 * n - 1), abs=1e-12)
    assert ours.info_nce(same, same, impl=impl).item() == pytest.approx(math.log(n), abs=1e-12)
    queue = torch.ones(17, 8, dtype=torch.float64)
    assert ours.info_nce(same, same, queue, impl=impl).item() == pytest.approx(math.log(17 + 1), abs=1e-12)
    assert ours.clip_loss(same, same, 3.0, impl=impl).item() == pytest.approx(math.log(n), abs=1e-12)
    labels = torch.arange(n) % 2
    assert ours.sup_con(same, labels[labels.argsort()], impl=impl).item() == pytest.approx(
        math.log(n - 1) if n > 3 else 0.0, abs=1e-12
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_orthogonal_non_negative_floor(impl: str) -> None:
    """Disjoint supports: every negative is at cosine 0."""
    n, temperature = 16, 0.2
    z = torch.eye(n, dtype=torch.float64)
    floor = math.log1p((2 * n - 2) * math.exp(-1 / temperature))
    assert ours.nt_xent(z, z, temperature, impl=impl).item() == pytest.approx(floor, rel=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_siglip_at_zero(impl: str) -> None:
    """All logits 0: n log 2 for each row."""
    z = torch.zeros(5, 3, dtype=torch.float64)
    assert ours.siglip_loss(z, z, 1.0, 0.0, impl=impl).item() == pytest.approx(5 * math.log(2), abs=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_sup_con_of_pairs_is_nt_xent(impl: str) -> None:
    z0, z1 = normal(1, 9, WIDTH), normal(2, 9, WIDTH)
    pairs = torch.arange(9).repeat(2)
    expected = ours.nt_xent(z0, z1, 0.1, impl=impl)
    for form in ("out", "in"):
        actual = ours.sup_con(torch.cat([z0, z1]), pairs, 0.1, multi_positive=form, impl=impl)
        assert actual.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_sup_con_is_free_to_name_its_classes(impl: str) -> None:
    """Any integers, of any width and sign, in any order."""
    z = normal(1, 12, WIDTH)
    labels = torch.arange(12) % 3
    for form in ("out", "in"):
        expected = ours.sup_con(z, labels, multi_positive=form, impl=impl)
        for renamed in (labels.int(), labels.to(torch.uint8), torch.tensor([2**40, -3, 0])[labels], 2 - labels):
            actual = ours.sup_con(z, renamed, multi_positive=form, impl=impl)
            assert actual.item() == pytest.approx(expected.item(), rel=1e-13)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_row_has_a_positive(impl: str) -> None:
    for form in ("out", "in"):
        z = normal(1, 6, WIDTH).requires_grad_()
        loss = ours.sup_con(z, torch.arange(6), multi_positive=form, impl=impl)
        assert loss.item() == 0
        assert torch.equal(torch.autograd.grad(loss, z)[0], torch.zeros_like(z))


@pytest.mark.parametrize("impl", IMPLS)
def test_ids_that_exclude_everything(impl: str) -> None:
    z0, z1 = normal(1, 6, WIDTH).requires_grad_(), normal(2, 6, WIDTH)
    loss = ours.nt_xent(z0, z1, ids=torch.full((6,), 3), impl=impl)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, z0)[0], torch.zeros_like(z0))


@pytest.mark.parametrize("impl", IMPLS)
def test_ids_leave_some_rows_without_negatives(impl: str) -> None:
    """Five samples share an id and the sixth does not: all rows have negatives; with only the five, none has."""
    z0, z1 = normal(1, 6, WIDTH).requires_grad_(), normal(2, 6, WIDTH)
    ids = torch.tensor([0, 0, 0, 0, 0, 1])
    loss = ours.nt_xent(z0, z1, ids=ids, impl=impl)
    expected = oracles.nt_xent(z0, z1, ids=ids)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_gradient_close(torch.autograd.grad(loss, z0)[0], torch.autograd.grad(expected, z0)[0], 1e-10)


def test_a_bias_does_not_move_clip_but_gets_a_gradient() -> None:
    image, text = torch.nn.functional.normalize(torch.randn(2, 8, WIDTH), dim=-1)
    bias = torch.tensor([-10.0], requires_grad=True)
    loss = ours.clip_loss(image, text, 10.0, bias)
    assert torch.equal(loss, ours.clip_loss(image, text, 10.0))
    assert torch.equal(torch.autograd.grad(loss, bias)[0], torch.zeros(1))


@pytest.mark.parametrize("impl", IMPLS)
def test_the_queue_gets_no_gradient(impl: str) -> None:
    queue = torch.randn(32, WIDTH, requires_grad=True)
    query = torch.randn(8, WIDTH, requires_grad=True)
    loss = ours.info_nce(query, torch.randn(8, WIDTH), queue, impl=impl)
    assert torch.autograd.grad(loss, queue, allow_unused=True)[0] is None


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_learned_scalars_keep_their_shape(impl: str, shape: tuple[int, ...]) -> None:
    image, text = torch.nn.functional.normalize(torch.randn(2, 8, WIDTH), dim=-1)
    scale = torch.full(shape, 10.0, requires_grad=True)
    bias = torch.full(shape, -3.0, requires_grad=True)
    temperature = torch.full(shape, 0.3, requires_grad=True)
    for loss, scalars in (
        (ours.clip_loss(image, text, scale, impl=impl), (scale,)),
        (ours.siglip_loss(image, text, scale, bias, impl=impl), (scale, bias)),
        (ours.nt_xent(image, text, temperature, impl=impl), (temperature,)),
        (ours.info_nce(image, text, None, temperature, impl=impl), (temperature,)),
        (ours.sup_con(image, torch.arange(8) % 2, temperature, impl=impl), (temperature,)),
        (ours.tri_factor_contrast(image, text, torch.ones(WIDTH), temperature, impl=impl), (temperature,)),
    ):
        assert loss.shape == ()
        for gradient in torch.autograd.grad(loss, scalars):
            assert gradient.shape == shape
            assert gradient.item() != 0


# ------------------------------------------------------------------------------------------------------- extreme logits


def split_by_sign(n: int) -> tuple[Tensor, Tensor]:
    """Unit rows; the second half of the first set is at a cosine below -0.5 to every row of the second set."""
    direction = torch.nn.functional.normalize(normal(20, 1, WIDTH), dim=1)
    spread = 0.2 * normal(21, 2 * n, WIDTH)
    sign = torch.where(torch.arange(n) < n // 2, 1.0, -1.0)[:, None].double()
    a = torch.nn.functional.normalize(direction * sign + spread[:n] / WIDTH**0.5, dim=1).float().double()
    b = torch.nn.functional.normalize(direction + spread[n:] / WIDTH**0.5, dim=1).float().double()
    assert (a[n // 2 :] @ b.T).max() < -0.5
    assert (a[: n // 2] @ b.T).min() > 0.5
    return a, b


EXTREME = {
    "nt_xent": (
        lambda a, b, t, impl: ours.nt_xent(a, b, t, impl=impl),
        lambda a, b, t: oracles.nt_xent(a, b, t),
    ),
    "nt_xent-raw": (
        lambda a, b, t, impl: ours.nt_xent(a, b, t, normalize=False, impl=impl),
        lambda a, b, t: oracles.nt_xent(a, b, t, normalize=False),
    ),
    "info_nce": (
        lambda a, b, t, impl: ours.info_nce(a, b, None, t, impl=impl),
        lambda a, b, t: oracles.info_nce(a, b, None, t),
    ),
    "info_nce-queue": (
        lambda a, b, t, impl: ours.info_nce(a, a.detach().roll(1, 0), b, t, impl=impl),
        lambda a, b, t: oracles.info_nce(a, a.detach().roll(1, 0), b, t),
    ),
    "clip": (
        lambda a, b, t, impl: ours.clip_loss(a, b, 1 / t, impl=impl),
        lambda a, b, t: oracles.clip(a, b, 1 / t),
    ),
    "clip-columns": (
        lambda a, b, t, impl: ours.clip_loss(b, a, 1 / t, impl=impl),
        lambda a, b, t: oracles.clip(b, a, 1 / t),
    ),
    "siglip": (
        lambda a, b, t, impl: ours.siglip_loss(a, b, 1 / t, -10.0, impl=impl),
        lambda a, b, t: oracles.siglip(a, b, 1 / t, -10.0),
    ),
    "sup_con-in": (
        lambda a, b, t, impl: ours.sup_con(torch.cat([a, b]), labels_of(a), t, multi_positive="in", impl=impl),
        lambda a, b, t: oracles.sup_con(torch.cat([a, b]), labels_of(a), t, multi_positive="in"),
    ),
}


def labels_of(a: Tensor) -> Tensor:
    return torch.arange(2 * len(a)) % 3


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("temperature", [0.005, 0.0005], ids=["logits-200", "logits-2000"])
@pytest.mark.parametrize("name", EXTREME)
def test_logits_of_both_signs(name: str, temperature: float, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the rows see only negatives far below -100, where exp underflows; the others only far above 100.

    In float32 a logit of 200 is known to 200 x 2^-24, and a softmax weight to no better.
    """
    use_small_tiles(monkeypatch, 5)
    loss, oracle = EXTREME[name]
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 40 / temperature * 2**-24)):
        a, b = (x.to(dtype).requires_grad_() for x in split_by_sign(12))
        a64, b64 = (x.detach().double().requires_grad_() for x in (a, b))
        actual, expected = loss(a, b, temperature, impl), oracle(a64, b64, temperature)
        assert relative_error(actual, expected) <= rtol
        wanted = (a, b) if name != "info_nce-queue" else (a,)
        wanted64 = (a64, b64) if name != "info_nce-queue" else (a64,)
        for g, e in zip(torch.autograd.grad(actual, wanted), torch.autograd.grad(expected, wanted64), strict=True):
            assert torch.isfinite(g).all()
            assert_gradient_close(g, e, rtol)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bias", [-60.0, -30.0, -10.0, 0.0, 10.0, 30.0, 60.0])
def test_siglip_where_softplus_bends_and_where_it_is_straight(bias: float, impl: str) -> None:
    """Both tails of the softplus: e^-60 for the small ones, relative to themselves, and s + e^-s for the large."""
    a, b = split_by_sign(6)
    for sign in (1.0, -1.0):
        x = (sign * a[:3]).requires_grad_()
        actual = ours.siglip_loss(x, b[:3], 4.0, bias, impl=impl)
        expected = oracles.siglip(x, b[:3], 4.0, bias)
        assert relative_error(actual, expected) < 1e-14
        assert_gradient_close(torch.autograd.grad(actual, x)[0], torch.autograd.grad(expected, x)[0], 1e-12)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nearly_solved_losses_keep_their_accuracy(impl: str, dtype: torch.dtype) -> None:
    """The positive wins by 22: ``lse over all - positive`` would be exactly 0 in float32, with a zero gradient."""
    n, scale = 6, 22.0
    torch.manual_seed(1)
    orthogonal = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64)).Q[:n]
    a = torch.nn.functional.normalize(orthogonal + 0.02 * torch.randn(n, WIDTH).double(), dim=1).to(dtype)
    b = torch.nn.functional.normalize(orthogonal + 0.02 * torch.randn(n, WIDTH).double(), dim=1).to(dtype)
    s = torch.linspace(0.8, 1.2, WIDTH)
    losses = {
        "nt_xent": (
            lambda a, b: ours.nt_xent(a, b, 1 / scale, impl=impl),
            lambda a, b: oracles.nt_xent(a, b, 1 / scale),
        ),
        "info_nce": (
            lambda a, b: ours.info_nce(a, b, None, 1 / scale, impl=impl),
            lambda a, b: oracles.info_nce(a, b, None, 1 / scale),
        ),
        "clip": (lambda a, b: ours.clip_loss(a, b, scale, impl=impl), lambda a, b: oracles.clip(a, b, scale)),
        "siglip": (
            lambda a, b: ours.siglip_loss(a, b, 2 * scale, -scale, impl=impl),
            lambda a, b: oracles.siglip(a, b, 2 * scale, -scale),
        ),
        "sup_con-in": (
            lambda a, b: ours.sup_con(torch.cat([a, b]), pairs, 1 / scale, multi_positive="in", impl=impl),
            lambda a, b: oracles.sup_con(torch.cat([a, b]), pairs, 1 / scale, multi_positive="in"),
        ),
        "tri_factor": (
            lambda a, b: ours.tri_factor_contrast(a, b, s, 1 / scale, impl=impl),
            lambda a, b: oracles.tri_factor(a, b, s.double(), 1 / scale),
        ),
        "tri_factor-two-towers": (
            lambda a, b: ours.tri_factor_two_towers(a, b, s, 1 / scale, impl=impl),
            lambda a, b: oracles.tri_factor_two_towers(a, b, s.double(), 1 / scale),
        ),
    }
    pairs = torch.arange(n).repeat(2)
    for name, (loss, oracle) in losses.items():
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        x64, y64 = a.double().requires_grad_(), b.double().requires_grad_()
        actual = loss(x, y)
        expected = oracle(x64, y64)
        assert 0 < expected.item() < 2e-8, f"{name} is not nearly solved: {expected}"
        assert relative_error(actual, expected) < 1e-4, name
        gradients = torch.autograd.grad(actual, (x, y))
        if dtype == torch.float32:
            for g, e in zip(gradients, torch.autograd.grad(expected, (x64, y64)), strict=True):
                assert_gradient_close(g, e, 1e-4)
