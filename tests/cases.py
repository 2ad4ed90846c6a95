"""Every loss with inputs for it, our function and its oracle: the table that the tests of all losses run over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from ssl_heads import functional as ours
from ssl_heads.similarity import tiled
from tests import oracles
from tests.checks import assert_gradient_close, relative_error

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One loss in one configuration.

    Attributes:
        name: Identifies the case in a test's name.
        build: ``(n, d)`` to inputs in float64 whose numbers are exact in float32.
        loss: Our function of the inputs and the implementation.
        oracle: The literal transcription.
        impls: The implementations there are.
        no_gradient: Floating inputs that get no gradient.
    """

    name: str
    build: Callable[[int, int], Inputs]
    loss: Callable[..., Tensor]
    oracle: Callable[..., Tensor]
    impls: tuple[str, ...] = ("dense", "tiled")
    no_gradient: tuple[str, ...] = ()

    def __call__(self, inputs: Inputs, impl: str) -> Tensor:
        return self.loss(**inputs) if self.impls == ("moments",) else self.loss(**inputs, impl=impl)

    def differentiable(self, inputs: Inputs) -> list[str]:
        return [name for name, x in inputs.items() if x.is_floating_point() and name not in self.no_gradient]

    def __repr__(self) -> str:
        return self.name


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers that float32 holds exactly."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def views(n: int, d: int) -> Inputs:
    """Two views that agree in part."""
    z0 = normal(1, n, d)
    return {"z0": z0, "z1": (z0 + normal(2, n, d)).float().double()}


def small_views(n: int, d: int) -> Inputs:
    return {name: (0.5 * z).float().double() for name, z in views(n, d).items()}


def ids(n: int, seed: int = 3) -> Tensor:
    """About two samples an id, -2 among the ids, and a quarter of the samples without one."""
    ids = torch.randint(-2, max(1, n // 2) - 2, (n,), generator=torch.Generator().manual_seed(seed))
    ids[1::4] = -1
    return ids


def labels(n: int) -> Tensor:
    """Classes of about four rows, one row alone in its class, and every fifth row without one."""
    y = torch.randint(0, max(1, n // 4), (n,), generator=torch.Generator().manual_seed(4))
    y[0] = -7
    y[4::5] = -1
    return y


def importance(d: int) -> Tensor:
    return torch.linspace(0.5, 2.0, d).double()


def towers(n: int, d: int) -> Inputs:
    z = views(n, d)
    image, text = (torch.nn.functional.normalize(z[name], dim=1).float().double() for name in ("z0", "z1"))
    return {"image_features": image, "text_features": text}


def queries(n: int, d: int) -> Inputs:
    z = views(n, d)
    return {"query": z["z0"], "key": z["z1"]}


def classes(n: int, d: int) -> Inputs:
    return {"embeddings": normal(6, n, d), "labels": labels(n)}


def scalar(value: float) -> Tensor:
    return torch.tensor(value).double()


CASES = (
    Case("nt_xent", views, ours.nt_xent, oracles.nt_xent),
    Case(
        "nt_xent-raw",
        small_views,
        lambda z0, z1, impl: ours.nt_xent(z0, z1, 1.0, normalize=False, impl=impl),
        lambda z0, z1: oracles.nt_xent(z0, z1, 1.0, normalize=False),
    ),
    Case("nt_xent-ids", lambda n, d: {**views(n, d), "ids": ids(n)}, ours.nt_xent, oracles.nt_xent),
    Case(
        "nt_xent-learned-temperature",
        lambda n, d: {**views(n, d), "temperature": scalar(0.3)},
        ours.nt_xent,
        oracles.nt_xent,
    ),
    Case("info_nce", queries, ours.info_nce, oracles.info_nce),
    Case(
        "info_nce-queue",
        lambda n, d: {**queries(n, d), "queue": normal(5, 2 * n + 3, d)},
        ours.info_nce,
        oracles.info_nce,
        no_gradient=("queue",),
    ),
    Case(
        "info_nce-queue-ids",
        lambda n, d: {**queries(n, d), "queue": normal(5, n, d), "ids": ids(n), "queue_ids": ids(n, 10)},
        ours.info_nce,
        oracles.info_nce,
        no_gradient=("queue",),
    ),
    Case("clip", lambda n, d: {**towers(n, d), "logit_scale": scalar(10.0)}, ours.clip_loss, oracles.clip),
    Case(
        "siglip",
        lambda n, d: {**towers(n, d), "logit_scale": scalar(6.0), "logit_bias": scalar(-3.0)},
        ours.siglip_loss,
        oracles.siglip,
    ),
    Case("sup_con-out", classes, ours.sup_con, oracles.sup_con),
    Case(
        "sup_con-in",
        classes,
        lambda embeddings, labels, impl: ours.sup_con(embeddings, labels, multi_positive="in", impl=impl),
        lambda embeddings, labels: oracles.sup_con(embeddings, labels, multi_positive="in"),
    ),
    Case(
        "tri_factor",
        lambda n, d: {**views(n, d), "importance": importance(d)},
        ours.tri_factor_contrast,
        oracles.tri_factor,
    ),
    Case(
        "tri_factor-two-towers",
        lambda n, d: {**views(n, d), "importance": importance(d)},
        ours.tri_factor_two_towers,
        oracles.tri_factor_two_towers,
    ),
    Case("spectral", views, ours.spectral_contrastive, oracles.spectral, ("moments",)),
    Case(
        "spectral-raw",
        small_views,
        lambda z0, z1: ours.spectral_contrastive(z0, z1, normalize=False),
        lambda z0, z1: oracles.spectral(z0, z1, normalize=False),
        ("moments",),
    ),
    Case(
        "tri_factor-spectral",
        lambda n, d: {**views(n, d), "importance": importance(d)},
        ours.tri_factor_spectral,
        oracles.tri_factor_spectral,
        ("moments",),
    ),
    Case(
        "tri_factor-spectral-two-towers",
        lambda n, d: {**views(n, d), "importance": importance(d)},
        ours.tri_factor_spectral_two_towers,
        oracles.tri_factor_spectral_two_towers,
        ("moments",),
    ),
    Case("decorrelation", lambda n, d: {"z": normal(7, n, d)}, ours.decorrelation, oracles.decorrelation, ("moments",)),
    Case(
        "decorrelation-raw",
        lambda n, d: {"z": normal(7, n, d)},
        lambda z: ours.decorrelation(z, normalize=False),
        lambda z: oracles.decorrelation(z, normalize=False),
        ("moments",),
    ),
    Case(
        "nonneg_cross_entropy",
        lambda n, d: {
            "features": normal(8, n, d).abs(),
            "weight": normal(9, 5, d),
            "labels": torch.where(ids(n) == -1, -1, ids(n) % 5),
        },
        ours.nonneg_cross_entropy,
        oracles.nonneg_cross_entropy,
        ("moments",),
    ),
)
BY_NAME = {case.name: case for case in CASES}
IN_TILES = tuple(case for case in CASES if "tiled" in case.impls)
WITH_IMPLS = tuple((case, impl) for case in CASES for impl in case.impls)


def leaves(case: Case, inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The inputs in one floating dtype, as leaves that want a gradient where the loss gives one."""
    copies = {}
    for name, x in inputs.items():
        copy = x.detach().clone().to(dtype) if x.is_floating_point() else x
        copies[name] = copy.requires_grad_() if name in case.differentiable(inputs) else copy
    return copies


def value_and_gradients(loss: Callable[[Inputs], Tensor], case: Case, inputs: Inputs) -> tuple[Tensor, Inputs]:
    value = loss(inputs)
    names = case.differentiable(inputs)
    gradients = torch.autograd.grad(value, [inputs[name] for name in names])
    return value.detach(), dict(zip(names, gradients, strict=True))


@cache
def truth(case: Case, n: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Inputs]:
    """The oracle's value and gradients in float64, at inputs rounded to ``dtype``."""
    rounded = leaves(case, case.build(n, d), dtype)
    inputs = leaves(case, rounded, torch.float64)
    return value_and_gradients(lambda x: case.oracle(**x), case, inputs)


def assert_matches_oracle(case: Case, impl: str, n: int, d: int, dtype: torch.dtype, rtol: float) -> None:
    """Value and every gradient by relative norm; what the oracle says is zero must be zero to rounding."""
    value, gradients = truth(case, n, d, torch.float32 if dtype == torch.float64 else dtype)
    inputs = leaves(case, case.build(n, d), dtype)
    actual, actual_gradients = value_and_gradients(lambda x: case(x, impl), case, inputs)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert actual.shape == ()
    assert torch.isclose(actual.double(), value, rtol=rtol, atol=rtol), f"{actual} is not {value}"
    for name, expected in gradients.items():
        gradient = actual_gradients[name]
        assert gradient.dtype == inputs[name].dtype
        assert gradient.shape == expected.shape
        if expected.norm() < 1e-12:
            assert gradient.norm() <= rtol, f"{name} should get no gradient, got norm {gradient.norm()}"
        elif expected.ndim == 0:
            assert relative_error(gradient, expected) <= rtol, f"{name}: {gradient} is not {expected}"
            assert relative_error(-gradient, expected) > rtol
        else:
            assert_gradient_close(gradient, expected, rtol)


def use_small_tiles(monkeypatch: pytest.MonkeyPatch, size: int) -> list[tuple[int, int]]:
    """Make the tiles ``size x size`` at most, none of them kept; the list that is returned fills with their shapes."""
    monkeypatch.setattr(tiled, "TILE", dict.fromkeys(tiled.TILE, size))
    monkeypatch.setattr(tiled, "SAVED_BYTES", 0)
    shapes = []
    original = tiled.matmul_nt

    def recorded(query: Tensor, key: Tensor) -> Tensor:
        tile = original(query, key)
        shapes.append(tuple(tile.shape))
        return tile

    monkeypatch.setattr(tiled, "matmul_nt", recorded)
    return shapes


def assert_ragged(shapes: list[tuple[int, int]], size: int) -> None:
    """There were several tiles on each axis, the last one smaller than the others, and none larger than asked."""
    assert shapes, "nothing went through the tiles"
    for axis in (0, 1):
        extents = {shape[axis] for shape in shapes}
        assert max(extents) == size, f"tiles of {extents}, not of {size}"
        assert len(extents) > 1, f"no ragged tail: all tiles are {extents}"
