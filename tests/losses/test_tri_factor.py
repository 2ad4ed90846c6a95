"""Tri-factor contrast: an importance that is trained, by both views, and that somebody notices when it is not."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from ssl_heads import FeatureImportance, NTXentLoss, TriFactorContrast, functional, param_groups
from ssl_heads.losses.tri_factor import STEPS_BEFORE_WARNING
from tests.checks import relative_error

N, D = 12, 6
FORMS = tuple(itertools.product(("infonce", "spectral"), (False, True)))
every_form = pytest.mark.parametrize(("kind", "two_towers"), FORMS)


def two_views() -> tuple[Tensor, Tensor]:
    z0 = torch.randn(N, D)
    return z0, z0 + 0.5 * torch.randn(N, D)


@every_form
def test_the_loss_is_its_terms(kind: str, two_towers: bool) -> None:
    z0, z1 = two_views()
    loss = TriFactorContrast(D, kind=kind, two_towers=two_towers, decorrelation_weight=0.3)
    terms = loss.terms(z0, z1)
    assert torch.isclose(loss(z0, z1), terms.contrast + 0.3 * terms.decorrelation)
    if two_towers:
        expected = functional.decorrelation(z0) + functional.decorrelation(z1)
    else:
        expected = functional.decorrelation(torch.cat([z0, z1]))
    assert torch.isclose(terms.decorrelation, expected)
    assert terms.decorrelation > 0
    without = TriFactorContrast(D, kind=kind, two_towers=two_towers, decorrelation_weight=0.0)
    assert torch.isclose(without(z0, z1), terms.contrast)


def test_importance_of_one_is_nt_xent() -> None:
    z0, z1 = two_views()
    assert torch.isclose(TriFactorContrast(D, temperature=0.3).terms(z0, z1).contrast, NTXentLoss(0.3)(z0, z1))


@pytest.mark.parametrize(("kind", "two_towers"), [("infonce", False), ("infonce", True), ("spectral", False)])
def test_importance_gets_its_gradient_from_the_rows_of_both_views(kind: str, two_towers: bool) -> None:
    """The gradient of s is a sum over rows: take the share of each view's rows by a scale that each row owns."""
    z0, z1 = (z.double() for z in two_views())
    rows = torch.ones(2, N, D, dtype=torch.float64, requires_grad=True)
    u0, u1 = functional.safe_normalize(z0), functional.safe_normalize(z1)
    if kind == "spectral":
        s01 = (u0 * rows[0]) @ u1.T
        negative = 1 - torch.eye(N, dtype=torch.float64)
        s = torch.cat([u0 * rows[0], u1 * rows[1]]) @ torch.cat([u0, u1]).T
        loss = -(s01.diagonal() + (u1 * rows[1] @ u0.T).diagonal()).mean()
        loss = loss + (s.square() * negative.repeat(2, 2)).sum() / (2 * N * (2 * N - 2))
        actual = functional.tri_factor_spectral
        temperature = ()
    else:
        if two_towers:
            s = torch.cat([(u0 * rows[0]) @ u1.T, (u1 * rows[1]) @ u0.T]) / 0.2
            loss = torch.nn.functional.cross_entropy(s, torch.arange(N).repeat(2))
            actual = functional.tri_factor_two_towers
        else:
            s = torch.cat([u0 * rows[0], u1 * rows[1]]) @ torch.cat([u0, u1]).T / 0.2
            s = s.masked_fill(torch.eye(2 * N, dtype=torch.bool), -torch.inf)
            loss = torch.nn.functional.cross_entropy(s, torch.arange(2 * N).roll(N))
            actual = functional.tri_factor_contrast
        temperature = (0.2,)
    importance = torch.ones(D, dtype=torch.float64, requires_grad=True)
    value = actual(z0, z1, importance, *temperature)
    assert relative_error(value, loss) < 1e-12
    (shares,) = torch.autograd.grad(loss, rows)
    (gradient,) = torch.autograd.grad(value, importance)
    by_view = shares.sum(1)
    assert by_view[0].norm() > 0.1 * gradient.norm()
    assert by_view[1].norm() > 0.1 * gradient.norm()
    assert relative_error(gradient, by_view.sum(0)) < 1e-10
    assert relative_error(gradient, by_view[0]) > 0.1, "the released code: the rows of one view only"


@every_form
@pytest.mark.parametrize("owned_by_a_model", [True, False])
def test_importance_moves_in_one_step(kind: str, two_towers: bool, owned_by_a_model: bool) -> None:
    importance = FeatureImportance(D)
    if owned_by_a_model:
        loss = TriFactorContrast(importance=importance, kind=kind, two_towers=two_towers)
        groups = param_groups(importance, lr=0.1, weight_decay=0.1)
    else:
        loss = TriFactorContrast(D, kind=kind, two_towers=two_towers)
        importance = loss.importance
        groups = param_groups(loss, lr=0.1, weight_decay=0.1)
    assert [group["weight_decay"] for group in groups] == [0.0]
    optimizer = torch.optim.SGD(groups)
    before = importance().detach().clone()
    loss(*two_views()).backward()
    assert (importance.theta.grad != 0).all()
    optimizer.step()
    assert (importance() != before).all()


def test_importance_that_matters_rises() -> None:
    """Dimensions 0 and 1 hold what the views share, the others noise: training S orders them so."""
    torch.manual_seed(0)
    loss = TriFactorContrast(D, decorrelation_weight=0.0)
    optimizer = torch.optim.Adam(param_groups(loss, lr=0.05, weight_decay=0.0))
    for _ in range(60):
        shared = torch.cat([torch.randn(64, 2), torch.zeros(64, D - 2)], 1)
        z0, z1 = shared + 0.5 * torch.randn(64, D), shared + 0.5 * torch.randn(64, D)
        optimizer.zero_grad()
        loss(z0, z1).backward()
        optimizer.step()
    assert set(loss.importance.order()[:2].tolist()) == {0, 1}


# ---------------------------------------------------------------------------------------------------------- the warning


def elsewhere() -> torch.optim.Optimizer:
    """An optimiser that does not hold the importance."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])


def warnings_in(loss: TriFactorContrast, steps: int, after_each=None) -> list[str]:
    after_each = elsewhere().step if after_each is None else after_each
    z0, z1 = two_views()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            loss(z0, z1).backward()
            after_each()
    return [str(w.message) for w in caught]


def test_an_importance_that_nothing_updates_is_reported_once() -> None:
    loss = TriFactorContrast(D)
    assert warnings_in(loss, STEPS_BEFORE_WARNING) == []
    (message,) = warnings_in(loss, 1)
    assert "importance has not changed while optimisers took 100 steps" in message
    assert "add_param_group" in message
    assert warnings_in(loss, 3 * STEPS_BEFORE_WARNING) == []


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
        lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    ],
    ids=["sgd", "adamw", "foreach", "fused"],
)
def test_an_importance_that_moves_is_not_reported(optimizer) -> None:
    loss = TriFactorContrast(D)
    step = optimizer(loss.parameters())
    assert warnings_in(loss, 2 * STEPS_BEFORE_WARNING + 5, step.step) == []


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_small_batches_of_one_step_are_no_steps(set_to_none: bool, fused: bool) -> None:
    """Gradient accumulation over more small batches than the warning waits steps, and calls without training."""
    loss, z = TriFactorContrast(D), two_views()
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2, fused=fused)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            for _ in range(STEPS_BEFORE_WARNING + 28):
                loss(*z).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
    assert warnings_in(TriFactorContrast(D), 3 * STEPS_BEFORE_WARNING, after_each=lambda: None) == []


def test_several_optimisers_between_two_calls_are_one_step() -> None:
    loss, others = TriFactorContrast(D), [elsewhere() for _ in range(5)]
    assert warnings_in(loss, STEPS_BEFORE_WARNING, lambda: [other.step() for other in others]) == []
    assert len(warnings_in(loss, 1)) == 1


def test_a_recomputed_loss_is_no_step() -> None:
    loss, z = TriFactorContrast(D), [z.requires_grad_() for z in two_views()]
    step = elsewhere().step
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(STEPS_BEFORE_WARNING - 1):
            torch.utils.checkpoint.checkpoint(loss, *z, use_reentrant=False).backward()
            step()
    assert len(warnings_in(loss, 2)) == 1


def test_updates_that_stop_are_reported() -> None:
    loss = TriFactorContrast(D)
    step = torch.optim.SGD(loss.parameters(), lr=0.01)
    assert warnings_in(loss, 150, step.step) == []
    assert len(warnings_in(loss, STEPS_BEFORE_WARNING + 2)) == 1


def test_nothing_is_reported_where_nothing_trains() -> None:
    frozen = TriFactorContrast(D)
    frozen.importance.requires_grad_(False)
    z0, z1 = two_views()
    evaluated = TriFactorContrast(D).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = elsewhere().step
        for _ in range(STEPS_BEFORE_WARNING + 5):
            frozen(z0, z1)
            evaluated(z0, z1)
            step()
    watched = TriFactorContrast(D)
    with torch.no_grad():
        assert [watched(z0, z1) for _ in range(STEPS_BEFORE_WARNING + 5)]
    assert warnings_in(watched, 1) == []


def test_the_warning_points_at_the_user() -> None:
    loss = TriFactorContrast(D)
    z0, z1 = two_views()
    step = elsewhere().step
    with pytest.warns(UserWarning, match="importance has not changed") as record:  # noqa: PT031
        for _ in range(STEPS_BEFORE_WARNING + 1):
            loss(z0, z1)
            step()
    (warning,) = record
    assert "ssl_heads" not in warning.filename
