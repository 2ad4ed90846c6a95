"""The queue against a plain list, and with the loss that reads it."""

from __future__ import annotations

import copy
import io
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from ssl_heads import InfoNCELoss, MemoryQueue, NonNegProjection
from tests.checks import assert_gradient_close

SIZE, DIM = 7, 3


def by_age(queue: MemoryQueue) -> list[tuple[list[float], int]]:
    """Rows and ids from the oldest to the newest: writing goes on where the oldest is."""
    first = int(queue.count) % len(queue.rows)
    order = [*range(first, len(queue.rows)), *range(first)]
    return [(queue.rows[i].tolist(), int(queue.ids[i])) for i in order]


@pytest.mark.parametrize("batches", [[1] * 9, [3, 3, 3, 3], [5, 4, 7], [2, 20, 3], [7, 8, 6], [0, 4, 0, 4]])
def test_it_holds_the_last_keys_in_order_whatever_the_batches(batches: list[int]) -> None:
    queue = MemoryQueue(SIZE, DIM)
    expected = deque(by_age(queue), maxlen=SIZE)
    sample = 0
    for n in batches:
        keys, ids = torch.rand(n, DIM), torch.arange(sample, sample + n)
        sample += n
        queue.enqueue(keys, ids)
        expected.extend(zip(keys.tolist(), ids.tolist(), strict=True))
        assert by_age(queue) == list(expected)
        assert queue.filled == min(sample, SIZE)


def test_rows_without_ids_have_none() -> None:
    queue = MemoryQueue(SIZE, DIM)
    queue.enqueue(torch.rand(2, DIM), torch.tensor([5, 6]))
    queue.enqueue(torch.rand(3, DIM))
    assert queue.ids.tolist() == [5, 6, -1, -1, -1, -1, -1]


def literal_moco(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of (n, 1 + K) logits, in float64, as MoCo's builder and training loop compute it."""
    query, key, queue = (F.normalize(x.double(), dim=1) for x in (query, key, queue))
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3), (torch.float16, 2e-3)])
def test_the_loss_over_the_queue_is_moco_s(dtype: torch.dtype, rtol: float) -> None:
    torch.manual_seed(0)
    queue = MemoryQueue(64, 16, dtype=dtype)
    queue.enqueue(torch.rand(40, 16))
    assert queue.rows.dtype == dtype
    query, key = torch.rand(8, 16, dtype=dtype, requires_grad=True), torch.rand(8, 16, dtype=dtype)
    exact = query.detach().double().requires_grad_()
    expected = literal_moco(exact, key, queue.rows, 0.3)
    expected.backward()
    loss = InfoNCELoss(0.3)(query, key, queue.rows)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_gradient_close(query.grad, exact.grad, rtol)


@pytest.mark.parametrize("normalize", [True, False])
def test_keys_enter_before_the_backward_and_get_no_gradient(normalize: bool) -> None:
    queue = MemoryQueue(SIZE, DIM)
    query, key = torch.rand(2, 4, DIM).requires_grad_().unbind()
    before = torch.autograd.grad(InfoNCELoss(normalize=normalize)(query, key, queue.rows), query)[0]
    loss = InfoNCELoss(normalize=normalize)(query, key, queue.rows)
    queue.enqueue(key)
    assert torch.equal(torch.autograd.grad(loss, query)[0], before)
    assert not queue.rows.requires_grad


@pytest.mark.parametrize("impl", ["auto", "dense", "tiled"])
@pytest.mark.parametrize("normalize", [True, False])
def test_losses_before_an_enqueue_keep_the_rows_and_ids_they_saw(normalize: bool, impl: str) -> None:
    queue, ids = MemoryQueue(SIZE, DIM), torch.arange(4)
    query, key = torch.rand(2, 4, DIM).requires_grad_().unbind()
    loss = InfoNCELoss(normalize=normalize, impl=impl)
    twice = [(a, b) for a, b in ((query, key), (key, query))]  # a symmetric loss

    def values() -> Tensor:
        return sum(loss(a, b.detach(), queue.rows, ids=ids, queue_ids=queue.ids) for a, b in twice)

    queue.enqueue(torch.rand(2, DIM), torch.tensor([1, 3]))
    before = torch.autograd.grad(values(), (query, key))
    value = values()
    queue.enqueue(torch.ones(SIZE, DIM), torch.arange(SIZE))
    after = torch.autograd.grad(value, (query, key))
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_an_equation_of_one_s_own_over_rows_that_were_replaced_is_an_error() -> None:
    queue, query = MemoryQueue(SIZE, DIM), torch.rand(4, DIM, requires_grad=True)
    value, of_a_copy = ((query @ rows.T).logsumexp(1).sum() for rows in (queue.rows, queue.rows.clone()))
    queue.enqueue(torch.rand(2, DIM))
    of_a_copy.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_whoever_holds_the_buffers_sees_what_is_enqueued() -> None:
    queue = MemoryQueue(SIZE, DIM)
    cached, buffers = queue.state_dict(), dict(queue.named_buffers())
    queue.enqueue(torch.rand(4, DIM), torch.arange(4))
    for held in (cached, buffers):
        assert all(torch.equal(held[name], x) for name, x in queue.state_dict().items())
    replica = queue._replicate_for_data_parallel()
    replica.enqueue(torch.rand(2, DIM))
    assert queue.filled == 6


def test_a_run_continues_from_its_state() -> None:
    torch.manual_seed(0)
    queue, file = MemoryQueue(SIZE, DIM), io.BytesIO()
    queue.enqueue(torch.rand(5, DIM), torch.arange(5))
    torch.save(queue.state_dict(), file)
    file.seek(0)
    resumed = MemoryQueue(SIZE, DIM, start="signed")
    resumed.load_state_dict(torch.load(file))
    keys = torch.rand(4, DIM)
    for each in (queue, resumed):
        each.enqueue(keys)
    assert by_age(queue) == by_age(resumed)
    assert resumed.filled == SIZE


def test_a_copy_is_its_own() -> None:
    queue = MemoryQueue(SIZE, DIM)
    duplicate = copy.deepcopy(queue)
    duplicate.enqueue(torch.ones(2, DIM))
    assert (queue.filled, duplicate.filled) == (0, 2)
    assert not torch.equal(queue.rows, duplicate.rows)


def test_it_moves_with_its_module() -> None:
    queue = MemoryQueue(SIZE, DIM).to(torch.float64)
    queue.enqueue(torch.rand(2, DIM, dtype=torch.float64))
    assert (queue.rows.dtype, queue.ids.dtype, queue.count.dtype) == (torch.float64, torch.int64, torch.int64)
    assert queue.to("meta").rows.device.type == "meta"


def test_step_and_enqueue_compile_as_one_graph_and_only_once() -> None:
    queue, loss = MemoryQueue(32, 8), InfoNCELoss(0.3)
    plain = copy.deepcopy(queue)

    def step(query: Tensor, key: Tensor) -> Tensor:
        value = loss(query, key, queue.rows)
        queue.enqueue(key)
        return value

    counted = CompileCounter()
    compiled = torch.compile(step, fullgraph=True, backend=counted, dynamic=False)
    for _ in range(6):
        query, key = torch.rand(2, 10, 8)
        expected = loss(query, key, plain.rows)
        plain.enqueue(key)  # 60 keys in all: past the wrap
        torch.testing.assert_close(compiled(query, key), expected)
    assert torch.equal(queue.rows, plain.rows)
    assert counted.frame_count == 1


def test_the_start_is_the_same_everywhere_and_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = MemoryQueue(SIZE, DIM)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first.rows, MemoryQueue(SIZE, DIM).rows)


def test_a_start_of_both_signs_makes_the_first_step_trivial_for_a_non_negative_head() -> None:
    """The mean cosine with the queue: real keys 0.4, the non-negative start as hard, a signed start none."""
    torch.manual_seed(0)
    key = F.normalize(NonNegProjection(64, 256, 128)(torch.randn(512, 64).relu()).detach(), dim=1)
    cosines = key @ key.T
    real = float(cosines.fill_diagonal_(0).sum() / (512 * 511))
    nonneg, signed = (float((key @ MemoryQueue(2048, 128, start=s).rows.T).mean()) for s in ("nonneg", "signed"))
    assert real == pytest.approx(nonneg, abs=0.1)
    assert abs(signed) < 0.02
    losses = [float(InfoNCELoss(0.2)(key, key, MemoryQueue(2048, 128, start=s).rows)) for s in ("nonneg", "signed")]
    assert losses[0] > losses[1] + 1, "the signed start is easier by more than a nat"


@pytest.mark.parametrize(
    ("size", "dim", "start", "message"),
    [
        (0, 3, "nonneg", "size must be at least 1.*0"),
        (4, -1, "nonneg", "dim must be at least 1.*-1"),
        (4, 3, "zeros", "start must be one of 'nonneg', 'signed', got 'zeros'"),
    ],
)
def test_configurations_that_make_no_sense_are_named(size: int, dim: int, start: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryQueue(size, dim, start=start)  # type: ignore[arg-type]


def test_another_width_is_refused_with_both_shapes() -> None:
    queue = MemoryQueue(16, 8)
    with pytest.raises(ValueError, match=r"width of the queue, shape \(n, 8\), got \(4, 6\).*shape \(16, 8\)"):
        queue.enqueue(torch.rand(4, 6))
    with pytest.raises(
        ValueError, match=r"query and queue must have the same width, got shapes \(4, 6\) and \(16, 8\)"
    ):
        InfoNCELoss()(torch.rand(4, 6), torch.rand(4, 6), queue.rows)
    with pytest.raises(RuntimeError, match=r"size mismatch for rows.*\[16, 6\].*\[16, 8\]"):
        queue.load_state_dict(MemoryQueue(16, 6).state_dict())
    assert queue.filled == 0


def test_ids_are_one_a_key() -> None:
    with pytest.raises(ValueError, match=r"ids must hold one integer for each row of keys: expected shape \(4,\)"):
        MemoryQueue(16, 8).enqueue(torch.rand(4, 8), torch.arange(3))


def test_a_head_s_tuple_is_refused() -> None:
    with pytest.raises(ValueError, match="keys must be a tensor, got tuple"):
        MemoryQueue(16, 8).enqueue((torch.rand(4, 8),))  # type: ignore[arg-type]


def test_a_queue_that_was_filled_in_inference_mode_can_be_trained_against() -> None:
    queue, query = MemoryQueue(8, 4), torch.rand(2, 4, requires_grad=True)
    with torch.inference_mode():
        queue.enqueue(torch.rand(3, 4))
    InfoNCELoss(normalize=False)(query, torch.rand(2, 4), queue.rows).backward()
    queue.load_state_dict(MemoryQueue(8, 4).state_dict())
    assert queue.filled == 0
