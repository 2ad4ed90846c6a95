"""A NaN or an infinity in what a loss reads shows in its value, and never in its gradient alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_heads import LpNorm, LpPower, NegativeCosine, NegativeDot, SquaredEuclidean
from ssl_heads import functional as ours
from tests.cases import WITH_IMPLS, Inputs, normal

D = 4


def delta(kind: str, dissimilarity: torch.nn.Module, impl: str, **options: object) -> Callable[..., Tensor]:
    return lambda z, w, alpha, alpha_tilde: ours.delta_contrast(
        z, w, kind, dissimilarity, alpha, alpha_tilde, impl=impl, **options
    )


def anchors(distance: str) -> Callable[..., Tensor]:
    return lambda embeddings, labels: ours.anchor_regression(
        embeddings, labels, torch.eye(3, D).double(), distance=distance
    )


def pairs(n: int) -> Inputs:
    return {"z": normal(1, n, D), "w": normal(2, n, D), "alpha": normal(3, n), "alpha_tilde": normal(4, n)}


LOSSES: dict[str, tuple[Callable[[int], Inputs], Callable[..., Tensor]]] = {
    f"{case}-{impl}": (lambda n, c=case: c.build(n, D), lambda c=case, i=impl, **inputs: c(inputs, i))
    for case, impl in WITH_IMPLS
}
LOSSES |= {
    f"anchors-{distance}": (
        lambda n: {"embeddings": normal(1, n, D), "labels": torch.arange(n) % 3},
        anchors(distance),
    )
    for distance in ("cosine", "euclidean", "manhattan")
}
LOSSES |= {
    f"delta-{kind}-{d}-{impl}": (pairs, delta(kind, d, impl))
    for kind, d, impl in itertools.product(
        ("nce", "infonce", "scl", "nwj"),
        (NegativeCosine(), NegativeDot(), SquaredEuclidean(), LpPower(1), LpPower(3), LpNorm(2)),
        ("dense", "tiled"),
    )
}
LOSSES |= {
    "delta-infonce-symmetric": (pairs, delta("infonce", NegativeDot(), "dense", symmetric=True)),
    "delta-scl-linear": (pairs, delta("scl", NegativeDot(), "dense", ratio="linear")),
}

# what a batch may say of its rows: who belongs together decides which rows are read
GROUPS: dict[str, Callable[[Tensor], Tensor]] = {
    "as built": lambda x: x,
    "none": lambda x: torch.full_like(x, -1),
    "all alone": lambda x: torch.arange(len(x)),
    "all together": torch.zeros_like,
}


def batches(build: Callable[[int], Inputs]):
    """The inputs of one row and of several, in every grouping that the loss takes; classes are few."""
    for n, (name, group) in itertools.product((1, 5), GROUPS.items()):
        inputs = build(n)
        grouped = [key for key, x in inputs.items() if not x.is_floating_point()]
        if not grouped and name != "as built":
            continue
        of_three = name == "all alone" and "ids" not in inputs
        yield (
            n,
            name,
            {
                k: group(x) % 3 if k in grouped and of_three else group(x) if k in grouped else x
                for k, x in inputs.items()
            },
        )


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_finite_shows_in_the_value(name: str) -> None:
    build, loss = LOSSES[name]
    for n, grouping, inputs in batches(build):
        floating = [key for key, x in inputs.items() if x.is_floating_point()]
        for key, bad in itertools.product(floating, (torch.nan, torch.inf, -torch.inf)):
            for entries in ("one", "row"):
                spoilt = {k: x.clone().requires_grad_(k in floating) for k, x in inputs.items()}
                with torch.no_grad():
                    spoilt[key].view(-1)[: 1 if entries == "one" or inputs[key].ndim < 2 else D] = bad
                where = f"{bad} in {entries} of {key}, {n} rows, {grouping}"
                if key == "temperature":
                    with pytest.raises(ValueError, match="must be a finite number above 0"):
                        loss(**spoilt)
                    continue
                value = loss(**spoilt)
                if bad != bad:
                    assert value.isnan(), where
                if value.isfinite():
                    gradients = torch.autograd.grad(value, [spoilt[k] for k in floating], allow_unused=True)
                    assert all(g is None or bool(g.isfinite().all()) for g in gradients), where
