"""The agreement of ranks before they send rows: which facts must be equal, and which inputs are refused.

A collective that only some ranks enter, or that they enter with other shapes, ends in a time-out or in an abort. Each
call therefore begins with one exchange of a fixed size: the number of rows, and a text that says what the call is. If
the texts differ, every rank raises the same `ValueError`, and none is left waiting.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_heads.distributed.outside import outside_graph

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

NUMBERS, TEXT_WORDS = 2, 94
"""A message: the rows and the checksum of the text, then the text in words of eight bytes, cut or padded."""

ACCEPTED = "yes"


def world_size(group: ProcessGroup | None) -> int:
    """Ranks of the group; 1 without one."""
    world = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
    if world < 1:
        raise ValueError(f"rank {dist.get_rank()} is none of the group's: only the ranks of a group compute its loss")
    return world


@outside_graph
def agree(
    first: object, facts: Mapping[str, object], check: Callable[[], T], group: ProcessGroup | None, least: int = 0
) -> tuple[tuple[int, ...], T]:
    """The number of rows of every rank, and what the check of the own inputs returns.

    Args:
        first: The tensor whose rows are counted, on the device of the call.
        facts: By their names, what must be equal on all ranks. A tensor stands for its need of a gradient.
        check: Raises an error for inputs that are refused.
        group: The ranks that call this together.
        least: The smallest number of rows that a rank may hold.

    Raises:
        ValueError: If facts differ, one rank holds too few rows, or one refuses its inputs; on every rank.
    """
    cause, verdict = None, ACCEPTED
    try:
        result = check()
    except Exception as error:
        cause, verdict = error, f"no, {error}"
    rows = first.shape[0] if isinstance(first, Tensor) and first.ndim else -1
    device = first.device if isinstance(first, Tensor) else torch.device("cpu")
    sizes, difference = exchange(rows, {**facts, "inputs accepted": verdict}, device, group)
    if 0 <= min(sizes) < least:
        advice = "each needs at least one; drop a last batch that is too small on all of them"
        raise ValueError(f"the ranks hold {list(sizes)} rows: {advice}") from cause
    if difference:
        raise ValueError(difference) from cause
    if cause is not None:
        raise cause
    return sizes, result


def described_value(value: object) -> str:
    """A tensor by its need of a gradient, everything else as it prints."""
    if not isinstance(value, Tensor):
        return str(value)
    return "a tensor that needs a gradient" if needs_gradient(value) else "a tensor"


def needs_gradient(x: object) -> bool:
    """Whether autograd records operations on `x`."""
    return isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()


def embedding_facts(name: str, x: object) -> dict[str, object]:
    """The facts about a matrix of embeddings that must be equal on all ranks."""
    if not isinstance(x, Tensor):
        return {name: type(x).__name__}
    return {
        f"width of {name}": x.shape[1] if x.ndim == 2 else f"none, shape {tuple(x.shape)}",
        f"dtype of {name}": x.dtype,
        f"device of {name}": x.device.type,
        f"need of a gradient of {name}": needs_gradient(x),
    }


# -------------------------------------------------------------------------------------------------------- the exchange


def exchange(
    rows: int, facts: Mapping[str, object], device: torch.device, group: ProcessGroup | None
) -> tuple[tuple[int, ...], str]:
    """The rows of every rank, and in words what differs between their facts, empty if nothing does.

    The exchange stays on the CPU where the group has a backend for it (`cpu:gloo,cuda:nccl`).
    """
    described = {name: " ".join(described_value(value).split()) for name, value in facts.items()}
    text = "\n".join(f"{name}={value}" for name, value in described.items()).encode()
    padded = text[: 8 * TEXT_WORDS].ljust(8 * TEXT_WORDS, b"\0")
    message = [rows, zlib.crc32(text), *struct.unpack(f"<{TEXT_WORDS}q", padded)]
    own = torch.tensor(message, device=exchange_device(device, group))
    everyone = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(everyone, own, group=group)
    table = torch.stack(everyone).cpu()
    sizes, checksums = table[:, :NUMBERS].T.tolist()
    same = len(set(checksums)) == 1
    return tuple(sizes), "" if same else differences([read_text(words) for words in table[:, NUMBERS:].tolist()])


def exchange_device(device: torch.device, group: ProcessGroup | None) -> torch.device:
    """The CPU if the group has a backend for it, else the device of the rows, else the one the group has."""
    backends = str(dist.get_backend_config(group))
    if "cpu:" in backends:
        return torch.device("cpu")
    return device if f"{device.type}:" in backends else torch.device(backends.partition(":")[0])


def read_text(words: list[int]) -> dict[str, str]:
    """The facts of one rank, as far as they fit into the exchange."""
    text = struct.pack(f"<{TEXT_WORDS}q", *words).rstrip(b"\0").decode(errors="replace")
    return {name: value for name, _, value in (line.partition("=") for line in text.split("\n"))}


def differences(ranks: list[dict[str, str]]) -> str:
    """In words: the facts that differ, with the value of each rank, and the inputs that are refused."""
    found = []
    for name in dict.fromkeys(name for facts in ranks for name in facts):
        values = [facts.get(name, "none") for facts in ranks]
        if name == "inputs accepted":
            refusing = [rank for rank, value in enumerate(values) if value not in (ACCEPTED, "none")]
            reasons = "; ".join(f"rank {rank}: {values[rank].removeprefix('no, ')}" for rank in refusing)
            found += [f"the inputs are refused on ranks {refusing}; {reasons}"] if refusing else []
        elif len(set(values)) > 1:
            found.append(f"the {name} must be the same on all ranks, got [{', '.join(values)}]")
            if name == "call":
                break  # different calls have different facts
    return "; ".join(found) or "the ranks call this with different inputs"
