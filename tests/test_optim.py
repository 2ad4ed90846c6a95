from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ssl_heads import BayesianGate, FeatureImportance, NonNegProjection, TriFactorContrast, param_groups


def find(groups: list[dict[str, Any]], parameter: nn.Parameter) -> dict[str, Any]:
    (group,) = [g for g in groups if any(p is parameter for p in g["params"])]
    return group


def test_every_parameter_is_in_one_group_and_only_matrices_decay() -> None:
    modules = [nn.Conv2d(3, 4, 3), NonNegProjection(6, 10, 4), FeatureImportance(4), BayesianGate(6, 4)]
    groups = param_groups(*modules, lr=0.1, weight_decay=0.01)
    parameters = [p for m in modules for p in m.parameters()]
    assert sum(len(g["params"]) for g in groups) == len(parameters)
    for p in parameters:
        group = find(groups, p)
        assert group["lr"] == 0.1
        assert group["weight_decay"] == (0.01 if p.ndim > 1 else 0.0)
    assert len(groups) == 2


def test_gates_get_their_own_rate_wherever_they_are() -> None:
    model = nn.ModuleDict({"head": NonNegProjection(6, 10, 4), "inner": nn.Sequential(BayesianGate(6, 4))})
    groups = param_groups(model, lr=0.1, weight_decay=0.01, gate_lr=0.5)
    gate = set(model["inner"].parameters())
    for p in model.parameters():
        group = find(groups, p)
        assert group["lr"] == (0.5 if p in gate else 0.1)
        assert group["weight_decay"] == (0.01 if p.ndim > 1 else 0.0)
    assert len(groups) == 4


def test_importances_get_their_own_rate_in_models_and_in_losses() -> None:
    shared = FeatureImportance(4)
    modules = [nn.ModuleDict({"importance": shared, "gate": BayesianGate(6, 4)}), TriFactorContrast(importance=shared)]
    modules += [TriFactorContrast(4), shared]
    groups = param_groups(*modules, lr=0.1, weight_decay=0.01, gate_lr=0.5, importance_lr=2.0)
    importances = {shared.theta, modules[2].importance.theta}
    for p in nn.ModuleList(modules).parameters():
        group = find(groups, p)
        assert group["lr"] == (2.0 if p in importances else 0.5)
        assert group["weight_decay"] == (0.01 if p.ndim > 1 else 0.0)
    torch.optim.AdamW(groups)


def test_what_fsdp1_has_flattened_is_refused() -> None:
    flat = nn.ParameterList([torch.zeros(12)])
    flat[0]._fsdp_flattened = True  # its mark
    with pytest.raises(ValueError, match=r"FSDP1 has flattened.*use_orig_params=True.*fully_shard"):
        param_groups(flat, lr=0.1, weight_decay=0.01)


def test_shared_parameters_appear_once() -> None:
    shared = nn.Linear(4, 4)
    groups = param_groups(nn.Sequential(shared, nn.ReLU(), shared), shared, lr=0.1, weight_decay=0.0)
    assert sum(len(g["params"]) for g in groups) == 2


def test_frozen_parameters_are_left_out() -> None:
    head = NonNegProjection(6, 10, 4)
    head.mlp.layers[0].weight.requires_grad_(False)
    groups = param_groups(head, lr=0.1, weight_decay=0.01)
    kept = {p for g in groups for p in g["params"]}
    assert kept == {p for p in head.parameters() if p.requires_grad}


def test_the_optimiser_moves_the_importance_and_does_not_decay_it() -> None:
    importance = FeatureImportance(3)
    optimizer = torch.optim.AdamW(param_groups(importance, lr=0.1, weight_decay=10.0))
    importance.theta.grad = torch.tensor([0.0, 1.0, -1.0])
    optimizer.step()
    first, second, third = importance().tolist()
    assert first == pytest.approx(1, abs=1e-6)
    assert second < first < third


def test_a_loss_that_owns_its_importance_contributes_it() -> None:
    loss = TriFactorContrast(4)
    groups = param_groups(loss, lr=0.1, weight_decay=0.01)
    (parameter,) = loss.parameters()
    assert find(groups, parameter)["weight_decay"] == 0


def test_modules_without_trainable_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one module"):
        param_groups(lr=0.1, weight_decay=0.0)
    with pytest.raises(ValueError, match="ReLU has no trainable parameter"):
        param_groups(nn.Linear(2, 2), nn.ReLU(), lr=0.1, weight_decay=0.0)
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), lr=0.1, weight_decay=0.0)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "gate_lr", "importance_lr"])
def test_bad_rates_are_refused(name: str) -> None:
    rates = {"lr": 0.1, "weight_decay": 0.0, "gate_lr": 0.1, name: -1.0}
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1.0"):
        param_groups(nn.Linear(2, 2), **rates)


def test_parameters_without_a_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="run a batch through it first"):
        param_groups(torch.nn.LazyLinear(4), lr=0.1, weight_decay=0.1)
    emptied = torch.nn.Linear(3, 2)
    emptied.weight.ds_shape = emptied.weight.shape
    with pytest.raises(ValueError, match=r"before deepspeed\.initialize"):
        param_groups(emptied, lr=0.1, weight_decay=0.1)
