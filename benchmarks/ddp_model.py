"""What gathering and the ring would cost on many GPUs: a model, not a measurement. `python benchmarks/ddp_model.py`

Writes its two tables into docs/distributed.md.
"""

from __future__ import annotations

from typing import NamedTuple

from ddp_parity import into_page
from pages import markdown

WIDTH = 512
WORLDS = (8, 64, 256, 1024)


class Machine(NamedTuple):
    """What the model takes for granted of a GPU and its links."""

    flops: float = 300e12  # a second, sustained by a fused kernel on half-precision operands
    in_node: float = 300e9  # bytes a second to a GPU of the same node
    between_nodes: float = 40e9  # bytes a second and GPU to another node
    latency: float = 10e-6  # seconds a hop
    node: int = 8


MACHINE = Machine()


class Cost(NamedTuple):
    """One step of CLIP's loss on one GPU."""

    bytes_moved: float
    bytes_held: float
    seconds: float


class Hop(NamedTuple):
    """Seconds to send the keys of one GPU to the next, and for one product of them with the rows of a GPU."""

    send: float
    product: float


def block_bytes(rows: int) -> float:
    return 4.0 * rows * WIDTH


def hop(world: int, rows: int) -> Hop:
    bandwidth = MACHINE.in_node if world <= MACHINE.node else MACHINE.between_nodes
    return Hop(block_bytes(rows) / bandwidth + MACHINE.latency, 2.0 * rows * rows * WIDTH / MACHINE.flops)


def arithmetic(world: int, rows: int) -> float:
    """Seconds of one product forward and three backward with the keys of all GPUs."""
    return 4 * world * hop(world, rows).product


def gathered(world: int, rows: int) -> Cost:
    """Wait for all keys, compute, then scatter the gradients of all keys."""
    seconds = 2 * (world - 1) * hop(world, rows).send + arithmetic(world, rows)
    return Cost(2 * (world - 1) * block_bytes(rows), 2 * world * block_bytes(rows), seconds)


def ring(world: int, rows: int) -> Cost:
    """Each hop hides the smaller of sending and computing behind the larger; the gradients of the keys travel too."""
    send, product = hop(world, rows)
    seconds = world * (max(product, send) + max(3 * product, 2 * send))
    return Cost((3 * world - 2) * block_bytes(rows), 6 * block_bytes(rows), seconds)


def crossover(world: int) -> int:
    """The fewest rows on each GPU, in steps of 64, with which the ring is faster."""
    return next(rows for rows in range(64, 1 << 20, 64) if ring(world, rows).seconds < gathered(world, rows).seconds)


def hidden(world: int) -> int:
    """The fewest rows on each GPU, in steps of 64, that hide all of the ring's sending."""
    return next(rows for rows in range(64, 1 << 20, 64) if hop(world, rows).product >= hop(world, rows).send)


def cost_table() -> str:
    head = ["GPUs", "rows each", "rows", "moved by a GPU", "held by a GPU", "arithmetic", "time", "faster"]
    body = []
    for world in WORLDS:
        for rows in (256, 1024, 4096, 16384):
            a, r = gathered(world, rows), ring(world, rows)
            body.append(
                [
                    *(str(world), f"{rows:,}", f"{world * rows:,}"),
                    f"{a.bytes_moved / 1e9:.2f} / {r.bytes_moved / 1e9:.2f} GB",
                    f"{a.bytes_held / 1e9:.3f} / {r.bytes_held / 1e9:.3f} GB",
                    f"{1e3 * arithmetic(world, rows):.1f} ms",
                    f"{1e3 * a.seconds:.1f} / {1e3 * r.seconds:.1f} ms",
                    "ring" if r.seconds < a.seconds else "all",
                ]
            )
    return markdown(head, body)


def crossover_table() -> str:
    head = ["GPUs", "the ring is faster from", "the ring hides all sending from"]
    return markdown(head, [[str(w), f"{crossover(w):,} rows each", f"{hidden(w):,} rows each"] for w in WORLDS])


if __name__ == "__main__":
    into_page("model", cost_table())
    into_page("crossover", crossover_table())
