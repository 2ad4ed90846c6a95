"""The tiled passes: memory that grows with the number of rows and not with its square, and an exact choice of path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_heads import similarity
from ssl_heads.similarity import Exclusion, tiled
from tests.cases import IN_TILES, Case, leaves, use_small_tiles, value_and_gradients
from tests.checks import assert_gradient_close, relative_error

D = 16
SIZES = (256, 512, 1024)
TILE = 64

# ------------------------------------------------------------------------------------------------- saved for backward


def saved_bytes(loss: Callable[[], Tensor]) -> tuple[int, int]:
    """Bytes that autograd keeps until the backward pass, each storage once, and elements of the largest tensor."""
    storages: dict[int, int] = {}
    keep, largest = [], 0

    def pack(x: Tensor) -> Tensor:
        nonlocal largest
        storage = x.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        largest = max(largest, storage.nbytes() // x.element_size())
        keep.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss()
    return sum(storages.values()), largest


def rows_of(case: Case) -> int:
    """Rows of the similarity matrix for each row of the input."""
    return 2 if case.name.startswith(("nt_xent", "tri_factor")) and "towers" not in case.name else 1


@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_saved_for_backward_is_linear(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_tiles(monkeypatch, TILE)
    measured = {}
    for n in SIZES:
        inputs = leaves(case, case.build(n, D), torch.float32)
        measured[n], largest = saved_bytes(lambda x=inputs: case(x, "tiled"))
        assert largest < n * n, f"a tensor of {largest} elements is kept for {n} rows"
        assert largest <= 4 * (2 * n + 3) * D
    slope = (measured[1024] - measured[256]) / (1024 - 256)
    intercept = measured[256] - 256 * slope
    assert measured[512] == pytest.approx(intercept + 512 * slope, rel=0.01)
    assert abs(intercept) < 0.05 * measured[256]
    assert slope <= 20 * D * 4, "more than twenty copies of the rows"


@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_the_dense_path_trips_the_detector(case: Case) -> None:
    inputs = leaves(case, case.build(512, D), torch.float32)
    total, largest = saved_bytes(lambda: case(inputs, "dense"))
    assert largest >= 512 * 512
    assert total >= 512 * 512 * 4


# ------------------------------------------------------------------------------------------------------------ created


class Allocations(TorchDispatchMode):
    """The largest storage that an operation returned, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.operations = 0, set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.add(func.overloadpacket.__name__)
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return result


PASSES = ("pair_forward", "pair_backward", "self_forward", "self_backward", "softplus")


def watched(monkeypatch: pytest.MonkeyPatch) -> Allocations:
    """A mode that also sees inside the operators, which run with every mode switched off."""
    mode = Allocations()

    def inside(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            with mode:
                return function(*args, **options)

        return run

    for name in PASSES:
        monkeypatch.setattr(tiled, name, inside(getattr(tiled, name)))
    return mode


@pytest.mark.parametrize("bounded", [True, False], ids=["one-exponential", "online"])
@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_no_matrix_is_ever_created(case: Case, bounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_tiles(monkeypatch, TILE)
    if not bounded:
        monkeypatch.setattr(tiled, "is_exact", lambda *_: False)
    mode = watched(monkeypatch)
    n = 512
    inputs = leaves(case, case.build(n, D), torch.float32)
    with mode:
        case(inputs, "tiled").backward()
    assert {"mm", "matmul", "_linear_pointwise"} & mode.operations, "the detector did not see the inside of an operator"
    assert mode.largest < n * n / 4
    assert mode.largest <= max((2 * n + 3) * D, TILE * TILE)


@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_the_dense_path_trips_the_detector_of_creation(case: Case) -> None:
    mode = Allocations()
    inputs = leaves(case, case.build(512, D), torch.float32)
    with mode:
        case(inputs, "dense").backward()
    assert mode.largest >= 512 * 512


# ---------------------------------------------------------------------------------------------------------- peak memory


def peak_bytes(run: Callable[[], Any]) -> int:
    """Largest sum of live allocations above the start, from the allocator's own record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = record.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    assert changes, "the profiler recorded no allocation"
    peak = live = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_peak_memory_is_linear(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward together: a tile, and a number of copies of the rows."""
    use_small_tiles(monkeypatch, TILE)
    peaks = {}
    for n in (512, 1024, 2048):  # a tile of fixed size is small beside the rows
        inputs = leaves(case, case.build(n, D), torch.float32)
        peaks[n] = peak_bytes(lambda x=inputs: case(x, "tiled").backward())
    growth = (peaks[2048] - peaks[1024]) / (peaks[1024] - peaks[512])
    assert 1.5 < growth < 2.5, f"4 is quadratic, 2 is linear: {peaks}"
    matrix = 4 * (rows_of(case) * 1024) ** 2
    assert peaks[1024] < matrix / 2
    dense = leaves(case, case.build(1024, D), torch.float32)
    assert peak_bytes(lambda: case(dense, "dense").backward()) > 2 * matrix


def test_tiles_as_they_are_by_default() -> None:
    """No test of a size that somebody trains with needs a patched table."""
    n = 4096
    x = torch.randn(n, D, requires_grad=True)
    run = lambda impl: similarity.self_log_sum_exp(x, 0.1, exclusion=Exclusion.modulo(n // 2), impl=impl).sum()  # noqa: E731
    largest_tile = 4 * max(tiled.TILE.values()) ** 2
    assert peak_bytes(lambda: run("tiled").backward()) < 3 * largest_tile + 20 * 4 * n * D < 4 * n * n
    assert saved_bytes(lambda: run("tiled"))[0] < 10 * 4 * n * D


# ------------------------------------------------------------------------------------------------- the choice of path


class Paths:
    """Which of the two ways to sum ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.online = 0
        original = tiled._pair_online

        def counted(*args: Any, **options: Any) -> Any:
            self.online += 1
            return original(*args, **options)

        monkeypatch.setattr(tiled, "_pair_online", counted)


def exact(query: Tensor, key: Tensor, exclusion: Exclusion) -> Tensor:
    s = query.double() @ key.double().T
    mask = exclusion.mask(*s.shape, s.device)
    return torch.logsumexp(s if mask is None else s.masked_fill(mask, -torch.inf), 1)


def unit(n: int, seed: int) -> Tensor:
    x = torch.randn(n, D, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize("scale", [1.0, 20.0, 80.0, 100.0, 200.0, 500.0, 2000.0])
@pytest.mark.parametrize("known", [True, False], ids=["bound-given", "bound-found"])
def test_forward_is_exact_at_every_scale(scale: float, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_tiles(monkeypatch, 7)
    q, k = unit(20, 1) * scale, unit(33, 2)
    bound = scale * 1.001 if known else float("inf")
    for exclusion in (Exclusion.nothing(), Exclusion.diagonal(20, 33), Exclusion.modulo(5)):
        row, column = similarity.log_sum_exp(q, k, exclusion=exclusion, columns=True, bound=bound, impl="tiled")
        assert column is not None
        tolerance = 1e-6 * max(scale, 5)
        assert (row - exact(q, k, exclusion)).abs().max() < tolerance
        reverse = exclusion._replace(offset=-exclusion.offset)
        assert (column - exact(k, q, reverse)).abs().max() < tolerance


def test_warm_logits_need_one_exponential(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths(monkeypatch)
    similarity.log_sum_exp(unit(20, 1), unit(33, 2), 5.0, bound=5.0, columns=True, impl="tiled")
    similarity.self_log_sum_exp(unit(20, 1), 5.0, exclusion=Exclusion.diagonal(20, 20), bound=5.0, impl="tiled")
    assert paths.online == 0


@pytest.mark.parametrize("bound", [200.0, float("inf")])
def test_rows_that_underflow_take_the_online_path(bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row in twenty lies below -150: its sum of exp(S - c) is 0 in float32, and nobody may notice."""
    paths = Paths(monkeypatch)
    direction = unit(1, 3)
    k = torch.nn.functional.normalize(direction + 0.05 * unit(33, 2), dim=1)
    q = direction.repeat(20, 1) * 200
    q[7] *= -0.9
    assert (q[7] @ k.T).max() < -150
    q.requires_grad_()
    row, _ = similarity.log_sum_exp(q, k, bound=bound, impl="tiled")
    assert paths.online == 1
    expected = exact(q, k, Exclusion.nothing())
    assert (row - expected).abs().max() < 1e-3
    (gradient,) = torch.autograd.grad(row.sum(), q)
    assert_gradient_close(gradient, torch.autograd.grad(expected.sum(), q)[0], 1e-4)


@pytest.mark.parametrize("grow", [1e-30, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("scale", [5.0, 300.0])
def test_upstream_gradients_of_any_size(grow: float, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_tiles(monkeypatch, 7)
    x = (unit(20, 1) * scale**0.5).requires_grad_()
    upstream = torch.rand(20, generator=torch.Generator().manual_seed(4)) + 0.5
    row = similarity.self_log_sum_exp(x, exclusion=Exclusion.modulo(10), impl="tiled")
    (gradient,) = torch.autograd.grad(row, x, upstream * grow)
    x64 = x.detach().double().requires_grad_()
    expected = exact_self(x64)
    (reference,) = torch.autograd.grad(expected, x64, upstream.double())
    assert_gradient_close(gradient.double() / grow, reference, 1e-6 * scale)


def exact_self(x: Tensor) -> Tensor:
    s = x @ x.T
    mask = Exclusion.modulo(10).mask(20, 20, s.device)
    assert mask is not None
    return torch.logsumexp(s.masked_fill(mask, -torch.inf), 1)


def test_rows_without_negatives_among_others() -> None:
    """-inf and no gradient for them, nothing changes for the others."""
    x = unit(12, 1).double().requires_grad_()
    ids = torch.tensor([0] * 6 + [1] * 6)
    key_ids = torch.zeros(12, dtype=torch.long)
    q = unit(12, 2).double().requires_grad_()
    for impl in ("dense", "tiled"):
        row, column = similarity.log_sum_exp(
            q, x, 300.0, exclusion=Exclusion.equal_ids(ids, key_ids), columns=True, impl=impl
        )
        assert column is not None
        assert (row[:6] == -torch.inf).all()
        assert torch.isfinite(row[6:]).all()
        assert torch.isfinite(column).all()
        gq, gx = torch.autograd.grad(row[6:].sum() + column.sum(), (q, x))
        assert not gq[:6].any()
        reference = torch.logsumexp(300.0 * q[6:] @ x.T, 1).sum() + torch.logsumexp(300.0 * q[6:] @ x.T, 0).sum()
        for g, e in zip((gq, gx), torch.autograd.grad(reference, (q, x)), strict=True):
            assert_gradient_close(g, e, 1e-10)


@pytest.mark.parametrize("side", [1, 3, 64])
@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_the_size_of_a_tile_does_not_matter(case: Case, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = leaves(case, case.build(19, 6), torch.float64)
    value, gradients = value_and_gradients(lambda x: case(x, "dense"), case, inputs)
    use_small_tiles(monkeypatch, side)
    tiles, tile_gradients = value_and_gradients(lambda x: case(x, "tiled"), case, inputs)
    assert relative_error(tiles, value) < 1e-12
    for name, gradient in gradients.items():
        assert relative_error(tile_gradients[name], gradient) < 1e-10


@pytest.mark.parametrize("columns", [False, True])
def test_a_matrix_is_kept_while_it_is_small(columns: bool) -> None:
    """One tile of a fixed size is saved beside the rows, and nothing of a batch that is one pair larger."""

    def saved(n: int, m: int) -> int:
        query, key = torch.randn(n, 4, requires_grad=True), torch.randn(m, 4, requires_grad=True)
        return saved_bytes(lambda: similarity.log_sum_exp(query, key, columns=columns, impl="tiled")[0].sum())[0]

    rows = tiled.SAVED_BYTES // 4 // 256
    assert tiled.SAVED_BYTES <= saved(rows, 256) < tiled.SAVED_BYTES + 20 * 4 * 4 * (rows + 256)
    assert saved(rows + 1, 256) < 20 * 4 * 4 * (rows + 256)


def test_a_kept_tile_of_logits_that_overflow_is_not_used() -> None:
    x, y = 40 * torch.randn(31, 8), 40 * torch.randn(17, 8)
    query, key = x.clone().requires_grad_(), y.clone().requires_grad_()
    row, column = similarity.log_sum_exp(query, key, columns=True, impl="tiled")
    (row.sum() + column.sum()).backward()
    exact = [x.double().requires_grad_(), y.double().requires_grad_()]
    row, column = similarity.log_sum_exp(*exact, columns=True, impl="dense")
    (row.sum() + column.sum()).backward()
    assert row.max() > 1000
    assert_gradient_close(query.grad, exact[0].grad, 1e-4)
    assert_gradient_close(key.grad, exact[1].grad, 1e-4)
