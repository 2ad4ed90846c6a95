"""Time, memory and error of contestants that alternate in one process on fresh inputs."""

from __future__ import annotations

import csv
import datetime
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

CLOCK = time.perf_counter
Loss = Callable[[Sequence[Tensor]], Tensor]
MakeInputs = Callable[[], list[Tensor]]


@dataclass
class Record:
    """One contestant on one piece of work."""

    work: str
    contestant: str
    rows: int
    columns: int
    width: int
    dtype: str
    threads: int
    repeats: int
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    ratio: float  # the contestant's median over ours
    peak_extra_mb: float
    gradient_error: float  # relative norm against float64
    gemm_equivalents: float  # products of rows x columns x width that the algorithm asks for
    gflops: float  # that work over the measured time
    share_of_mm: float  # ... as a share of what `torch.mm` reaches on one such product
    share_of_product: float  # ... as a share of what the engine's own tile product reaches
    note: str = ""
    version: str = ""
    torch: str = torch.__version__
    machine: str = platform.processor() or platform.machine()
    date: str = datetime.date.today().isoformat()


def step(loss: Loss, inputs: Sequence[Tensor]) -> Tensor:
    """Forward and backward; gradients are left on the inputs."""
    for x in inputs:
        x.grad = None
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(getattr(loss, "matmul_precision", precision))
    try:
        value = loss(inputs)
        value.backward()
    finally:
        torch.set_float32_matmul_precision(precision)
    return value.detach()


@dataclass(frozen=True)
class Through:
    """A loss under another `torch.set_float32_matmul_precision`: "medium" sends torch's products to oneDNN too."""

    loss: Loss
    matmul_precision: str = "medium"

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.loss(inputs)


def peak_extra_bytes(loss: Loss, inputs: Sequence[Tensor]) -> int:
    """Most bytes that torch's allocator held at once during a step, beyond what it held before."""
    step(loss, inputs)
    for x in inputs:
        x.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step(loss, inputs)
    assert prof.profiler is not None
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class Network:
    """What runs between two losses when somebody trains: a step of a small convolutional network.

    Without it, contestants that share their operations would find each other's code and buffers in the caches.
    """

    def __init__(self) -> None:
        layers = [nn.Conv2d(1, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2)]
        self.layers, self.images = nn.Sequential(*layers, nn.BatchNorm2d(64), nn.ReLU()), torch.randn(64, 1, 28, 28)

    def step(self) -> None:
        """Forward and backward."""
        self.layers(self.images).sum().backward()


def alternate(losses: dict[str, Loss], make_inputs: MakeInputs, repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, contestant after contestant on the same fresh inputs, in an order drawn for each turn.

    A fixed order would let the same contestant always find the caches as the same other one leaves them.
    """
    network = Network()
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    shuffle = random.Random(0).sample
    for turn in range(repeats + 1):
        inputs = make_inputs()
        for name in shuffle(list(losses), len(losses)):
            network.step()
            start = CLOCK()
            step(losses[name], inputs)
            if turn > 0:  # the first turn warms up
                seconds[name].append(CLOCK() - start)
    return seconds


def exact_gradient(exact: Loss, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a loss in float64, on the same inputs."""
    doubles = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    step(exact, doubles)
    return [x.grad for x in doubles if x.grad is not None]


def gradient_error(loss: Loss, truth: Sequence[Tensor], inputs: Sequence[Tensor]) -> float:
    """Relative norm of a gradient's difference from the truth."""
    step(loss, inputs)
    actual = [x.grad for x in inputs if x.grad is not None]
    difference = sum(float((a.double() - b).square().sum()) for a, b in zip(actual, truth, strict=True))
    return (difference / sum(float(b.square().sum()) for b in truth)) ** 0.5


def product_seconds(product: Callable[[Tensor, Tensor], Tensor], rows: int, columns: int, width: int) -> float:
    """Median time of ``x y^T`` of the size, the unit in which work is stated; in panels, as the whole may not fit.

    Beyond 8,192 rows and columns the time of that many is scaled up.
    """
    scale = max(rows / 8192, 1) * max(columns / 8192, 1)
    rows, columns = min(rows, 8192), min(columns, 8192)
    x, y = torch.randn(rows, width), torch.randn(columns, width)
    seconds = []
    for _ in range(6):
        start = CLOCK()
        for i in range(0, rows, 2048):
            for j in range(0, columns, 2048):
                product(x[i : i + 2048], y[j : j + 2048])
        seconds.append(CLOCK() - start)
    return scale * statistics.median(seconds[1:])


def write(records: Sequence[Record], path: Path) -> None:
    """Records as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Record)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in records)
