"""The quadratic equations: literal transcriptions, golden values, closed forms, factorisation identities."""

from __future__ import annotations

import pytest
import torch

from ssl_heads import functional as ours
from tests import oracles
from tests.cases import CASES, Case, assert_matches_oracle, normal
from tests.checks import assert_gradient_close, relative_error
from tests.functional.test_contrastive import golden_importance, golden_views

RTOL = {torch.float64: 1e-10, torch.float32: 1e-5}
QUADRATIC = tuple(c for c in CASES if "spectral" in c.name or "decorrelation" in c.name)


@pytest.mark.parametrize("n", [1, 2, 7, 41, 257])
@pytest.mark.parametrize("case", QUADRATIC, ids=str)
def test_value_and_gradients(case: Case, n: int) -> None:
    for dtype, rtol in RTOL.items():
        assert_matches_oracle(case, "moments", n, 16, dtype, rtol)


@pytest.mark.parametrize(("n", "width"), [(7, 1), (7, 3), (41, 3), (7, 37), (3, 101), (37, 37)])
@pytest.mark.parametrize("case", QUADRATIC, ids=str)
def test_fewer_and_more_rows_than_dimensions(case: Case, n: int, width: int) -> None:
    assert_matches_oracle(case, "moments", n, width, torch.float64, 1e-10)


def test_decorrelation_of_many_rows() -> None:
    z = normal(1, 1271, 7).requires_grad_()
    actual, expected = ours.decorrelation(z), oracles.decorrelation(z)
    assert relative_error(actual, expected) < 1e-12
    assert_gradient_close(torch.autograd.grad(actual, z)[0], torch.autograd.grad(expected, z)[0], 1e-10)


def test_golden_values() -> None:
    z0, z1 = golden_views()
    paper = ours.tri_factor_spectral(z0, z1, golden_importance())
    assert paper.item() == pytest.approx(-0.40065237550245947, abs=1e-9)
    # The note sums the squares; ours divides by the width.
    assert ours.decorrelation(torch.cat([z0, z1])).item() * 6 == pytest.approx(14.258085948824753, abs=1e-9)


def test_golden_values_of_the_released_tri_factor_code() -> None:
    """Its forms follow from ours: importance on the rows of one view, the mean of squares, plain unit rows."""
    z0, z1 = golden_views()
    q = oracles.unit(torch.cat([z0, z1]))
    rows = torch.cat([q[:4] * golden_importance(), q[4:]])
    s = oracles.cells(rows @ q.T / 0.2)
    contrast = oracles.mean(
        [oracles.cross_entropy(s[i][(i + 4) % 8], [s[i][j] for j in range(8) if j % 4 != i % 4]) for i in range(8)]
    )
    assert contrast.item() == pytest.approx(3.299744831283595, abs=1e-9)
    # mean over d x d of (q^T q / n - I)^2; unscaled unit rows are ours with normalize=False.
    assert ours.decorrelation(q, normalize=False).item() / 6 == pytest.approx(0.1267423502691549, abs=1e-9)
    # without the division by n: rows multiplied by sqrt(n)
    assert ours.decorrelation(q * 8**0.5, normalize=False).item() / 6 == pytest.approx(0.7226215283370248, abs=1e-9)


@pytest.mark.parametrize("loss", [ours.tri_factor_spectral, ours.tri_factor_spectral_two_towers])
def test_importance_of_one_changes_nothing(loss) -> None:
    z0, z1 = normal(1, 9, 5), normal(2, 9, 5)
    ones = torch.ones(5, dtype=torch.float64)
    if loss is ours.tri_factor_spectral:
        expected = ours.spectral_contrastive(z0, z1)
    else:
        expected = oracles.tri_factor_spectral_two_towers(z0, z1, ones)
    assert loss(z0, z1, ones).item() == pytest.approx(expected.item(), rel=1e-12)


def test_importance_of_one_is_nt_xent_and_clip() -> None:
    z0, z1 = normal(1, 9, 5), normal(2, 9, 5)
    ones = torch.ones(5, dtype=torch.float64)
    one_tower = ours.nt_xent(z0, z1, 0.3)
    assert ours.tri_factor_contrast(z0, z1, ones, 0.3).item() == pytest.approx(one_tower.item(), rel=1e-12)
    u0, u1 = oracles.unit(z0), oracles.unit(z1)
    both_ways = ours.clip_loss(u0, u1, 1 / 0.3)
    assert ours.tri_factor_two_towers(z0, z1, ones, 0.3).item() == pytest.approx(both_ways.item(), rel=1e-12)


def test_spectral_loss_is_an_expectation_over_pairs() -> None:
    """``-2 E_positive[s] + E_negative[s^2]``, each expectation a matrix of probabilities of pairs."""
    n, d = 7, 4
    z0, z1 = normal(1, n, d), normal(2, n, d)
    u = torch.cat([z0, z1])
    positive, negative = torch.zeros(2 * n, 2 * n).double(), torch.ones(2 * n, 2 * n).double()
    for i in range(2 * n):
        positive[i, (i + n) % (2 * n)] = 1 / (2 * n)
        negative[i, i] = negative[i, (i + n) % (2 * n)] = 0
    negative /= 2 * n * (2 * n - 2)
    s = u @ u.T
    expected = -2 * (positive * s).sum() + (negative * s**2).sum()
    assert ours.spectral_contrastive(z0, z1, normalize=False).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("loss", [ours.spectral_contrastive, lambda a, b: ours.decorrelation(torch.cat([a, b]))])
def test_rotation_invariance(loss) -> None:
    """The ambiguity that importance and non-negativity remove."""
    z0, z1 = normal(1, 9, 5), normal(2, 9, 5)
    rotation = torch.linalg.qr(normal(3, 5, 5)).Q
    assert loss(z0 @ rotation, z1 @ rotation).item() == pytest.approx(loss(z0, z1).item(), rel=1e-10)
    importance = torch.linspace(0.5, 2, 5).double()
    before = ours.tri_factor_spectral(z0, z1, importance)
    after = ours.tri_factor_spectral(z0 @ rotation, z1 @ rotation, importance)
    assert abs(before - after) > 1e-3


def test_decorrelation_range() -> None:
    """0 when and only when the second moment is the identity, d - 1 for collapsed rows, whatever the number of rows."""
    d = 6
    white = torch.linalg.qr(normal(1, d, d)).Q
    for copies in (1, 5):
        assert ours.decorrelation(white.repeat(copies, 1)).item() == pytest.approx(0, abs=1e-12)
    for n in (1, 3, 40):
        collapsed = normal(2, 1, d).repeat(n, 1)
        assert ours.decorrelation(collapsed).item() == pytest.approx(d - 1, rel=1e-12)
    assert ours.decorrelation(normal(3, 40, d)).item() > 1e-2


def test_one_pair_has_no_negatives() -> None:
    z0, z1 = normal(1, 1, 5), normal(2, 1, 5)
    cosine = (oracles.unit(z0) * oracles.unit(z1)).sum().item()
    assert ours.spectral_contrastive(z0, z1).item() == pytest.approx(-2 * cosine, abs=1e-12)
    s = torch.linspace(0.5, 2, 5).double()
    weighted = (oracles.unit(z0) * s * oracles.unit(z1)).sum().item()
    for loss in (ours.tri_factor_spectral, ours.tri_factor_spectral_two_towers):
        assert loss(z0, z1, s).item() == pytest.approx(-2 * weighted, abs=1e-12)
