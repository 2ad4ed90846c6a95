"""Checks of what a user passes: each names the value or both shapes, and says what is expected."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ssl_heads._modes import saveable


def positive(name: str, value: object) -> float | Tensor:
    """A finite number above zero; a tensor is read only where that waits for no device and breaks no graph."""
    number = scalar(name, value)
    if isinstance(number, Tensor) and not visible(number):
        return number
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {shown(value)}")
    return number


def not_negative(name: str, value: object) -> float | Tensor:
    """A finite number of at least zero."""
    number = scalar(name, value)
    if isinstance(number, Tensor) and not visible(number):
        return number
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be at least 0, got {shown(value)}; pass a finite number")
    return number


def fraction(name: str, value: object) -> float:
    """A number strictly between 0 and 1."""
    number = float(scalar(name, value))
    if not 0 < number < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {shown(value)}")
    return number


def visible(x: Tensor) -> bool:
    """Whether reading the data waits for no device and breaks no graph."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    # subclasses, as FakeTensor, may have no data, and torch.func does not let data be read
    return type(x) in (Tensor, nn.Parameter) and not torch._C._are_functorch_transforms_active()


def scalar(name: str, value: object) -> float | Tensor:
    """One real number for the whole batch, as a float or as a floating-point tensor.

    A vector would be broadcast along whatever axis fits.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool:
        return value if value.is_floating_point() else value.float()
    number = value
    if not isinstance(value, (int, float, Tensor)) and getattr(value, "ndim", None) == 0:
        number = value.item()  # type: ignore[attr-defined]  # a NumPy scalar or array
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        return float(number)
    raise ValueError(f"{name} must be one number, or a tensor of shape () or (1,), got {shown(value)}")


def shown(value: object) -> object:
    """A value as a message prints it, where a number was expected."""
    if not isinstance(value, Tensor):
        return repr(value)
    return value.item() if value.numel() == 1 and visible(value) else f"{value.dtype} of shape {tuple(value.shape)}"


def integer(name: str, value: object) -> int:
    """A whole number that is not a truth value."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be an integer, got {shown(value)}")
    return int(value)


def at_least_one(name: str, value: object) -> int:
    """A count or a width."""
    count = integer(name, value)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count


def choice(name: str, value: object, options: Iterable[object]) -> None:
    """One of a fixed set of values."""
    options = tuple(options)
    if not (value is None or isinstance(value, str)) or value not in options:  # an array has no truth value
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def tensor(name: str, x: object) -> None:
    """A tensor, and not the tuple of a head that returns more than embeddings."""
    if not isinstance(x, Tensor):
        hint = "; pass its .embeddings" if hasattr(x, "embeddings") else f"; pass torch.as_tensor({name})"
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


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)


def integers(name: str, x: object, count: int, owner: str, of: Tensor) -> Tensor:
    """One integer a row of another tensor, as int64."""
    whole = isinstance(x, Tensor) and x.dtype in INTEGERS
    if not isinstance(x, Tensor) or not whole or x.shape != (count,):
        given = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{name} must hold one integer for each row of {owner}: expected shape ({count},), "
            f"got {given} beside {owner} of shape {tuple(of.shape)}"
            + ("" if whole else f"; pass torch.as_tensor({name}).long()")
        )
    same_device(name, x, owner, of)
    return saveable(x.long())


def classes(name: str, labels: Tensor, count: int, of: str, none: int = -1) -> None:
    """Labels from 0 to count - 1; read only where that waits for no device and breaks no graph."""
    if not visible(labels):
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= count:
        raise ValueError(
            f"{name} must be 0..{count - 1} for {count} {of}, or {none} for a row without a label; "
            f"got {lowest if lowest < 0 else highest}"
        )
