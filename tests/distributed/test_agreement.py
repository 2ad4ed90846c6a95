"""What differs between ranks, or what one of them refuses, is the same error on all of them, and nobody waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_heads import (
    DeltaContrast,
    LpPower,
    MLPCorrection,
    NTXentLoss,
    SquaredEuclidean,
    SupConLoss,
    TriFactorContrast,
)
from ssl_heads import functional as f
from ssl_heads.distributed import all_gather_rows, all_reduce_sum
from tests.distributed.pool import Pool
from tests.distributed.test_faults import assert_refused

Call = Callable[[str, int], object]
SHAPE = (4, 3)
EYE, IDS = torch.eye(3), torch.arange(4)


def z(needs_gradient: bool = False, dtype: torch.dtype = torch.float32, width: int = 3) -> Tensor:
    return torch.ones(4, width, dtype=dtype).requires_grad_(needs_gradient)


def number(needs_gradient: bool) -> Tensor:
    return torch.tensor(0.5).requires_grad_(needs_gradient)


DIFFERENT: dict[str, tuple[Call, str]] = {
    "a dtype that is none of embeddings": (
        lambda g, r: f.nt_xent(*[z(dtype=(torch.float16, torch.int64)[r])] * 2, gather=g),
        "dtype of z0 must be the same on all ranks, got [torch.float16, torch.int64]",
    ),
    "dtype of the second view": (
        lambda g, r: f.info_nce(z(), z(dtype=(torch.float32, torch.bfloat16)[r]), gather=g),
        "dtype of key must be the same on all ranks, got [torch.float32, torch.bfloat16]",
    ),
    "width of the second view": (lambda g, r: f.clip_loss(z(), z(width=3 + r), 1.0, gather=g), "got [3, 4]"),
    "gradient of the second view": (
        lambda g, r: f.siglip_loss(z(True), z(r == 0), 1.0, 0.0, gather=g),
        "need of a gradient of text_features must be the same on all ranks, got [True, False]",
    ),
    "gradient of the temperature": (
        lambda g, r: f.nt_xent(z(), z(), number(r == 0), gather=g),
        "temperature must be the same on all ranks, got [a tensor that needs a gradient, a tensor]",
    ),
    "gradient of the importance": (
        lambda g, r: f.tri_factor_spectral_two_towers(z(), z(), torch.ones(3).requires_grad_(r == 1), gather=g),
        "importance must be the same on all ranks",
    ),
    "temperature": (lambda g, r: f.sup_con(z(), IDS, 0.1 + r / 2, gather=g), "got [0.1, 0.6]"),
    "ids on one rank": (
        lambda g, r: f.nt_xent(z(), z(), ids=IDS if r == 0 else None, gather=g),
        "got [a tensor, None]",
    ),
    "queue on one rank": (lambda g, r: f.info_nce(z(), z(), z() if r == 0 else None, gather=g), "shape of queue"),
    "size of the queue": (lambda g, r: f.info_nce(z(), z(), torch.ones(5 + r, 3), gather=g), "([5, 3])"),
    "ids of the queue": (
        lambda g, r: (
            f.info_nce(z(), z(), z(), ids=IDS, queue_ids=IDS, gather=g) if r else f.info_nce(z(), z(), z(), gather=g)
        ),
        "queue_ids must be the same on all ranks, got [None, a tensor]",
    ),
    "form": (
        lambda g, r: f.sup_con(z(), IDS, multi_positive=("out", "in")[r], gather=g),  # type: ignore[arg-type]
        "multi_positive must be the same on all ranks, got [out, in]",
    ),
    "weight": (
        lambda g, r: TriFactorContrast(3, decorrelation_weight=1.0 + r, gather=g)(z(), z()),  # type: ignore[arg-type]
        "weight of the decorrelation must be the same on all ranks, got [1.0, 2.0]",
    ),
    "normalisation": (lambda g, r: f.decorrelation(z(), normalize=r == 0, gather=g), "got [True, False]"),
    "bias": (lambda g, r: f.clip_loss(z(), z(), 1.0, number(False) if r else None, gather=g), "logit_bias"),
    "implementation": (lambda g, r: f.nt_xent(z(), z(), impl=("dense", "tiled")[r], gather=g), "impl"),  # type: ignore[arg-type]
    "loss": (
        lambda g, r: (f.nt_xent, f.info_nce)[r](z(), z(), gather=g),  # type: ignore[operator]
        "the call must be the same on all ranks, got [nt_xent, info_nce]",
    ),
    "kind of the same size": (
        lambda g, r: (f.tri_factor_contrast, f.tri_factor_spectral)[r](z(), z(), torch.ones(3), gather=g),  # type: ignore[operator]
        "got [tri_factor_contrast, tri_factor_spectral]",
    ),
    "gather": (lambda g, r: f.nt_xent(z(), z(), gather=("all", "ring")[r]), "gather must be the same on all ranks"),  # type: ignore[arg-type]
    "distance": (
        lambda g, r: f.anchor_regression(z(), IDS - 1, EYE, distance=("cosine", "manhattan")[r], gather=g),  # type: ignore[arg-type]
        "got [cosine, manhattan]",
    ),
    "classes": (
        lambda g, r: f.anchor_regression(z(), IDS % 2, torch.eye(2 + r, 3), gather=g),
        "shape of anchors must be the same on all ranks",
    ),
    "collective": (lambda g, r: (all_gather_rows, all_reduce_sum)[r](z()), "got [all_gather_rows, all_reduce_sum]"),
    "trailing shape": (lambda g, r: all_gather_rows(z(width=3 + r)), "trailing shape"),
    "dtype": (lambda g, r: all_gather_rows(IDS if r else z()), "dtype"),
    "gradient": (lambda g, r: all_gather_rows(z(r == 0)), "need of a gradient must be the same on all ranks"),
    "shape": (lambda g, r: all_reduce_sum(torch.ones(2 + r)), "shape must be the same on all ranks, got [(2,), (3,)]"),
}

DELTA: dict[str, tuple[Call, str]] = {
    "kind": (lambda g, r: DeltaContrast(("nce", "scl")[r], gather=g)(z(), z()), "got [nce, scl]"),  # type: ignore[arg-type]
    "dissimilarity": (
        lambda g, r: DeltaContrast("infonce", (LpPower(1), SquaredEuclidean())[r], gather=g)(z(), z()),  # type: ignore[arg-type]
        "dissimilarity must be the same on all ranks",
    ),
    "power": (lambda g, r: f.delta_contrast(z(), z(), "nce", LpPower(1 + r), gather=g), "LpPower(p=1"),  # type: ignore[arg-type]
    "alpha": (
        lambda g, r: f.delta_contrast(z(), z(), "nce", LpPower(1), z()[:, 0] if r else None, gather=g),  # type: ignore[arg-type]
        "alpha must be the same on all ranks, got [None, a tensor]",
    ),
    "a correction that is frozen": (
        lambda g, r: DeltaContrast("nce", alpha_tilde=MLPCorrection(3).requires_grad_(r == 0), gather=g)(z(), z()),  # type: ignore[arg-type]
        "got [MLPCorrection, trained, MLPCorrection]",
    ),
    "training": (lambda g, r: DeltaContrast("nwj", gather=g).train(r == 0)(z(), z()), "start of the corrections"),  # type: ignore[arg-type]
    "dtype of the second view": (
        lambda g, r: DeltaContrast(gather=g)(z(), z(dtype=(torch.float32, torch.float64)[r])),  # type: ignore[arg-type]
        "dtype of w",
    ),
}

REFUSED: dict[str, tuple[Call, str]] = {
    "views": (lambda g, r: f.nt_xent(z(), torch.ones(4 + r, 3), gather=g), "one pair a row"),
    "vector": (lambda g, r: f.decorrelation(torch.ones(4) if r else z(), gather=g), "shape (4,)"),
    "list": (lambda g, r: f.clip_loss(z(), [[1.0]] if r else z(), 1.0, gather=g), "got list"),  # type: ignore[arg-type]
    "temperature": (lambda g, r: f.nt_xent(z(), z(), 0.5 - r, gather=g), "temperature must be a finite number above 0"),
    "ids": (lambda g, r: f.nt_xent(z(), z(), ids=IDS / 2 if r else IDS, gather=g), "one integer for each row"),
    "labels": (lambda g, r: f.sup_con(z(), IDS[r:], gather=g), "shape (4,)"),
    "class": (lambda g, r: f.anchor_regression(z(), IDS % 3 + r, EYE, gather=g), "must be 0..2"),
    "queue": (lambda g, r: f.info_nce(z(), z(), z().long() if r else z(), gather=g), "floating-point"),
    "scale": (lambda g, r: f.siglip_loss(z(), z(), torch.ones(1 + r), 0.0, gather=g), "one number"),
    "importance": (lambda g, r: f.tri_factor_contrast(z(), z(), torch.ones(3 + r), gather=g), "value a dimension"),
    "implementation": (lambda g, r: f.nt_xent(z(), z(), impl=("dense", "fast")[r], gather=g), "'fast'"),  # type: ignore[arg-type]
    "rows": (lambda g, r: all_gather_rows(torch.tensor(1.0) if r else z()), "got shape ()"),
    "a list of rows": (lambda g, r: all_gather_rows([1.0] if r else z()), "x must be a tensor, got list"),  # type: ignore[arg-type]
    "a list to sum": (lambda g, r: all_reduce_sum([1.0] if r else z()), "x must be a tensor, got list"),  # type: ignore[arg-type]
}

ALL_OF_THEM = [
    *(("different", name, gather) for name in DIFFERENT for gather in ("all", "ring")),
    *(("delta", name, "all") for name in DELTA),
    *(("refused", name, gather) for name in REFUSED for gather in ("all", "ring")),
]
TABLES = {"different": DIFFERENT, "delta": DELTA, "refused": REFUSED}


def call(table: str, name: str, gather: str) -> None:
    TABLES[table][name][0](gather, dist.get_rank())


@pytest.mark.parametrize(("table", "name", "gather"), ALL_OF_THEM)
def test_every_rank_gets_the_error(pool: Callable[[int], Pool], table: str, name: str, gather: str) -> None:
    outcomes = pool(2).outcomes(call, table, name, gather)
    assert_refused(outcomes, TABLES[table][name][1])
    if table == "refused":
        assert_refused(outcomes, "refused on ranks [1]")


def with_integers(gather: str, dtypes: tuple[torch.dtype, torch.dtype]) -> list[float]:
    rank = dist.get_rank()
    x0, x1 = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0)).double()
    ids = (torch.arange(8) // 2).to(dtypes[rank])
    own = slice(4 * rank, 4 * rank + 4)
    arguments = {"gather": gather, "group": None}
    values = [
        f.nt_xent(x0[own], x1[own], ids=ids[own], **arguments),  # type: ignore[arg-type]
        f.info_nce(x0[own], x1[own], ids=ids[own], **arguments),  # type: ignore[arg-type]
        f.sup_con(x0[own], ids[own], **arguments),  # type: ignore[arg-type]
        f.sup_con(x0[own], ids[own], multi_positive="in", **arguments),  # type: ignore[arg-type]
        f.anchor_regression(x0[own], ids[own] % 3, EYE, **arguments),  # type: ignore[arg-type]
    ]
    whole = (torch.arange(8) // 2).to(dtypes[rank])
    alone = [
        f.nt_xent(x0, x1, ids=whole),
        f.info_nce(x0, x1, ids=whole),
        f.sup_con(x0, whole),
        f.sup_con(x0, whole, multi_positive="in"),
        f.anchor_regression(x0, whole % 3, EYE),
    ]
    mean = torch.stack(values)
    dist.all_reduce(mean)
    return (mean / 2 - torch.stack(alone)).tolist()


@pytest.mark.parametrize("gather", ["all", "ring"])
@pytest.mark.parametrize("dtypes", [(torch.int32, torch.int64), (torch.int64, torch.uint8)], ids=str)
def test_integers_of_any_width_meet(
    pool: Callable[[int], Pool], gather: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    for differences in pool(2).run(with_integers, gather, dtypes):
        assert differences == pytest.approx([0] * 5, abs=1e-12)


def outside_of_the_group() -> None:
    group = dist.new_group([0])
    if dist.get_rank() == 1:
        f.nt_xent(z(), z(), gather="all", group=group)


def test_a_rank_that_is_none_of_the_group(pool: Callable[[int], Pool]) -> None:
    (first, _), second = pool(2).outcomes(outside_of_the_group)
    assert first
    assert_refused([second], "rank 1 is none of the group's")


def frames(loss: nn.Module, gather: str, labels: bool) -> tuple[list[int], Tensor, Tensor]:
    """How many frames are compiled after each step at one size, and the last value beside that without compiling."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    loss.gather = gather
    compiled = torch.compile(loss, backend="eager")
    counts = []
    for _ in range(5):
        x = torch.randn(5, 6, requires_grad=True)
        second = torch.arange(5) % 2 if labels else torch.randn(5, 6)
        value = compiled(x, second)
        value.backward()
        counts.append(counters["frames"]["ok"])
    return counts, value.detach(), loss(x, second).detach()


COMPILED = {
    "nt_xent": (NTXentLoss(), "all", False),
    "sup_con": (SupConLoss(), "ring", True),
    "delta": (DeltaContrast("nce", LpPower(1)), "all", False),
}


@pytest.mark.parametrize("name", COMPILED)
def test_one_size_is_compiled_once(pool: Callable[[int], Pool], name: str) -> None:
    for counts, value, expected in pool(2).run(frames, *COMPILED[name]):
        assert counts[2] == counts[-1], counts
        torch.testing.assert_close(value, expected)
