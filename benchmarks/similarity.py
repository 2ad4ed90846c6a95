"""Time and memory of the similarity engine beside what people use: `python benchmarks/similarity.py`.

Every contestant of a piece of work runs in this one process, turn by turn on the same fresh inputs. Times are medians
of forward and backward together; memory is the most that torch's allocator held at once beyond the inputs; the error
is the gradient's relative distance from the same loss in float64.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import contestants as others
import measure
import torch
from contestants import Loss
from measure import Record, Through
from torch import Tensor

import ssl_heads
from ssl_heads import functional
from ssl_heads.functional import safe_normalize
from ssl_heads.similarity import Impl
from ssl_heads.similarity.product import matmul_nt

HERE = Path(__file__).parent
DENSE_LIMIT_GB = 8.0
"""A contestant that would hold more than this many gigabytes is left out, and the record says so."""


@dataclass
class Contestant:
    """A loss to time, and how many matrices of all pairs it holds at once, to leave it out before memory ends."""

    loss: Loss
    matrices: float = 0.0
    exact: Loss | None = None
    note: str = ""


@dataclass
class Work:
    """One size of one loss, and everyone who computes it."""

    name: str
    rows: int
    columns: int
    width: int
    inputs: str
    gemm_equivalents: float
    contestants: dict[str, Contestant]
    repeats: int = 7


def views(n: int, d: int) -> list[Tensor]:
    """Two noisy views of n samples."""
    x = torch.randn(n, d)
    return [(x + 0.5 * torch.randn(n, d)).requires_grad_() for _ in range(2)]


def towers(n: int, d: int) -> list[Tensor]:
    """Normalised features of two towers, as a model hands them over."""
    return [safe_normalize(x.detach()).requires_grad_() for x in views(n, d)]


def queued(n: int, k: int, d: int) -> list[Tensor]:
    """Queries with gradient; keys and a queue of unit rows without."""
    query, key = views(n, d)
    return [query, key.detach(), safe_normalize(torch.randn(k, d))]


def nt_xent(n: int, d: int, repeats: int = 7) -> Work:
    """NT-Xent on 2n rows."""

    def us(x: Sequence[Tensor], impl: Impl = "auto") -> Tensor:
        return functional.nt_xent(*x, others.TEMPERATURE, impl=impl)

    exact = partial(us, impl="dense")
    entrants = {
        "ssl-heads": Contestant(us),
        "papers' form": Contestant(others.papers_nt_xent, 7),
        "dense cross entropy": Contestant(others.dense_nt_xent, 5),
        "dense cross entropy, oneDNN": Contestant(Through(others.dense_nt_xent), 5),
    }
    if others.LINEAR_CROSS_ENTROPY:
        entrants["F.linear_cross_entropy"] = Contestant(
            others.linear_cross_entropy_nt_xent,
            0 if n <= 8192 else math.inf,  # a minute a step
            others.linear_cross_entropy_nt_xent,
            "keeps self-similarity in the sum: another loss",
        )
    if others.installed("lightly"):
        entrants["lightly"] = Contestant(others.lightly_nt_xent(), 7)
    if others.installed("pytorch_metric_learning"):
        entrants["pytorch-metric-learning SupCon"] = Contestant(others.metric_learning_sup_con(), 14)
        if n <= 256:  # its NTXentLoss holds positives x negatives, cubic in the batch
            entrants["pytorch-metric-learning NTXent"] = Contestant(others.metric_learning_nt_xent(), 0)
    for entrant in entrants.values():
        entrant.exact = entrant.exact or exact
    return Work(f"NT-Xent 2 x {n}, d={d}", 2 * n, 2 * n, d, "views", 2.0, entrants, repeats)


def clip(n: int, d: int, repeats: int = 7) -> Work:
    """CLIP on n pairs."""

    def us(x: Sequence[Tensor], impl: Impl = "auto") -> Tensor:
        return functional.clip_loss(*x, torch.tensor(others.CLIP_SCALE, dtype=x[0].dtype), impl=impl)

    exact = partial(us, impl="dense")
    entrants = {
        "ssl-heads": Contestant(us),
        "dense cross entropy": Contestant(others.dense_clip, 5),
        "dense cross entropy, oneDNN": Contestant(Through(others.dense_clip), 5),
    }
    if others.LINEAR_CROSS_ENTROPY:
        entrants["F.linear_cross_entropy"] = Contestant(others.linear_cross_entropy_clip)
    if others.installed("open_clip"):
        entrants["open_clip"] = Contestant(others.open_clip_clip(), 6)
    for entrant in entrants.values():
        entrant.exact = exact
    return Work(f"CLIP {n} pairs, d={d}", n, n, d, "towers", 4.0, entrants, repeats)


def siglip(n: int, d: int, repeats: int = 7) -> Work:
    """SigLIP on n pairs."""

    def us(x: Sequence[Tensor], impl: Impl = "auto") -> Tensor:
        return functional.siglip_loss(*x, others.SIGLIP_SCALE, others.SIGLIP_BIAS, impl=impl)

    exact = partial(us, impl="dense")
    entrants = {
        "ssl-heads": Contestant(us),
        "dense formula": Contestant(others.dense_siglip, 6),
        "dense formula, oneDNN": Contestant(Through(others.dense_siglip), 6),
    }
    if others.installed("open_clip"):
        entrants["open_clip"] = Contestant(others.open_clip_siglip(None), 7)
        with contextlib.suppress(TypeError):  # releases before chunk_size
            entrants["open_clip chunk_size=512"] = Contestant(others.open_clip_siglip(512), 5)
    for entrant in entrants.values():
        entrant.exact = exact
    return Work(f"SigLIP {n} pairs, d={d}", n, n, d, "towers", 3.0, entrants, repeats)


def moco(n: int, k: int, d: int, repeats: int = 15) -> Work:
    """MoCo: n queries against a queue of k."""

    def us(x: Sequence[Tensor], impl: Impl = "auto") -> Tensor:
        return functional.info_nce(*x, others.TEMPERATURE, impl=impl)

    exact = partial(us, impl="dense")
    entrants = {
        "ssl-heads": Contestant(us, exact=exact),
        "einsum and cat": Contestant(others.usual_moco, 4, exact),
        "einsum and cat, oneDNN": Contestant(Through(others.usual_moco), 4, exact),
    }
    return Work(f"MoCo {n} x {k}, d={d}", n, k, d, "queued", 2.0, entrants, repeats)


def spectral(n: int, d: int, repeats: int = 7) -> Work:
    """The spectral loss on 2n rows."""

    def us(x: Sequence[Tensor]) -> Tensor:
        return functional.spectral_contrastive(*x)

    entrants = {"ssl-heads": Contestant(us, exact=us), "papers' form": Contestant(others.papers_spectral, 7, us)}
    return Work(f"spectral 2 x {n}, d={d}", 2 * n, 2 * n, d, "views", 4 * d / (4 * n), entrants, repeats)


def run(work: Work) -> list[Record]:
    """Time everyone, then measure memory and error."""

    def make_inputs() -> list[Tensor]:
        if work.inputs == "queued":
            return queued(work.rows, work.columns, work.width)
        n = work.rows // 2 if work.inputs == "views" else work.rows
        return views(n, work.width) if work.inputs == "views" else towers(n, work.width)

    matrix_gb = 4 * work.rows * work.columns / 1e9
    left_out = {k: c for k, c in work.contestants.items() if c.matrices * matrix_gb > DENSE_LIMIT_GB}
    entrants = {k: c for k, c in work.contestants.items() if k not in left_out}
    seconds = measure.alternate({k: c.loss for k, c in entrants.items()}, make_inputs, work.repeats)
    size = (work.rows, work.columns, work.width)
    mm, product = measure.product_seconds(lambda x, y: x @ y.T, *size), measure.product_seconds(matmul_nt, *size)
    ours = median(seconds["ssl-heads"])
    records = []
    inputs = make_inputs()
    truths: dict[Loss, list[Tensor]] = {}  # in float64, one for all contestants with the same definition
    for name, entrant in work.contestants.items():
        times = seconds.get(name, [float("nan")])
        kept = name in entrants
        float64_fits = kept and 10 * matrix_gb < DENSE_LIMIT_GB
        equivalents = work.gemm_equivalents if name == "ssl-heads" else float("nan")
        records.append(
            Record(
                work=work.name,
                contestant=name,
                rows=work.rows,
                columns=work.columns,
                width=work.width,
                dtype="float32",
                threads=torch.get_num_threads(),
                repeats=len(times),
                median_ms=round(1e3 * median(times), 3),
                fastest_ms=round(1e3 * min(times), 3),
                slowest_ms=round(1e3 * max(times), 3),
                ratio=round(median(times) / ours, 3),
                peak_extra_mb=round(measure.peak_extra_bytes(entrant.loss, inputs) / 1e6, 2) if kept else float("nan"),
                gradient_error=_error(entrant, inputs, truths) if float64_fits else float("nan"),
                gemm_equivalents=equivalents,
                gflops=round(equivalents * 2 * math.prod(size) / median(times) / 1e9, 1),
                share_of_mm=round(equivalents * mm / median(times), 3),
                share_of_product=round(equivalents * product / median(times), 3),
                note=entrant.note if kept else left_out_because(entrant, matrix_gb),
                version=ssl_heads.__version__ if name == "ssl-heads" else _version(name),
            )
        )
        print(_line(records[-1]), flush=True)
    return records


def left_out_because(entrant: Contestant, matrix_gb: float) -> str:
    """Memory, or time where memory would do."""
    if math.isinf(entrant.matrices):
        return "left out: takes a minute a step"
    return f"left out: would hold about {entrant.matrices * matrix_gb:.0f} GB"


def _error(entrant: Contestant, inputs: Sequence[Tensor], truths: dict[Loss, list[Tensor]]) -> float:
    assert entrant.exact is not None
    if entrant.exact not in truths:
        truths[entrant.exact] = measure.exact_gradient(entrant.exact, inputs)
    return float(f"{measure.gradient_error(entrant.loss, truths[entrant.exact], inputs):.2e}")


def _version(name: str) -> str:
    module = name.split()[0].replace("-", "_")
    return others.versions().get(module, "")


def _line(r: Record) -> str:
    return (
        f"{r.work:28s} {r.contestant:32s} {r.median_ms:10.1f} ms {r.ratio:7.2f}x {r.peak_extra_mb:9.1f} MB "
        f"error {r.gradient_error:.1e} {r.gflops:6.0f} GFLOP/s, {r.share_of_mm:.2f} of torch.mm, "
        f"{r.share_of_product:.2f} of the tile product {r.note}"
    )


def bars() -> list[Work]:
    """The sizes that docs/performance.md quotes."""
    return [
        nt_xent(4096, 256, 3),
        nt_xent(512, 128, 41),
        nt_xent(128, 128, 61),
        clip(4096, 512, 7),
        clip(1024, 512, 31),
        siglip(4096, 512, 7),
        siglip(1024, 512, 31),
        moco(256, 65_536, 128, 15),
        spectral(4096, 256, 7),
    ]


REPEATS = {256: 61, 512: 41, 1024: 31, 2048: 11, 4096: 5, 8192: 3, 16384: 2, 32768: 2, 65536: 1}
"""Turns of the sweep, by rows; a turn that warms up comes on top."""


def sweep() -> list[Work]:
    """NT-Xent from 256 to 65,536 rows."""
    return [nt_xent(rows // 2, 128, repeats) for rows, repeats in REPEATS.items()]


def profile() -> dict[str, float]:
    """Milliseconds that each operation takes in one step of the largest NT-Xent of the bars."""
    inputs = views(4096, 256)
    loss = nt_xent(4096, 256).contestants["ssl-heads"].loss
    measure.step(loss, inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as prof:
        measure.step(loss, inputs)
    return {event.key: event.self_cpu_time_total / 1e3 for event in prof.key_averages()}


def write_profile(path: Path) -> None:
    """The operations that take most of the time, and the rest together."""
    spent = sorted(profile().items(), key=lambda item: -item[1])
    total = sum(time for _, time in spent)
    with path.open("w") as file:
        file.write("operation,milliseconds,share\n")
        for name, time in [*spent[:8], ("all others", sum(time for _, time in spent[8:]))]:
            file.write(f"{name},{time:.2f},{time / total:.3f}\n")


def main() -> None:
    """Run the pieces of work that are asked for; write the records, the plot and the tables of docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("bars", "sweep"), help="one half of the records")
    parser.add_argument("--match", default="", help="only work whose name contains this; nothing is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for part, works in (("bars", bars()), ("sweep", sweep())):
        if arguments.only in (None, part):
            records = [r for work in works if arguments.match in work.name for r in run(work)]
            if not arguments.match:
                measure.write(records, HERE / "records" / f"similarity_{part}.csv")
                if part == "bars":
                    write_profile(HERE / "records" / "similarity_profile.csv")
    if not arguments.match:
        import report_similarity

        report_similarity.main()


if __name__ == "__main__":
    main()
