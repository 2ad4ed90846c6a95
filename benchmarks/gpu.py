"""The fused kernels on a GPU: right first, then how fast, beside everything else that computes the same loss.

    python benchmarks/gpu.py                   # about ten minutes; writes runs/gpu.json and runs/gpu.png
    python benchmarks/gpu.py --rows 8192       # fewer rows, less time

Checks values and gradients against float64, and two runs against each other, and stops if one is wrong. Then times
forward, and forward and backward, of every contestant that is installed, in turns, with a cold cache. The unit is the
time of one bfloat16 product of the same size by the best library, so that ratios carry over to other devices. Without
a CUDA or ROCm device it says so and exits 0; what a roofline predicts is in `gpu_model.py`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_losses import WORKS, Loss, Work
from torch import Tensor

DEVICE = "cuda"
# Largest relative gradient error against float64 on the rounded inputs. Where there are float32 kernels they use three
# tf32 products.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-3, torch.float16: 2e-3}
# Dense bfloat16 peak of a device whose name contains the key, FLOP/s, as its maker states it.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
}


@dataclass
class Record:
    """One contestant in one race."""

    work: str
    contestant: str
    pass_: str
    rows: int
    columns: int
    width: int
    dtype: str
    median_ms: float = math.nan
    p20_ms: float = math.nan
    p80_ms: float = math.nan
    gemm_ratio: float = math.nan  # time over that of one bfloat16 product rows x columns x width
    tflops: float = math.nan  # products that plain autograd would need, no recomputation counted, over the time
    share_of_peak: float = math.nan
    peak_extra_mib: float = math.nan
    gradient_error: float = math.nan
    note: str = ""


# ---------------------------------------------------------------------------------------------------------- right first


def unit_rows(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.randn(rows, width, device=DEVICE), dim=1).to(dtype).requires_grad_()


def gradients(loss: Loss, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    value.backward()
    return value.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def error(loss: Loss, work: Work, q: Tensor, k: Tensor) -> float:
    """Largest relative error of the gradients, against eager float64 on the same rounded inputs."""
    _, found = gradients(loss, q, k)
    _, exact = gradients(work.eager, q.double(), k.double())
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True) if float(b.norm())]
    return max(e if e == e else math.inf for e in errors)


def check() -> int:
    """Every loss, dtype and path at ragged shapes; the number of failures."""
    failures = 0
    for work in WORKS:
        for width in (100, 256, 520):
            for dtype, tolerance in TOLERANCE.items():
                q, k = unit_rows(1000, width, dtype), unit_rows(3001 if work.name == "queue" else 1000, width, dtype)
                # a mean over few rows: float16 gradients need no loss scaling
                found = error(work.fused, work, q, k)
                value, first = gradients(work.fused, q, k)
                again, second = gradients(work.fused, q, k)
                repeats = bool(value == again) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
                right = found <= tolerance and repeats
                failures += not right
                print(
                    f"{'ok  ' if right else 'FAIL'} {work.name:8s} width {width:3d} {str(dtype)[6:]:8s} gradient error "
                    f"{found:.1e} (at most {tolerance:.0e}), two runs {'equal' if repeats else 'DIFFER'}"
                )
    return failures


# ------------------------------------------------------------------------------------------------------------- how fast


class Stopwatch:
    """Times of contestants that take turns; the cache is emptied before each run."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)

    def race(self, runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        for run in runs.values():
            for _ in range(3):
                run()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(self.rounds):
            for name, run in runs.items():
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                self.flush.zero_()
                begin.record()
                run()
                end.record()
                end.synchronize()
                times[name].append(begin.elapsed_time(end))
        return times


def contestants(work: Work) -> Iterator[tuple[str, Loss]]:
    yield "fused", work.fused
    yield "eager", work.eager
    yield "compiled eager", torch.compile(work.eager)
    for name, (package, loss) in work.others.items():
        missing = (
            not hasattr(F, "linear_cross_entropy") if package == "torch" else not importlib.util.find_spec(package)
        )
        if missing:
            print(f"  {name}: not installed")
        else:
            yield name, loss


def peak_extra_mib(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def forward(loss: Loss, q: Tensor, k: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return loss(q, k)

    return run


def forward_and_backward(loss: Loss, q: Tensor, k: Tensor) -> Callable[[], object]:
    def run() -> object:
        q.grad = k.grad = None
        loss(q, k).backward()
        return None

    return run


def race(work: Work, rows: int, columns: int, width: int, watch: Stopwatch) -> list[Record]:
    dtype = torch.bfloat16
    q, k = unit_rows(rows, width, dtype), unit_rows(columns, width, dtype)
    height, breadth = (rows + columns, rows + columns) if work.stacked else (rows, columns)
    a, b = unit_rows(height, width, dtype).detach(), unit_rows(breadth, width, dtype).detach()
    product: Callable[[], object] = lambda: a @ b.T  # noqa: E731
    flops = 2.0 * height * breadth * width
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAKS.items() if key in name), math.nan)

    records = []
    for pass_, make, products in (
        ("forward", forward, work.products[0]),
        ("forward+backward", forward_and_backward, work.products[1]),
    ):
        runs: dict[str, Callable[[], object]] = {"one bf16 product": product}
        rows_of: dict[str, Record] = {}
        for contestant, loss in contestants(work):
            record = Record(work.name, contestant, pass_, height, breadth, width, "bfloat16")
            records.append(record)
            run = make(loss, q, k)
            try:
                run()
                record.peak_extra_mib = peak_extra_mib(run)
                if pass_ == "forward+backward" and height <= 8192:
                    record.gradient_error = error(loss, work, q, k)
                runs[contestant], rows_of[contestant] = run, record
            except torch.cuda.OutOfMemoryError:
                record.note = "out of memory"
            except Exception as problem:  # another library's failure is a result, not the end of the race
                record.note = f"{type(problem).__name__}: {problem}"[:200]
            q.grad = k.grad = None
            torch.cuda.empty_cache()
        times = watch.race(runs)
        unit = statistics.median(times["one bf16 product"])
        for contestant, record in rows_of.items():
            p20, record.median_ms, p80 = (
                torch.tensor(times[contestant]).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
            )
            record.p20_ms, record.p80_ms = p20, p80
            record.gemm_ratio = record.median_ms / unit
            record.tflops = products * flops / record.median_ms / 1e9
            record.share_of_peak = record.tflops * 1e12 / peak
        for record in records:
            if record.pass_ == pass_:
                print(
                    f"{work.name:8s} {height:6d} x {breadth:6d} x {width:4d} {pass_:16s} {record.contestant:24s} "
                    f"{record.median_ms:9.3f} ms {record.gemm_ratio:6.2f} products {record.tflops:6.0f} TFLOP/s "
                    f"{record.peak_extra_mib:9.0f} MiB error {record.gradient_error:.1e} {record.note}",
                    flush=True,
                )
    return records


def race_prologue(rows: int, width: int, watch: Stopwatch) -> list[Record]:
    """Activation, gate, normalisation and importance: one kernel each way against the chain of torch functions."""
    from ssl_heads.functional import bernoulli_kl, safe_normalize, straight_through_gate
    from ssl_heads.rowwise.host import Settings, epilogue, prologue

    z, a = (torch.randn(rows, width, device=DEVICE, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    s = torch.rand(width, device=DEVICE, requires_grad=True)
    upstream = torch.randn(rows, width, device=DEVICE, dtype=torch.bfloat16)
    settings = Settings("relu", "straight_through", prior=0.2)
    ones = torch.ones(rows, device=DEVICE)

    def chain() -> tuple[Tensor, Tensor, Tensor]:
        u = safe_normalize(torch.relu(z) * straight_through_gate(a))
        return u, (u * s).to(u.dtype), bernoulli_kl(a, 0.2)

    compiled = torch.compile(chain)

    def backward_of(function: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> Callable[[], object]:
        def run() -> None:
            z.grad = a.grad = s.grad = None
            key, query, kl = function()
            torch.autograd.backward([key, query, kl], [upstream, upstream, torch.ones_like(kl)])

        return run

    def fused() -> object:
        made = prologue(z.detach(), settings, gate_logits=a.detach(), importance=s.detach())
        return epilogue(
            z.detach(), made.inverse_norm, settings, key_gradient=upstream, query_gradient=upstream, kl_gradient=ones,
            gate_logits=a.detach(), importance=s.detach(),
        )  # fmt: skip

    runs = {"fused": fused, "chain of torch functions": backward_of(chain), "compiled chain": backward_of(compiled)}
    times = watch.race(runs)
    records = []
    for name, run in runs.items():
        record = Record("prologue", name, "forward+backward", rows, 0, width, "bfloat16")
        record.median_ms, record.peak_extra_mib = statistics.median(times[name]), peak_extra_mib(run)
        records.append(record)
        print(f"prologue {rows:6d} x {width:4d} {name:24s} {record.median_ms:9.3f} ms {record.peak_extra_mib:9.0f} MiB")
    return records


# ------------------------------------------------------------------------------------------------------------- reports


def plot(records: list[Record], path: Path) -> None:
    if not importlib.util.find_spec("matplotlib"):
        print("matplotlib is not installed: no picture")
        return
    import matplotlib.pyplot as plt

    timed = [r for r in records if r.gemm_ratio == r.gemm_ratio and r.pass_ == "forward+backward"]
    names = list(dict.fromkeys(r.work for r in timed))
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 4), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        races = list(dict.fromkeys((r.rows, r.columns, r.width) for r in timed if r.work == name))
        for contestant in dict.fromkeys(r.contestant for r in timed if r.work == name):
            found = {
                (r.rows, r.columns, r.width): r.gemm_ratio
                for r in timed
                if (r.work, r.contestant) == (name, contestant)
            }
            points = [(i, found[shape]) for i, shape in enumerate(races) if shape in found]
            axis.plot(*zip(*points, strict=True), marker="o", label=contestant)
        axis.set_xticks(range(len(races)), [f"{n}x{m}\nd={d}" for n, m, d in races], fontsize=7)
        axis.set_title(name)
        axis.set_yscale("log")
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("time of forward and backward\nin bfloat16 products of that size")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def environment() -> dict[str, Any]:
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "date": datetime.date.today().isoformat(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32768, help="largest number of rows")
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each contestant")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu.json"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA or ROCm device: there is nothing to measure")
        return 0

    torch.manual_seed(0)
    print(json.dumps(environment()))
    failures = check()
    if failures:
        print(f"{failures} checks failed: nothing is timed until the kernels are right")
        return 1
    watch = Stopwatch(arguments.rounds)
    records: list[Record] = []
    for rows in sorted({min(rows, arguments.rows) for rows in (4096, 16384, 32768)}):
        for width in (128, 512, 768):
            for work in WORKS:
                if work.name == "queue":
                    continue
                half = rows // 2 if work.stacked else rows
                records += race(work, half, half, width, watch)
    queue = next(work for work in WORKS if work.name == "queue")
    records += race(queue, 256, 65536, 128, watch)
    records += race(queue, 1024, 65536, 512, watch)
    for rows, width in ((4096, 512), (32768, 512), (32768, 2048)):
        records += race_prologue(rows, width, watch)

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"environment": environment(), "records": [asdict(record) for record in records]}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {arguments.output}")
    plot(records, arguments.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
