"""Shared by the examples: one-line errors, a small network, checkpoints, and many processes.

To copy an example, take this file with it, and `images.py` and `openmoji.py`, which read data, where it imports them.
Nothing else is shared: no example imports another one, and the files `clip_*.py` are one example.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A ValueError is a user's mistake: it ends the program in one line, without a traceback."""
    try:
        yield
    except ValueError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


@contextmanager
def interrupt_after_step() -> Iterator[threading.Event]:
    """Ctrl-C sets the event in place of cutting a training step in two."""
    event = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


def check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None


def check_picture(path: Path) -> None:
    """What would fail only when the picture is written, after the training."""
    if path.suffix not in (".png", ".pdf", ".svg", ".jpg"):
        raise ValueError(f"--picture must end in .png, .pdf, .svg or .jpg, got {path}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--picture needs matplotlib: pip install 'ssl-heads[plots]'")
    writable_folder(path)


def check_batch(batch_size: int, images: int) -> None:
    if not 2 <= batch_size <= images:
        raise ValueError(f"--batch-size must lie between 2 and the {images} training images, got {batch_size}")
    if images < 10:
        raise ValueError(f"10-NN accuracy needs 10 training images, and there are {images}")


def markdown(rows: dict[str, list[str]], columns: Sequence[str]) -> str:
    table = [["arm", *columns], *([title, *row] for title, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in table)


# ----------------------------------------------------------------------------------------------------- what is trained
WIDTH = 256  # of the features of `small_convnet`


def small_convnet(channels: int) -> nn.Module:
    widths, strides = (channels, 32, 64, 128, WIDTH), (2, 2, 2, 2)
    layers: list[nn.Module] = []
    for c_in, c_out, stride in zip(widths, widths[1:], strides, strict=False):
        layers += [nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(memory_format=torch.channels_last)


def warmup_then_cosine(progress: float) -> float:
    return min(progress / 0.1 + 0.01, 0.5 + 0.5 * math.cos(math.pi * progress))


# ------------------------------------------------------------------------------------------------------- checkpoints
class Refused(ValueError):
    """A file that this run cannot take; the message names it."""


def writable_folder(path: Path) -> None:
    """Make the folder of a file that will be written, now rather than after an hour."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # permissions do not tell: some file systems take no files
            pass
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error}") from error
    if path.is_dir():
        raise Refused(f"{path} is a folder; name a file")


def read(path: Path) -> Any:
    """What `write` wrote, its tensors on the CPU: no other object is unpickled."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an empty file, half a file and a foreign one each raise something else
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise Refused(f"{path} is broken or no file of this example; remove it or name another ({why})") from error


def write(content: Any, path: Path) -> None:
    """To a side file, which is then moved: whoever dies while writing leaves the previous file whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):  # below a file there is nothing to remove
            part.unlink(missing_ok=True)
        raise Refused(f"{path} cannot be written: {error}") from error


@contextmanager
def contents_of(path: Path) -> Iterator[None]:
    """Whatever fails while a checkpoint is taken apart and loaded is the file's fault, and names it."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise Refused(f"{path} does not fit what is trained here; remove it or name another ({why})") from error


OTHER_DATA = "data: the checkpoint's differ from the given ones; name another file, or give the same data"


def digest(*parts: object) -> str:
    """Changes with the data: tensors by their shapes and bytes, all else by what it prints."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            total.update(repr((part.dtype, part.shape)).encode())
            total.update(memoryview(part.contiguous().cpu().numpy()).cast("B"))
        else:
            total.update(repr(part).encode())
    return total.hexdigest()


def same_settings(path: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Every setting of which the checkpoint has another value, one by one."""
    names = [name for name in {**given, **saved} if saved.get(name) != given.get(name)]
    if names == ["contents"]:
        raise Refused(f"{path} cannot be resumed: {OTHER_DATA}")
    if names:
        other = "; ".join(f"with {n!r}: {saved.get(n)!r}, not with {n!r}: {given.get(n)!r}" for n in names)
        raise Refused(f"{path} was written {other}; name another file, or give the same settings")


class Checkpoint:
    """How far every arm has come, in one file. Without a path nothing is kept."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.content = path, {"settings": settings, "arms": {}}
        if path is None:
            return
        writable_folder(path)
        if path.exists():
            saved = read(path)
            with contents_of(path):
                written_with, arms = dict(saved["settings"]), dict(saved["arms"])
                same_settings(path, written_with, settings)
            self.content.update(arms=arms, data=saved.get("data"))

    def same_data(self, digest: str) -> None:
        """Refuse to resume on other data: what is held out is drawn from them, and was trained on before."""
        if self.content.setdefault("data", digest) != digest:
            raise Refused(f"{self.path} cannot be resumed: {OTHER_DATA}")

    def restore(self, arm: str, stateful: dict[str, Any]) -> tuple[int, float]:
        if self.path is None or arm not in self.content["arms"]:
            return 0, 0.0
        with contents_of(self.path):
            saved = self.content["arms"][arm]
            for name, value in stateful.items():
                value.load_state_dict(saved[name])
            return int(saved["step"]), float(saved["seconds"])

    def save(self, arm: str, stateful: dict[str, Any], step: int, seconds: float) -> None:
        if self.path is None:
            return
        states = {name: value.state_dict() for name, value in stateful.items()}
        self.content["arms"][arm] = {"step": step, "seconds": seconds, **states}
        write(self.content, self.path)


# --------------------------------------------------------------------------------------------------- many processes
@contextmanager
def process_group() -> Iterator[tuple[int, int, str]]:
    """Rank, number of ranks and device; without torchrun it is one process and no group."""
    if "RANK" not in os.environ:
        yield 0, 1, "cuda" if torch.cuda.is_available() else "cpu"
        return
    device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    if torch.cuda.is_available():
        torch.cuda.set_device(device)
    # Beside NCCL, gloo lets the ranks agree on their numbers of rows without waiting for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size(), device
    finally:
        dist.destroy_process_group()


def on_every_rank(act: Callable[[], T]) -> T:
    """What `act` returns; if it is refused on one rank, a ValueError on all: nobody waits for a rank that is gone."""
    try:
        mine: tuple[Any, str | None] = act(), None
    except ValueError as error:
        mine = None, str(error)
    refusals = [mine[1]]
    if dist.is_initialized():
        refusals = [None] * dist.get_world_size()
        dist.all_gather_object(refusals, mine[1])
    for rank, why in enumerate(refusals):
        if why is not None:
            raise ValueError(why if len(set(refusals)) == 1 else f"rank {rank}: {why}")
    return mine[0]


def equal_on_every_rank(value: object) -> None:
    """Options and numbers of images differ where a machine has its own command line or its own copy of the data."""
    if dist.is_initialized():
        values: list[object] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        if any(other != values[0] for other in values):
            raise ValueError(f"the ranks were started with other options or data: {values}")


def from_rank_0(checkpoint: Path | None) -> Any:
    """What the checkpoint holds, on every rank, or None. Rank 0 reads it: other machines need not have the file."""
    found: list[Any] = [None]

    def look() -> None:
        if checkpoint is not None and (not dist.is_initialized() or dist.get_rank() == 0):
            writable_folder(checkpoint)
            found[0] = read(checkpoint) if checkpoint.exists() else None

    on_every_rank(look)
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    return found[0]
