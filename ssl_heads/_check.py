"""Checks of what a user passes: each names the value or both shapes, and says what is expected."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def positive(name: str, value: float | Tensor) -> None:
    """A finite number above zero; a tensor is looked into only where that waits for no device and breaks no graph."""
    if isinstance(value, Tensor):
        scalar(name, value)
        if not visible(value):
            return
        value = value.item()
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def visible(x: Tensor) -> bool:
    """Whether a look at the data waits for no device and breaks no graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def scalar(name: str, value: float | Tensor | None) -> None:
    """One number for the whole batch: a vector would be broadcast along whatever axis fits."""
    if value is None or (isinstance(value, Tensor) and value.numel() != 1):
        given = "None" if value is None else f"shape {tuple(value.shape)}"
        raise ValueError(f"{name} must be one number, or a tensor of shape () or (1,); got {given}")


def choice(name: str, value: object, options: Iterable[object]) -> None:
    """One of a fixed set of values."""
    options = tuple(options)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; got {value!r}")


def tensor(name: str, x: object) -> None:
    """A tensor, and not the tuple of a head that returns more than embeddings."""
    if not isinstance(x, Tensor):
        hint = "; pass its .embeddings" if hasattr(x, "embeddings") else ""
        raise ValueError(f"{name} must be a tensor, got {type(x).__name__}{hint}")


def rows(name: str, x: Tensor) -> None:
    """A floating-point matrix of shape (n, d) with at least one row."""
    tensor(name, x)
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor of shape (n, d), got {x.dtype} of shape {tuple(x.shape)}"
        )
    if x.shape[0] == 0:
        raise ValueError(f"{name} is an empty batch of shape {tuple(x.shape)}: a loss needs at least one row")
    if x.shape[1] == 0:
        raise ValueError(f"{name} has no columns, shape {tuple(x.shape)}: a loss needs at least one dimension")


def same_width(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Two matrices on one device whose rows are equally wide."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{name_a} and {name_b} must have the same width, got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    same_device(name_a, a, name_b, b)


def paired(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Two matrices whose rows belong together, row by row."""
    rows(name_a, a)
    rows(name_b, b)
    if a.shape != b.shape:
        raise ValueError(
            f"{name_a} and {name_b} hold one pair a row and must have the same shape (n, d), "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    same_device(name_a, a, name_b, b)


def same_device(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Two tensors on one device."""
    if a.device != b.device:
        raise ValueError(f"{name_a} is on {a.device} and {name_b} on {b.device}; move them to the same device")


def integers(name: str, x: Tensor, count: int, owner: str, of: Tensor) -> None:
    """One integer a row of another tensor."""
    if x.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8) or x.shape != (count,):
        raise ValueError(
            f"{name} must hold one integer for each row of {owner}: expected shape ({count},), "
            f"got {x.dtype} of shape {tuple(x.shape)} beside {owner} of shape {tuple(of.shape)}"
        )
    same_device(name, x, owner, of)


def classes(name: str, labels: Tensor, count: int) -> None:
    """Labels from 0 to count - 1; looked at only where that waits for no device and breaks no graph."""
    if not visible(labels) or labels.numel() == 0:
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= count:
        raise ValueError(
            f"{name} must lie between 0 and {count - 1} for {count} classes, got {lowest if lowest < 0 else highest}"
        )
