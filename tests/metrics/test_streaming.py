"""Parts in any order and on any rank give the whole, for every streaming metric."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_heads import metrics
from ssl_heads.metrics import StreamingMetric, chance
from tests.distributed.pool import Pool
from tests.metrics.streams import LABELS, STREAMS, Stream, codes, of_ranks, parts


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chance, "DRAWS", 2**10)


def numbers(result: Any) -> Iterator[Any]:
    if isinstance(result, tuple):
        for part in result:
            yield from numbers(part)
    else:
        yield from result.flatten().tolist() if isinstance(result, Tensor) else [result]


def same(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    assert type(found) is type(expected)
    assert list(numbers(found)) == pytest.approx(list(numbers(expected)), abs=tolerance, rel=tolerance, nan_ok=True)


def seen(stream: Stream, sizes: list[int]) -> StreamingMetric:
    metric = stream.make()
    for part in parts(stream.inputs, sizes):
        metric.update(*part)
    return metric


@pytest.fixture(params=STREAMS)
def stream(request: pytest.FixtureRequest) -> Stream:
    return STREAMS[request.param]


def test_every_streaming_metric_is_in_the_table() -> None:
    public = {name for name in metrics.__all__ if inspect.isclass(getattr(metrics, name)) and "Streaming" in name}
    assert public - {type(s.make()).__name__ for s in STREAMS.values()} == {"StreamingMetric"}


@pytest.mark.parametrize("sizes", [[60], [30, 30], [1, 58, 1], [10] * 6], ids=str)
def test_parts_equal_the_whole(stream: Stream, sizes: list[int]) -> None:
    same(seen(stream, sizes).compute(), stream.function(*stream.inputs))


def test_in_float64_the_order_of_the_parts_does_not_matter(stream: Stream) -> None:
    inputs = tuple(x.double() if x.is_floating_point() else x for x in stream.inputs)
    shuffled = torch.randperm(60)
    exact = Stream(stream.make, stream.function, inputs)
    moved = Stream(stream.make, stream.function, tuple(x[shuffled] for x in inputs))
    same(seen(moved, [7] * 8 + [4]).compute(), seen(exact, [60]).compute(), 1e-10)


def test_merged_parts_equal_the_whole_and_compute_changes_nothing(stream: Stream) -> None:
    whole = stream.make()
    for part in parts(stream.inputs, [20, 10, 30]):
        one = stream.make()
        one.update(*part)
        before = list(numbers(one.compute()))
        assert whole.merge(one) is whole
        whole.compute()
        assert list(map(str, numbers(one.compute()))) == list(map(str, before))
        assert whole.merge(stream.make()) is whole
    same(whole.compute(), stream.function(*stream.inputs))


@pytest.fixture(scope="module")
def ranks() -> Iterator[Pool]:
    pool = Pool(3)
    yield pool
    pool.close()


@pytest.mark.parametrize("sizes", [[20, 20, 20], [59, 1, 0], [0, 60, 0]], ids=str)
def test_ranks_equal_one_process(sizes: list[int], ranks: Pool) -> None:
    for name, stream in STREAMS.items():
        for found in ranks.run(of_ranks, name, sizes):
            if name == "class_consistency":  # the ranks draw more often than this process
                found = found._replace(chance_corrected=stream.function(*stream.inputs).chance_corrected)
            same(found, stream.function(*stream.inputs))


def test_one_process_merges_to_a_copy(stream: Stream) -> None:
    metric = seen(stream, [60])
    whole = metric.merge_ranks()
    assert whole is not metric
    same(whole.compute(), metric.compute(), 0)


def test_reset_forgets_everything(stream: Stream) -> None:
    metric = seen(stream, [60])
    metric.reset()
    with pytest.raises(ValueError, match=r"has seen no row: update comes before compute"):
        metric.compute()
    assert int(metric.rows) == 0
    for part in parts(stream.inputs, [20, 40]):
        metric.update(*part)
    same(metric.compute(), stream.function(*stream.inputs))


def test_a_metric_can_be_copied_pickled_and_moved(stream: Stream) -> None:
    metric = seen(stream, [60])
    expected = metric.compute()
    for other in (copy.copy(metric), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        metric.reset()
        same(other.compute(), expected, 0)


def test_the_state_is_tensors_in_plain_attributes_on_the_cpu(stream: Stream) -> None:
    metric = seen(stream, [60])
    state = {name: x for name, x in vars(metric).items() if name not in metric.settings}
    tensors = [y for x in state.values() for y in (x if isinstance(x, tuple) else (x,))]
    assert all(isinstance(x, Tensor) and x.device.type == "cpu" for x in tensors), state


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_part_that_is_not_finite_makes_the_whole_nan(stream: Stream, where: int) -> None:
    given = parts(stream.inputs, [20, 20, 20])
    if stream.inputs[0].dtype == torch.bool:
        return
    broken = given[where][0].clone()
    broken[3, 1] = math.inf
    given[where] = (broken, *given[where][1:])
    metric, merged = stream.make(), stream.make()
    for part in given:
        metric.update(*part)
        one = stream.make()
        one.update(*part)
        merged.merge(one)
    whole = [torch.cat(x) for x in zip(*given, strict=True)]
    for found in (metric.compute(), merged.compute()):
        assert all(math.isnan(x) or x == -1 for x in numbers(found)), found
        assert list(map(str, numbers(found))) == list(map(str, numbers(stream.function(*whole))))
    metric.reset()
    metric.update(*stream.inputs)
    same(metric.compute(), stream.function(*stream.inputs))


def test_rows_of_another_width_are_refused(stream: Stream) -> None:
    metric = seen(stream, [60])
    before = metric.compute()
    narrow = (stream.inputs[0][:, :-1], *stream.inputs[1:])
    with pytest.raises(ValueError, match=r"as wide as those seen before, \[6.*got \[5"):
        metric.update(*narrow)
    same(metric.compute(), before, 0)


@pytest.mark.parametrize("name", [name for name, s in STREAMS.items() if s.inputs[-1].dtype == torch.int64])
def test_a_part_without_labels_changes_nothing(name: str) -> None:
    stream = STREAMS[name]
    metric = stream.make()
    metric.update(*stream.inputs[:-1], torch.full_like(LABELS, -1))
    with pytest.raises(ValueError, match="no row"):
        metric.compute()
    metric.update(*stream.inputs)
    metric.update(*stream.inputs[:-1], torch.full_like(LABELS, -1))
    same(metric.compute(), stream.function(*stream.inputs))


def test_other_settings_and_other_classes_do_not_merge() -> None:
    with pytest.raises(ValueError, match=r"StreamingL0\(eps=1e-05\) and StreamingL0\(eps=0\.1\)"):
        metrics.StreamingL0().merge(metrics.StreamingL0(eps=0.1))
    with pytest.raises(ValueError, match=r"StreamingL0\(eps=1e-05\) and StreamingSparsity"):
        metrics.StreamingL0().merge(metrics.StreamingSparsity())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"kind='sum'.* and .*kind='mean'"):
        metrics.StreamingSemanticEntropy("sum").merge(metrics.StreamingSemanticEntropy("mean"))


def test_a_mean_of_batches_is_not_the_whole() -> None:
    z = torch.eye(10)
    metric = metrics.StreamingAliveDimensions()
    of_batches = []
    for part in z.split(5):
        metric.update(part)
        of_batches.append(metrics.alive_dimensions(part))
    assert metric.compute() == 10
    assert sum(of_batches) / 2 == 5


def test_classes_that_only_some_parts_have() -> None:
    first, second = metrics.StreamingClassConsistency(), metrics.StreamingClassConsistency()
    first.update(codes()[:4], [5, 5, 900, 5])
    second.update(codes()[4:7], [7, 1, 900])
    found = first.merge(second).compute()
    expected = metrics.class_consistency(codes()[:7], [5, 5, 900, 5, 7, 1, 900])
    same(found, expected)
    assert first.classes.tolist() == [1, 5, 7, 900]
