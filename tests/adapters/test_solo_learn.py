"""solo-learn's loss functions: float64 transcriptions, and the installed package."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_heads import DeltaContrast, InfoNCELoss, NTXentLoss, SpectralLoss, SupConLoss, TriFactorContrast
from ssl_heads.adapters import SoloLearnMoCo, SoloLearnSimCLR
from tests.adapters.support import D, N, agree, literal_moco_logits, unit


def literal_solo_simclr(z: Tensor, indexes: Tensor, temperature: float) -> Tensor:
    """solo-learn's current simclr_loss_func, row by row."""
    z = F.normalize(z, dim=1)
    losses = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        weight = {j: torch.exp(z[i] @ z[j] / temperature) for j in others}
        positive = torch.stack([weight[j] for j in others if indexes[j] == indexes[i]]).sum()
        negative = torch.stack([weight[j] for j in others if indexes[j] != indexes[i]]).sum()
        losses.append(-torch.log(positive / (positive + negative)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("indexes", [torch.arange(N).repeat(2), torch.arange(4).repeat(3), torch.arange(12) % 5])
def test_solo_learn_s_own_equation_for_any_views_and_labels(indexes: Tensor) -> None:
    adapter = SoloLearnSimCLR(SupConLoss(multi_positive="in"))
    agree(
        lambda z: adapter(z, indexes=indexes, temperature=0.3),
        lambda z: literal_solo_simclr(z, indexes, 0.3),
        torch.rand(len(indexes), D),
    )


def test_two_views_of_each_sample_are_nt_xent() -> None:
    indexes = torch.randperm(100)[:N].repeat(2)
    adapter = SoloLearnSimCLR(NTXentLoss(temperature=0.9))
    agree(lambda z: adapter(z, indexes, 0.3), lambda z: literal_solo_simclr(z, indexes, 0.3), torch.randn(2 * N, D))


def test_equal_indexes_are_never_negatives_of_nt_xent() -> None:
    z, twice = torch.randn(2 * N, D), torch.tensor([0, 0, 1, 2, 3, 4]).repeat(2)
    expected = NTXentLoss(0.3)(z[:N], z[N:], twice[:N])
    torch.testing.assert_close(SoloLearnSimCLR(NTXentLoss())(z, twice, 0.3), expected)
    assert SoloLearnSimCLR(NTXentLoss())(z, torch.arange(N).repeat(2), 0.3) > expected


@pytest.mark.parametrize("loss", [NTXentLoss(0.7), TriFactorContrast(D, temperature=0.7), SupConLoss(0.7)])
def test_the_temperature_of_the_call_counts_and_the_loss_keeps_its_own(loss: nn.Module) -> None:
    z, indexes = torch.randn(2 * N, D), torch.arange(N).repeat(2)
    values = [float(SoloLearnSimCLR(loss)(z, indexes, temperature).detach()) for temperature in (0.2, 0.7)]
    own = loss(z, indexes) if isinstance(loss, SupConLoss) else loss(z[:N], z[N:])
    assert values[1] == pytest.approx(own.item(), rel=1e-6)
    assert abs(values[0] - values[1]) > 0.1
    with pytest.raises(ValueError, match="temperature must be a finite number above 0, got -1"):
        SoloLearnSimCLR(loss)(z, indexes, -1)
    assert loss.temperature == 0.7


@pytest.mark.parametrize("loss", [SpectralLoss(), DeltaContrast(), TriFactorContrast(D, kind="spectral")])
def test_a_temperature_that_nothing_would_use_is_refused(loss: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"{type(loss).__name__} has no temperature.*write `lambda z"):
        SoloLearnSimCLR(loss)


def test_what_is_not_two_views_is_refused() -> None:
    adapter = SoloLearnSimCLR(NTXentLoss())
    with pytest.raises(ValueError, match=r"two rows of each sample, got z of shape \(9, 8\).*SupConLoss"):
        adapter(torch.randn(9, D), torch.arange(3).repeat(3))
    with pytest.raises(ValueError, match=r"equal row by row.*at row 0 they are 0 and 6"):
        adapter(torch.randn(12, D), torch.arange(12))
    with pytest.raises(ValueError, match=r"indexes must hold one integer for each row of z: expected shape \(12,\)"):
        adapter(torch.randn(12, D), torch.arange(6))


def literal_solo_moco(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    logits = literal_moco_logits(query, key, queue, temperature)
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


@pytest.mark.parametrize("loss", [None, InfoNCELoss(0.9, normalize=False)])
def test_solo_learn_s_moco(loss: InfoNCELoss | None) -> None:
    key, queue = unit(N, D), unit(40, D).T
    agree(
        lambda q: SoloLearnMoCo(loss)(q, key, queue, 0.4),
        lambda q: literal_solo_moco(q, key.double(), queue.double(), 0.4),
        unit(N, D),
    )


def test_a_queue_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(d, K\) = \(8, K\) beside a query of shape \(6, 8\), got \(40, 8\)"):
        SoloLearnMoCo()(unit(N, D), unit(N, D), unit(40, D), 0.4)
    with pytest.raises(ValueError, match="InfoNCELoss takes, got NTXentLoss"):
        SoloLearnMoCo(NTXentLoss())  # type: ignore[arg-type]


def test_the_installed_solo_learn_computes_the_same() -> None:
    """Its leaf modules run without the packages that its training loop imports."""
    import importlib.util

    solo = importlib.util.find_spec("solo")
    if solo is None or not solo.submodule_search_locations:
        pytest.skip("needs solo-learn")
    (root,) = solo.submodule_search_locations
    modules = []
    for name in ("simclr", "moco"):
        spec = importlib.util.spec_from_file_location(f"solo_{name}", f"{root}/losses/{name}.py")
        assert spec is not None
        assert spec.loader is not None
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    simclr, moco = modules
    z, query, key, queue = torch.randn(2 * N, D), unit(N, D), unit(N, D), unit(40, D).T
    torch.testing.assert_close(
        SoloLearnSimCLR(NTXentLoss())(z, torch.arange(N).repeat(2), 0.3), simclr.simclr_loss_func(z[:N], z[N:], 0.3)
    )
    torch.testing.assert_close(SoloLearnMoCo()(query, key, queue, 0.3), moco.moco_loss_func(query, key, queue, 0.3))
