"""-1 as an id or a label means none, wherever ids and labels are given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ssl_heads as sh
from ssl_heads import adapters
from ssl_heads.functional.groups import NONE, counted, group_index, group_sizes

Z, W = torch.randn(2, 8, 6)
PARTLY, OWN = torch.tensor([0, 0, 1, 1, -1, -1, -1, -1]), torch.tensor([0, 0, 1, 1, 2, 3, 4, 5])
HALVES = torch.cat([PARTLY, PARTLY])


def filled_queue(ids: Tensor | None) -> sh.MemoryQueue:
    queue = sh.MemoryQueue(12, 6)
    queue.enqueue(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), ids)
    return queue


def beside_a_queue(ids: Tensor, of_queue: Tensor | None = None) -> Tensor:
    queue = filled_queue(of_queue)
    return sh.InfoNCELoss()(Z, W, queue.rows, ids, queue.ids)


def test_each_row_without_a_label_is_a_group_of_its_own() -> None:
    labels = torch.tensor([-2, 5, -1, 5, -1, -2, torch.iinfo(torch.int64).min, -1])
    groups = group_index(labels).tolist()
    assert sorted(set(groups)) == list(range(6)), "numbers without a gap"
    for i, a in enumerate(labels.tolist()):
        for j, b in enumerate(labels.tolist()):
            assert (groups[i] == groups[j]) == (i == j or a == b != NONE)
    assert group_sizes(group_index(labels)).tolist() == [2, 2, 1, 2, 1, 2, 1, 1]
    assert group_index(torch.tensor([-1])).tolist() == [0]


def test_what_does_not_count_is_zero_and_a_nan_counts() -> None:
    values = torch.tensor([1.0, torch.inf, torch.nan, 4.0])
    torch.testing.assert_close(
        counted(values, torch.tensor([True, False, False, False])), torch.tensor([1.0, 0, torch.nan, 0]), equal_nan=True
    )


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "sup_con-out-dense": lambda y: sh.SupConLoss(impl="dense")(Z, y),
    "sup_con-out-tiled": lambda y: sh.SupConLoss(impl="tiled")(Z, y),
    "sup_con-in-dense": lambda y: sh.SupConLoss(multi_positive="in", impl="dense")(Z, y),
    "sup_con-in-tiled": lambda y: sh.SupConLoss(multi_positive="in", impl="tiled")(Z, y),
    "nt_xent-dense": lambda y: sh.NTXentLoss(impl="dense")(Z, W, y),
    "nt_xent-tiled": lambda y: sh.NTXentLoss(impl="tiled")(Z, W, y),
    "info_nce": lambda y: sh.InfoNCELoss()(Z, W, None, y),
    "info_nce-queue": lambda y: beside_a_queue(y, torch.tensor([0, 7, -2, -1, 1, -1, 8, 9])),
    "MetricLearning": lambda y: adapters.MetricLearning(sh.SupConLoss())(Z, y),
    "SoloLearn-labels": lambda y: adapters.SoloLearnSimCLR(sh.SupConLoss(multi_positive="in"))(Z, y, 0.3),
    "SoloLearn-views": lambda y: adapters.SoloLearnSimCLR(sh.NTXentLoss())(torch.cat([Z, W]), y.repeat(2), 0.3),
}


@pytest.mark.parametrize("name", CALLS)
def test_minus_one_is_a_value_of_its_own_in_each_row(name: str) -> None:
    torch.testing.assert_close(CALLS[name](PARTLY), CALLS[name](OWN))
    assert not torch.isclose(CALLS[name](torch.where(PARTLY == -1, -2, PARTLY)), CALLS[name](OWN)), "-2 is an id"


def test_ids_that_say_nothing_leave_nothing_out() -> None:
    none = torch.full((8,), -1)
    torch.testing.assert_close(sh.NTXentLoss(impl="dense")(Z, W, none), sh.NTXentLoss(impl="dense")(Z, W))
    torch.testing.assert_close(sh.InfoNCELoss()(Z, W, None, none), sh.InfoNCELoss()(Z, W))
    torch.testing.assert_close(beside_a_queue(none), sh.InfoNCELoss()(Z, W, filled_queue(None).rows))


@pytest.mark.parametrize("labels", [torch.full((8,), -1), torch.arange(8)], ids=["none", "all alone"])
@pytest.mark.parametrize("form", ["out", "in"])
def test_no_positive_at_all_is_zero_and_part_of_the_graph(form: str, labels: Tensor) -> None:
    z = Z.clone().requires_grad_()
    loss = sh.SupConLoss(multi_positive=form)(z, labels)  # type: ignore[arg-type]
    loss.backward()
    assert loss == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_losses_of_classes_take_the_mean_over_labelled_rows() -> None:
    labels, labelled = PARTLY, PARTLY >= 0
    anchors, entropy = sh.OrthonormalAnchorRegression(3, 6, ignore_index=-100), sh.NonNegCrossEntropy(6, 3)
    for loss in (anchors, entropy):
        torch.testing.assert_close(loss(Z, labels), loss(Z[labelled], labels[labelled]))
        z = Z.clone().requires_grad_()
        nothing = loss(z, torch.full((8,), -1))
        nothing.backward()
        assert nothing == 0
        assert z.grad is not None
        assert not z.grad.any()
    mixed = torch.where(labelled, labels, torch.tensor([-1, -100]).repeat(4))
    torch.testing.assert_close(anchors(Z, mixed), anchors(Z, labels))


def test_rows_without_a_label_are_no_pair() -> None:
    with pytest.raises(ValueError, match="labels hold -1, no label, and NTXentLoss needs to know"):
        adapters.MetricLearning(sh.NTXentLoss())(torch.cat([Z, W]), HALVES)
