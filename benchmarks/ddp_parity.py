"""Does a loss over several processes give what one process gives? `python benchmarks/ddp_parity.py`

Every contestant runs in real processes that talk through gloo. An encoder is shared; each rank holds a part of one
batch; gradients are averaged over ranks, as DistributedDataParallel does, and compared with the same library's loss on
the whole batch in one process. Writes records/ddp_parity.csv and records/ddp_memory.csv, and the tables of
docs/distributed.md.

    python benchmarks/ddp_parity.py                      # everything, two minutes
    python benchmarks/ddp_parity.py --largest            # 131,072 rows on 4 ranks, by the ring
"""

from __future__ import annotations

import argparse
import csv
import datetime
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import measure
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pages import between, markdown
from torch import Tensor

from ssl_heads import functional

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "distributed.md"
PAIRS, FEATURES, WIDTH = 12, 7, 5
WORLDS = (2, 4)
UNEVEN = (7, 5)
ABORT_AFTER, PATIENCE = 20.0, 1800.0  # seconds that a rank waits for others: small batches, large ones


class Place(NamedTuple):
    """Which rank of how many."""

    rank: int
    world: int


class Step(NamedTuple):
    """A loss, and the gradients of the encoder and of the logit scale."""

    value: Tensor
    encoder: Tensor
    scale: Tensor


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # z0, z1, labels of the samples, scale
TEMPERATURE, BIAS = 0.5, torch.tensor(-3.0, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------- contestants


def ours(gather: str) -> dict[str, Callable[[Place], Loss]]:
    """Our losses; in one process nothing is gathered, whatever was asked for."""
    f, unit = functional, functional.safe_normalize

    def importance(z: Tensor) -> Tensor:
        return torch.linspace(0.5, 1.5, z.shape[1], dtype=z.dtype)

    losses: dict[str, Loss] = {
        "NT-Xent": lambda a, b, _, s: f.nt_xent(a, b, 1 / s, gather=gather),
        "InfoNCE": lambda a, b, _, s: f.info_nce(a, b, None, 1 / s, gather=gather),
        "CLIP": lambda a, b, _, s: f.clip_loss(unit(a), unit(b), s, gather=gather),
        "SigLIP": lambda a, b, _, s: f.siglip_loss(unit(a), unit(b), s, BIAS, gather=gather),
        "SupCon, out": lambda a, b, y, s: f.sup_con(a, y, 1 / s, gather=gather),
        "SupCon, in": lambda a, b, y, s: f.sup_con(a, y, 1 / s, multi_positive="in", gather=gather),
        "tri-factor": lambda a, b, _, s: f.tri_factor_contrast(a, b, importance(a), 1 / s, gather=gather),
        "tri-factor, two towers": lambda a, b, _, s: f.tri_factor_two_towers(a, b, importance(a), 1 / s, gather=gather),
        "tri-factor, spectral": lambda a, b, _, s: f.tri_factor_spectral(a, b, importance(a) * s, gather=gather),
        "spectral": lambda a, b, _, s: f.spectral_contrastive(a, b, gather=gather),
        "decorrelation": lambda a, b, _, s: f.decorrelation(torch.cat([a, b]), gather=gather),
    }
    return {f'ssl-heads {name}, gather="{gather}"': lambda place, loss=loss: loss for name, loss in losses.items()}


def lightly(gather: bool) -> Callable[[Place], Loss]:
    def build(place: Place) -> Loss:
        from lightly.loss import NTXentLoss

        loss = NTXentLoss(TEMPERATURE, gather_distributed=gather and place.world > 1)
        return lambda a, b, _, s: loss(a, b)

    return build


def open_clip(local_loss: bool, gather_with_grad: bool) -> Callable[[Place], Loss]:
    def build(place: Place) -> Loss:
        from open_clip.loss import ClipLoss

        loss = ClipLoss(local_loss, gather_with_grad, rank=place.rank, world_size=place.world)
        unit = torch.nn.functional.normalize
        return lambda a, b, _, s: loss(unit(a), unit(b), s)

    return build


def open_siglip(dist_impl: str) -> Callable[[Place], Loss]:
    def build(place: Place) -> Loss:
        from open_clip.loss import SigLipLoss

        loss = SigLipLoss(rank=place.rank, world_size=place.world, dist_impl=dist_impl)
        unit = torch.nn.functional.normalize
        return lambda a, b, _, s: loss(unit(a), unit(b), s, BIAS)

    return build


def metric_learning(efficient: bool) -> Callable[[Place], Loss]:
    def build(place: Place) -> Loss:
        from pytorch_metric_learning.losses import NTXentLoss
        from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

        loss: Any = NTXentLoss(TEMPERATURE)
        if place.world > 1:
            loss = DistributedLossWrapper(loss, efficient=efficient)

        def of_views(a: Tensor, b: Tensor, labels: Tensor, s: Tensor) -> Tensor:
            samples = torch.arange(len(a)) + 1000 * place.rank  # no sample is on two ranks
            return loss(torch.cat([a, b]), torch.cat([samples, samples]))

        return of_views

    return build


CONTESTANTS: dict[str, Callable[[Place], Loss]] = {
    **ours("all"),
    **ours("ring"),
    "lightly NTXentLoss(gather_distributed=True)": lightly(True),
    "lightly NTXentLoss(gather_distributed=False)": lightly(False),
    "open_clip ClipLoss(local_loss=True, gather_with_grad=True)": open_clip(True, True),
    "open_clip ClipLoss(local_loss=False, gather_with_grad=True)": open_clip(False, True),
    "open_clip ClipLoss(local_loss=True, gather_with_grad=False)": open_clip(True, False),
    "open_clip ClipLoss() (the defaults)": open_clip(False, False),
    **{f'open_clip SigLipLoss(dist_impl="{i}")': open_siglip(i) for i in ("bidir", "shift", "reduce", "gather")},
    "pytorch-metric-learning DistributedLossWrapper(efficient=False)": metric_learning(False),
    "pytorch-metric-learning DistributedLossWrapper(efficient=True)": metric_learning(True),
}


# ---------------------------------------------------------------------------------------------------------------- steps


def step(name: str, place: Place, sizes: Sequence[int]) -> Step:
    """Forward and backward on the rows of one rank."""
    generator = torch.Generator().manual_seed(0)
    total = sum(sizes)
    x0, noise, encoder = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((total, FEATURES), (total, FEATURES), (FEATURES, WIDTH))
    )
    views = x0, x0 + 0.5 * noise
    labels = torch.arange(total) % 3
    encoder.requires_grad_()
    scale = torch.tensor(1 / TEMPERATURE, dtype=torch.float64, requires_grad=True)
    z0, z1 = (view.split(list(sizes))[place.rank] @ encoder for view in views)
    value = CONTESTANTS[name](place)(z0, z1, labels.split(list(sizes))[place.rank], scale)
    value.backward()
    return Step(value.detach(), encoder.grad, torch.zeros_like(scale) if scale.grad is None else scale.grad)


def join(rank: int, world: int, rendezvous: str, patience: float = ABORT_AFTER) -> Place:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=patience),
    )
    return Place(rank, world)


def averaged_steps(rank: int, world: int, names: list[str], sizes: Sequence[int], folder: str) -> None:
    """Every contestant's step, averaged over ranks, to a file."""
    place = join(rank, world, f"{folder}/rendezvous")
    results = {}
    for name in names:
        own = step(name, place, sizes)
        for tensor in own:
            dist.all_reduce(tensor)
        results[name] = Step(*(tensor / world for tensor in own))
    if rank == 0:
        torch.save({name: tuple(result) for name, result in results.items()}, f"{folder}/results.pt")


def in_processes(names: list[str], sizes: Sequence[int]) -> dict[str, Step]:
    """Spawn the ranks; an empty result where one of them aborted."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.spawn(averaged_steps, (len(sizes), names, sizes, folder), nprocs=len(sizes))
        except (mp.ProcessRaisedException, mp.ProcessExitedException):
            return {}
        return {name: Step(*result) for name, result in torch.load(f"{folder}/results.pt").items()}


# --------------------------------------------------------------------------------------------------------------- parity


def compare(actual: Step, expected: Step) -> dict[str, float]:
    """Ratios of the value and of the gradients, and the cosine of the encoder's gradients."""
    a, e = actual.encoder.flatten(), expected.encoder.flatten()
    with_scale = bool(expected.scale.abs() > 0)
    return {
        "value": float(actual.value / expected.value),
        "feature_gradient": float(a.norm() / e.norm()),
        "cosine": float(a @ e / (a.norm() * e.norm())),
        "scale_gradient": float(actual.scale / expected.scale) if with_scale else float("nan"),
    }


def parity(uneven: bool) -> list[dict[str, Any]]:
    """A row for every contestant and number of ranks."""
    rows = []
    expected = {name: step(name, Place(0, 1), [PAIRS]) for name in CONTESTANTS}
    for world in WORLDS:
        actual = in_processes(list(CONTESTANTS), [PAIRS // world] * world)
        for name, one in expected.items():
            rows.append({"contestant": name, "ranks": world, "rows": "even", **compare(actual[name], one)})
    if uneven:
        mine = [name for name in CONTESTANTS if name.startswith("ssl-heads")]
        batches = [mine, *([name] for name in CONTESTANTS if name not in mine)]
        for names in batches:
            actual = in_processes(names, UNEVEN)
            for name in names:
                result = compare(actual[name], expected[name]) if actual else {"value": "error"}
                rows.append({"contestant": name, "ranks": len(UNEVEN), "rows": "uneven", **result})
            print(f"uneven: {names[0]}: {'ran' if actual else 'error'}", flush=True)
    return rows


def parity_table(rows: list[dict[str, Any]]) -> str:
    """Even rows on 2 and 4 ranks, and what uneven rows give."""

    def cells(name: str, kind: str, column: str) -> str:
        values = [row.get(column, "") for row in rows if row["contestant"] == name and row["rows"] == kind]
        shown = ["-" if isinstance(v, float) and v != v else f"{v:.3f}" if isinstance(v, float) else v for v in values]
        return " / ".join(shown) if len(set(shown)) > 1 else shown[0]

    def uneven(name: str) -> str:
        row = next((r for r in rows if r["contestant"] == name and r["rows"] == "uneven"), None)
        if row is None or row["value"] == "error":
            return "error" if row else ""
        return f"{row['feature_gradient']:.3f}, cosine {row['cosine']:.3f}"

    head = ["implementation", "value", "feature gradient", "cosine", "scale gradient", "uneven rows: feature gradient"]
    columns = ("value", "feature_gradient", "cosine", "scale_gradient")
    body = [[name, *(cells(name, "even", column) for column in columns), uneven(name)] for name in CONTESTANTS]
    return markdown(head, body)


# --------------------------------------------------------------------------------------------------------------- memory


def measure_memory(rank: int, world: int, gather: str, pairs: int, width: int, folder: str) -> None:
    """The most that torch held at once on one rank during a step of NT-Xent, and the seconds of that step."""
    join(rank, world, f"{folder}/rendezvous", PATIENCE)
    inputs = [torch.randn(pairs, width, requires_grad=True) for _ in range(2)]

    def loss(views: Sequence[Tensor]) -> Tensor:
        return functional.nt_xent(*views, gather=gather, impl="tiled")

    start = time.perf_counter()
    measure.step(loss, inputs)
    seconds = time.perf_counter() - start
    facts = torch.tensor([measure.peak_extra_bytes(loss, inputs), seconds], dtype=torch.float64)
    dist.all_reduce(facts, dist.ReduceOp.MAX)
    if rank == 0:
        torch.save(facts, f"{folder}/facts.pt")


def memory(worlds: Sequence[int], pairs: int, width: int, gathers: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for world in worlds:
        for gather in gathers:
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(measure_memory, (world, gather, pairs, width, folder), nprocs=world)
                extra, seconds = torch.load(f"{folder}/facts.pt").tolist()
            own = 2 * pairs * width * 4
            row = {"gather": gather, "ranks": world, "pairs_per_rank": pairs, "width": width}
            rows.append({**row, "own_rows_mb": own / 1e6, "peak_extra_mb": extra / 1e6, "seconds": seconds})
            print(rows[-1], flush=True)
    return rows


def memory_table(rows: list[dict[str, Any]]) -> str:
    worlds = sorted({row["ranks"] for row in rows})
    body = [
        [f'gather="{gather}"', *(f"{row['peak_extra_mb']:.0f} MB" for row in rows if row["gather"] == gather)]
        for gather in dict.fromkeys(row["gather"] for row in rows)
    ]
    return markdown(["", *(f"{world} rank{'s' * (world > 1)}" for world in worlds)], body)


# --------------------------------------------------------------------------------------------------------------- output


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(max(rows, key=len)))
        writer.writeheader()
        writer.writerows(rows)


def into_page(name: str, table: str) -> None:
    """Replace what is between the markers of this name."""
    marks = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    PAGE.write_text(between(PAGE.read_text(), *marks, f"\n\n{table}\n\n"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-uneven", action="store_true", help="leave out the slow part: others abort and time out")
    parser.add_argument("--only", choices=["parity", "memory"], help="one of the two tables")
    parser.add_argument("--largest", action="store_true", help="only the largest run, 4 ranks with 16,384 pairs each")
    args = parser.parse_args(argv)
    if args.largest:
        write_csv(HERE / "records" / "ddp_largest.csv", memory((4,), 16384, 64, ("ring",)))
        return
    if args.only != "memory":
        rows = parity(not args.skip_uneven)
        write_csv(HERE / "records" / "ddp_parity.csv", rows)
        into_page("parity", parity_table(rows))
    if args.only != "parity":
        rows = memory((2, 4, 8), 1024, 256, ("all", "ring"))
        write_csv(HERE / "records" / "ddp_memory.csv", rows)
        into_page("memory", memory_table(rows))


if __name__ == "__main__":
    main()
